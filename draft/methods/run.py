"""What a method may ask of the training it is part of, and what it is asked for: a rule that makes updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.families import TextToImage
from draft.diffusion.guidance import GuidanceGradient
from draft.diffusion.prompt_store import PromptStore
from draft.diffusion.sampling import Output
from draft.diffusion.schedule import Grid
from draft.methods.values.protocol import TrainingSettings
from draft.scoring.backward import Scorer
from draft.scoring.figures import Figures
from draft.scoring.rewards import LoadedReward
from draft.types import Prompts, Size


@dataclass(frozen=True)
class Batch:
    """What one rollout works on.

    Args:
        prompts: B prompts.
        indices: Their numbers in the training's prompts.
        conditioning: Theirs, of length B.
        noise: Standard normal noise to start from, (B, C, ...).
        fresh: Standard normal noise of each of the T steps; None where the sampler is deterministic.
    """

    prompts: Prompts
    indices: list[int]
    conditioning: Conditioning
    noise: Tensor
    fresh: list[Tensor] | None


class Draws(Protocol):
    """The randomness of a training."""

    @property
    def method(self) -> torch.Generator:
        """The generator of whatever a method draws, on the CPU."""
        ...

    def state(self) -> dict[str, Any]:
        """Where all generators are, the prompts' order and the noise among them."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put them back there."""
        ...


class TrainingRun(Protocol):
    """A training in progress, as its method sees it; `draft.training.run.Run` is one."""

    @property
    def settings(self) -> TrainingSettings: ...
    @property
    def model(self) -> TextToImage:
        """The model with the adapter that learns."""
        ...

    @property
    def prompts(self) -> Prompts:
        """All training prompts."""
        ...

    @property
    def conditioning(self) -> PromptStore | Conditioning:
        """That of the prompts, by their numbers, on the CPU."""
        ...

    @property
    def unconditional(self) -> Conditioning:
        """The negative prompt's, of length 1."""
        ...

    @property
    def scorer(self) -> Scorer:
        """Decoder and rewards."""
        ...

    @property
    def rewards(self) -> Sequence[LoadedReward]:
        """The loaded rewards."""
        ...

    @property
    def grid(self) -> Grid:
        """The sampling grid of T steps."""
        ...

    @property
    def size(self) -> Size:
        """The size of the images."""
        ...

    @property
    def has_two_branches(self) -> bool:
        """Whether guidance also calls the network with the negative prompt."""
        ...

    @property
    def recomputes_blocks(self) -> bool:
        """Whether the network recomputes its blocks in backward, so that a call by itself keeps little."""
        ...

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of what learns."""
        ...

    @property
    def random(self) -> Draws:
        """All randomness."""
        ...

    def next_batch(self) -> Batch:
        """Draw the next prompts and their noise."""
        ...

    def output(
        self,
        batch: Batch,
        *,
        adapted: bool = True,
        guided: bool = True,
        gradient: GuidanceGradient = "both",
        recorded: bool = False,
        grid: Grid | None = None,
    ) -> Output:
        """The network's output as a function of (latents, step).

        Args:
            batch: Whose prompts it follows.
            adapted: Whether the adapter that learns is on; off is the base model, with its base adapters.
            guided: Whether with guidance.
            gradient: What guidance does in calls that carry gradient.
            recorded: Whether calls may carry gradient; others may be compiled.
            grid: Whose steps they are; None: the sampling grid's.

        Returns:
            The output.
        """
        ...

    def draw_noise(self, like: Tensor, copies: int = 1) -> Tensor:
        """Standard normal noise from the method's generator, (copies * B, C, ...) for latents (B, C, ...)."""
        ...

    def for_reward_alone(self) -> TrainingRun:
        """The training as if it maximised the mean reward of its images as they are."""
        ...


@dataclass(frozen=True)
class Update:
    """What an update did.

    Args:
        figures: Of every batch of images it scored.
        grad_norm: The gradient's norm before clipping, of the last step where there were several.
        optimizer_steps: Steps of the optimiser.
        extra: A method's own figures, for the log.
    """

    figures: Sequence[Figures]
    grad_norm: float
    optimizer_steps: int = 1
    extra: Mapping[str, float] = field(default_factory=dict)


class Rule(Protocol):
    """Makes a method's updates; what it keeps between them goes into checkpoints."""

    def update(self, run: TrainingRun, step: int) -> Update:
        """Make one update: rollouts, rewards, gradients, one or more steps of the optimiser.

        Args:
            run: The training.
            step: Updates made so far.

        Returns:
            What was done.
        """
        ...

    def state(self) -> Mapping[str, Any]:
        """Everything it remembers: tensors, numbers, strings, and lists and mappings of them."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        ...


class Stateless:
    """The state of a rule that remembers nothing between updates."""

    def state(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to do."""
