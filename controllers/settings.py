"""What a user may choose about the agent's network; every range is checked on construction."""

from dataclasses import dataclass, field
from typing import Any, Literal

from mneme.controllers.typed import Settings, typed


def at_least(name: str, value: Any, least: int) -> int:
    """`value` as an int.

    Raises:
        ValueError: it is not a whole number of at least `least`.
    """
    number: int = typed(name, value, int)
    if number < least:
        raise ValueError(f"{name} is {number}; it must be at least {least}")
    return number


@dataclass(frozen=True, kw_only=True)
class ControllerSettings(Settings, section="policy.controller"):
    """The sequence model between the encoder and the heads."""

    kind: str = "gru"
    """Which sequence model: mlp (no memory, the control), gru, lstm, lru (linear, complex), mingru (linear, gated),
    mamba (selective state space), mamba2 (its successor), mamba_gru (a GRU above it), pseudo_mamba (mamba2 and a memory
    of slots) or transformer; or one of your own, as module:Class."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """What only this kind of sequence model has to choose."""

    num_layers: int = 1
    """How many of them, each reading the one below."""

    hidden_size: int = 128
    """Width of the recurrent state and of the output."""

    initial_carry: Literal["zero", "learned"] = "zero"
    """The state an episode starts from: zeros, or parameters trained with the rest."""

    chrono: bool = True
    """Start with time constants spread over the whole expected horizon (for gates: chrono initialisation)."""

    expected_horizon: int | None = None
    """How many steps something may have to be remembered for, used by chrono; none takes it from the task."""

    backend: str = "auto"
    """Which implementation of the scan runs: auto, torch, numba, triton, mamba_ssm, as far as the kind has them, or
    reference, the slow loop that all others are held against."""

    output_norm: bool = True
    """Put a LayerNorm between the sequence model and the heads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("policy.controller.hidden_size", self.hidden_size, 2)  # a LayerNorm makes nothing of one number
        at_least("policy.controller.num_layers", self.num_layers, 1)
        if self.expected_horizon is not None:
            at_least("policy.controller.expected_horizon", self.expected_horizon, 1)


@dataclass(frozen=True, kw_only=True)
class PolicySettings(Settings, section="policy"):
    """The whole network: encoder, controller and heads."""

    encoder: tuple[int, ...] = ()
    """Widths of the layers between observation and controller; () feeds observations straight in."""

    image_features: int = 128
    """How many numbers the convolutions make of each image observed."""

    normalize_observations: bool = False
    """Shift and scale real-valued observations by their running mean and variance, learned during training."""

    controller: ControllerSettings = field(default_factory=ControllerSettings)
    """The sequence model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for position, width in enumerate(self.encoder):
            at_least(f"policy.encoder[{position}]", width, 1)
        at_least("policy.image_features", self.image_features, 1)
