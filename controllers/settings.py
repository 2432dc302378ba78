"""What a user may choose about the agent's network; every range is checked on construction."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class ControllerSettings:
    """The sequence model between the encoder and the heads."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    kind: str = "gru"
    """Which sequence model: mlp (no memory, the control), gru or lstm."""

    hidden_size: int = 128
    """Width of the recurrent state and of the output."""

    initial_carry: Literal["zero", "learned"] = "zero"
    """The state an episode starts from: zeros, or parameters trained with the rest."""

    chrono: bool = True
    """Start the gates remembering over the whole expected horizon (chrono initialisation)."""

    expected_horizon: int | None = None
    """How many steps something may have to be remembered for, used by chrono; none takes it from the task."""

    output_norm: bool = True
    """Put a LayerNorm between the sequence model and the heads."""

    def __post_init__(self) -> None:
        _at_least("policy.controller.hidden_size", self.hidden_size, 1)
        if self.initial_carry not in ("zero", "learned"):
            raise ValueError(
                f"policy.controller.initial_carry is {self.initial_carry!r}; it must be 'zero' or 'learned'"
            )
        if self.expected_horizon is not None:
            _at_least("policy.controller.expected_horizon", self.expected_horizon, 1)


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """The whole network: encoder, controller and heads."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    encoder: tuple[int, ...] = ()
    """Widths of the layers between observation and controller; () feeds observations straight in."""

    image_features: int = 128
    """How many numbers the convolutions make of each image observed."""

    normalize_observations: bool = False
    """Shift and scale real-valued observations by their running mean and variance, learned during training."""

    controller: ControllerSettings = field(default_factory=ControllerSettings)
    """The sequence model."""

    def __post_init__(self) -> None:
        for position, width in enumerate(self.encoder):
            _at_least(f"policy.encoder[{position}]", width, 1)
        _at_least("policy.image_features", self.image_features, 1)
