"""An accelerator that isn't there: tensors hold real values on the CPU and report that they are on `cuda:0`.

Code that would fail on a GPU fails here, on any machine: operators over tensors of two devices raise, and so do NumPy
and a generator of the CPU beside tensors of the device. What the host reads from the device is counted with the line
that asked for it, so that the places where a GPU would run dry can be found without one.

Example:
    with pretended_accelerator() as counts:
        score = reward.load(torch.device("cuda:0"))
        score(images.to("cuda:0"), prompts)
    print(counts)

Note: It is a device for finding mistakes, not for speed. What differs from a GPU:
    * C++ sees tensors of the CPU. `torch.autocast("cuda")` has no effect, kernels and their rounding are the CPU's, and
      a gradient that C++ alone carries from one device to the other (`copy_` into a tensor of the device) stays on the
      device.
    * There are no streams, events, graphs, generators or modules of TorchScript on the device; asking for one raises
      `NotPretended` or torch's own error. Memory is never pinned.
    * `Module.to` makes new parameters instead of moving the data of those that are there, so tied parameters are equal
      afterwards but no longer one.
    * Optimisers and gradient clipping take their loops over single tensors unless told `fused=True`.
    * It is the device of the thread that asked for it; another thread can move tensors to it and from it, no more.
    * Kernels of one's own (Triton, CUDA) cannot run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from draft.testing.pretended.counts import At, Counts

__all__ = ["At", "Counts", "pretended_accelerator"]


@contextmanager
def pretended_accelerator() -> Iterator[Counts]:
    """Give this machine a `cuda:0` inside the block, whether or not it has one, and take it away afterwards.

    What torch reports of its devices, `Tensor.to` and its kind, and what accelerate and the Hugging Face libraries
    remember of the machine are as before when the block is left, however it is left. Tensors of the device that are
    still there can be printed, not used.

    Yields:
        What is counted on the device, from now on.

    Raises:
        RuntimeError: Inside another pretended accelerator, or inside torch's FakeTensorMode.
    """
    from draft.testing.pretended.answers import answering
    from draft.testing.pretended.calls import Calls, Factories, no_fake_mode
    from draft.testing.pretended.moves import moving
    from draft.testing.pretended.pretence import Pretence

    no_fake_mode()
    pretence = Pretence(Counts())
    with ExitStack() as stack:
        stack.callback(pretence.close)
        stack.enter_context(answering(pretence))
        calls = Calls(pretence)
        stack.enter_context(moving(pretence, calls))
        stack.enter_context(Factories(pretence))
        stack.enter_context(calls)
        yield pretence.counts
