"""What a method's value is, and what it may read of the settings of its training. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Protocol

from draft.diffusion.settings import SamplerSettings
from draft.errors import Problem
from draft.methods.values.traits import Traits
from draft.scoring.objective import Loss, PenaltySettings, RobustSettings


class MethodValue(Protocol):
    """A method: a frozen dataclass of its options.

    Args:
        traits: What holds whatever the options are.
        module: Dotted path of the module with its mathematics, imported when it trains: see `draft.methods.modules`.
        kind: Its name in a pipeline file, a field `kind: Literal["name"] = "name"`.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    traits: ClassVar[Traits]
    module: ClassVar[str]

    @property
    def kind(self) -> str: ...

    def problems(self, settings: TrainingSettings) -> Iterator[Problem]:
        """What of its options, or of the settings because of them, cannot be; its traits are checked anyway.

        Args:
            settings: The training's.

        Returns:
            The problems; keys and texts begin at the training's settings: `method.k`, `batch_size`.
        """
        ...


class TrainingSettings(Protocol):
    """The settings of a training that methods depend on; `draft.training.settings` explains them."""

    @property
    def method(self) -> MethodValue: ...
    @property
    def sampler(self) -> SamplerSettings: ...
    @property
    def cfg_gradient(self) -> Literal["both", "detached", "off"]: ...
    @property
    def loss(self) -> Loss: ...
    @property
    def penalty(self) -> PenaltySettings: ...
    @property
    def robust(self) -> RobustSettings: ...
    @property
    def saturation(self) -> Literal["clip", "straight_through"]: ...
    @property
    def rollout_reuse(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def gradient_accumulation_steps(self) -> int: ...
    @property
    def gradient_checkpointing(self) -> bool | Literal["auto"]: ...
    @property
    def max_grad_norm(self) -> float: ...
