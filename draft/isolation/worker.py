"""The main program of a reward's own process: `python -m draft.isolation.worker`, started by Draft, never by hand.

It needs Draft, pydantic, pluggy and PyTorch, and nothing else that Draft depends on, so that a reward may pin the rest
as it likes. It reads requests from its standard input and answers on its standard output, see `frames`; whatever the
reward prints goes to standard error.
"""

from __future__ import annotations

import atexit
import faulthandler
import functools
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import FileIO
from typing import Any, NoReturn

from draft import processes
from draft.errors import DraftError, StageError
from draft.isolation.describe import describe
from draft.isolation.failures import encode_error
from draft.isolation.frames import PROTOCOL, Broken, receive, send
from draft.requirements import DISTRIBUTION
from draft.rewards.calls import Called, where_raised
from draft.rewards.parts import called
from draft.rewards.reading import readings_of
from draft.rewards.reward import Score
from draft.rewards.terms import build_reward
from draft.types import Prompts


class Ended(BaseException):
    """Draft wants this process to end; no reward should mistake it for an error of its own."""


@dataclass
class Loaded:
    """What the process holds between requests.

    Args:
        score: The loaded reward; None before.
        device: Where it was loaded.
        called: Whose code it is; None before one has been asked for.
    """

    score: Score | None = None
    device: str = ""
    called: Called | None = None


def main() -> NoReturn:
    """Answer requests until Draft ends this process."""
    if sys.stdin is None or sys.stdin.isatty():
        sys.exit("this program is started by Draft, for a reward with `isolated` in a pipeline")
    requests, answers = _take_pipes()
    watched = processes.watch(requests.fileno(), answers.fileno())
    next_request = functools.partial(receive, requests) if watched else _read_ahead(requests)
    faulthandler.enable()
    processes.dump_stacks(faulthandler.register)
    signal.signal(signal.SIGTERM, _stop)
    loaded = Loaded()
    try:
        send(answers, {"protocol": PROTOCOL, "draft": _version(DISTRIBUTION)})
        while (request := next_request()) is not None:
            send(answers, *_answer(loaded, *request))
    except Ended:
        pass
    # What was registered to run at the end runs; taking PyTorch to pieces would take another second for nothing.
    atexit._run_exitfuncs()
    os._exit(0)


def _answer(loaded: Loaded, request: dict[str, Any], body: bytearray) -> tuple[dict[str, Any], bytes]:
    try:
        match request["ask"]:
            case "describe":
                wanted = {"where": request["where"], "card": request.get("card", False)}
                return describe(request["use"], request["options"], **wanted), b""
            case "load":
                return _load(loaded, request), b""
            case "lengths":
                return _lengths(loaded, request), b""
            case "score":
                return _score(loaded, request, body)
        raise StageError(f"the process of a reward was asked for something unknown (got {request['ask']!r})")
    except DraftError as error:
        return {"answer": "errors", "errors": encode_error(error)}, b""
    except (Ended, KeyboardInterrupt):
        raise
    except BaseException as error:
        # A stranger's code: whatever it raises is reported, and the next request answered.
        shown = "".join(traceback.format_exception(error)[1:])
        place = "" if loaded.called is None else where_raised(error, loaded.called)
        details = {"type": type(error).__name__, "message": str(error), "place": place, "traceback": shown}
        return {"answer": "raised", "device": loaded.device, **details}, b""


def _load(loaded: Loaded, request: Mapping[str, Any]) -> dict[str, Any]:
    reward = build_reward(request["use"], request["options"], where=request["where"])
    import torch

    # The same number of threads sums in the same order; and the other process waits while this one works.
    torch.set_num_threads(request["threads"])
    loaded.device, loaded.called = request["device"], called(reward.name, reward)
    loaded.score = reward.load(_device(request["device"]))
    return {"answer": "loaded", "reads": [reading.limit for reading in readings_of(loaded.score)]}


def _lengths(loaded: Loaded, request: Mapping[str, Any]) -> dict[str, Any]:
    reading = readings_of(loaded.score)[request["reading"]]
    return {"answer": "lengths", "lengths": list(reading.lengths(_prompts(request)))}


def _prompts(request: Mapping[str, Any]) -> Sequence[str]:
    columns, texts = request["columns"], request["prompts"]
    return texts if columns is None else Prompts(texts, columns)


def _score(loaded: Loaded, request: Mapping[str, Any], body: bytearray) -> tuple[dict[str, Any], bytes]:
    """Scores, and where they are wanted the gradient of their sum, or of their product with a cotangent."""
    import torch
    from torch import Tensor

    from draft.isolation.tensors import pack, unpack

    assert loaded.score is not None
    tensors = unpack(request["tensors"], body)
    device = torch.device(loaded.device)
    images = tensors["images"].to(device).requires_grad_(request["gradient"])
    prompts = _prompts(request)
    with torch.set_grad_enabled(request["gradient"]):
        scores = loaded.score(images, prompts)
    if not isinstance(scores, Tensor):
        kind = type(scores).__name__
        raise StageError(f"must return a tensor of shape ({len(prompts)},) (got {kind})")
    results = {"scores": scores}
    if scores.requires_grad:
        cotangent = tensors.get("cotangent", torch.ones(())).to(scores).expand(scores.shape)
        (gradient,) = torch.autograd.grad(scores, images, cotangent, allow_unused=True)
        results |= {} if gradient is None else {"gradient": gradient}
    described, payload = pack(results)
    return {"answer": "scores", "connected": scores.requires_grad, "tensors": described}, payload


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise StageError(
            f"device {name!r} is not available in the environment of this reward: {first}",
            hint="install a PyTorch for it there, or give the reward `device: cpu`",
        ) from error
    return device


def _take_pipes() -> tuple[FileIO, FileIO]:
    """Keep the two pipes to Draft for this module; the reward gets an empty input, and prints to standard error."""
    requests, answers = FileIO(os.dup(0), "rb"), FileIO(os.dup(1), "wb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    return requests, answers


def _read_ahead(requests: FileIO) -> Callable[[], tuple[dict[str, Any], bytearray] | None]:
    """Read in a thread, which notices that Draft is gone while a request is answered, where nothing else watches."""
    arrived: queue.SimpleQueue[tuple[dict[str, Any], bytearray] | None] = queue.SimpleQueue()

    def read() -> None:
        while True:
            try:
                request = receive(requests)
            except (OSError, Broken):
                request = None
            arrived.put(request)
            if request is None:
                processes.end_late()

    threading.Thread(target=read, daemon=True).start()
    return arrived.get


def _stop(number: int, frame: object) -> NoReturn:
    raise Ended


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    main()
