"""Settings of the agent's network; every range is checked on construction."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal, Self, TypeVar

from mneme.controllers.typed import Settings, hints_of, typed

_Kind = TypeVar("_Kind", bound="ControllerSettings")

VALUE_BINS = 255
"""Bins of a value as a distribution over bins (`controllers/two_hot.py`), as many as were published."""


@dataclass(frozen=True, kw_only=True)
class ControllerSettings(Settings, section="policy.controller"):
    """The sequence model between the encoder and the heads: the settings that every kind has.

    Each kind adds its own in a subclass. `ControllerSettings(kind="lstm", layer_norm=True)` is an `LstmSettings`.
    """

    kind: str = "gru"
    """Which sequence model: mlp (no memory, the control), gru, lstm, nbrc (bistable units), lru (linear, complex),
    mingru (linear, gated), mamba (selective state space), mamba2 (its successor), mamba_gru (a GRU above it),
    pseudo_mamba (mamba2 and a memory of slots) or transformer; or one of your own, as module:Class."""

    num_layers: int = 1
    """Layers of the sequence model, each reading the one below."""

    hidden_size: int = 128
    """Width of the recurrent state and of the output."""

    initial_carry: Literal["zero", "learned"] = "zero"
    """The state an episode starts from: zeros, or parameters trained with the rest."""

    chrono: bool = True
    """Start with time constants spread over the whole expected horizon (for gates: chrono initialisation)."""

    expected_horizon: int | None = None
    """Steps over which something may have to be remembered, used by chrono; none takes it from the task."""

    backend: str = "auto"
    """Which implementation of the scan runs: auto, torch, numba, triton, mamba_ssm, as far as the kind has them, or
    reference, the slow loop that all others are held against."""

    output_norm: bool = True
    """Put a LayerNorm between the sequence model and the heads."""

    def __new__(cls, **values: Any) -> Self:
        chosen = settings_class(values.get("kind", cls.kind)) if cls is ControllerSettings else cls
        return object.__new__(chosen)  # type: ignore[return-value]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "hidden_size")  # a LayerNorm makes nothing of one number
        self.at_least(1, "num_layers", "expected_horizon")

    def of_kind(self, kind: type[_Kind], **own: Any) -> _Kind:
        """The settings of another kind: those that every kind has, as they are here, and `own` for the rest."""
        common = {field.name: getattr(self, field.name) for field in fields(ControllerSettings)}
        if hints_of(kind)["kind"] is not str:  # one of ours, which has its name already
            del common["kind"]
        return kind(**common, **own)


@dataclass(frozen=True, kw_only=True)
class MlpSettings(ControllerSettings):
    """A layer without memory."""

    kind: Literal["mlp"] = "mlp"


@dataclass(frozen=True, kw_only=True)
class GruSettings(ControllerSettings):
    """A gated recurrent unit."""

    kind: Literal["gru"] = "gru"

    layer_norm: bool = False
    """Put a LayerNorm before the gates; the scan then takes two to three times as long."""


@dataclass(frozen=True, kw_only=True)
class LstmSettings(ControllerSettings):
    """Long short-term memory."""

    kind: Literal["lstm"] = "lstm"

    layer_norm: bool = False
    """Put a LayerNorm before the gates and on the memory; the scan then takes two to three times as long."""


@dataclass(frozen=True, kw_only=True)
class NbrcSettings(ControllerSettings):
    """A bistable recurrent cell."""

    kind: Literal["nbrc"] = "nbrc"

    cellular: bool = False
    """Let a unit's gates read its own state alone (BRC), not those of all units (nBRC)."""


@dataclass(frozen=True, kw_only=True)
class LruSettings(ControllerSettings):
    """A linear recurrent unit."""

    kind: Literal["lru"] = "lru"

    d_state: int | None = None
    """Complex states. Unset: as many as hidden_size."""

    max_phase: float = math.pi / 10
    """The fastest rotation at the start, in radians a step; small for what lasts long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "d_state")
        if not 0 < self.max_phase <= 2 * math.pi:
            raise self.fault("max_phase", "it must be in (0, 2 pi]")


@dataclass(frozen=True, kw_only=True)
class MinGruSettings(ControllerSettings):
    """A GRU whose gates read the input alone."""

    kind: Literal["mingru"] = "mingru"


@dataclass(frozen=True, kw_only=True)
class MambaFamily(ControllerSettings):
    """The sizes of a selective state space behind a short convolution."""

    d_state: int = 16
    """States of each channel. Mamba-2 was published with 64 and more, which cost as much again in acting and in every
    carry that is stored."""

    d_conv: int = 4
    """Steps that the convolution sees."""

    expand: int = 2
    """The inner width, in multiples of hidden_size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "d_state", "expand")
        self.at_least(2, "d_conv")


@dataclass(frozen=True, kw_only=True)
class MambaSettings(MambaFamily):
    """Mamba."""

    kind: Literal["mamba"] = "mamba"


@dataclass(frozen=True, kw_only=True)
class MambaGruSettings(MambaFamily):
    """Mamba, then a GRU; the sizes are Mamba's."""

    kind: Literal["mamba_gru"] = "mamba_gru"


@dataclass(frozen=True, kw_only=True)
class Mamba2Family(MambaFamily):
    """The sizes of Mamba-2, whose states have heads."""

    headdim: int | None = None
    """Width of a head, a divisor of expand times hidden_size. Unset: 32, or as much of it as divides."""

    chunk_size: int = 16
    """Steps computed at once; it changes speed and memory alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "headdim", "chunk_size")
        inner = self.expand * self.hidden_size
        if self.headdim is not None and inner % self.headdim:
            raise self.fault("headdim", f"it must divide expand * hidden_size, {inner}")
        if self.backend == "mamba_ssm" and self.initial_carry == "learned":
            raise self.fault("backend", "it cannot start from a learned carry; choose auto, or initial_carry=zero")


@dataclass(frozen=True, kw_only=True)
class Mamba2Settings(Mamba2Family):
    """Mamba-2."""

    kind: Literal["mamba2"] = "mamba2"


@dataclass(frozen=True, kw_only=True)
class PseudoMambaSettings(Mamba2Family):
    """Mamba-2 with an external memory of slots."""

    kind: Literal["pseudo_mamba"] = "pseudo_mamba"

    num_slots: int = 16
    """Slots of the memory."""

    slot_size: int = 64
    """Numbers in a slot."""

    rule: Literal["recent", "classic"] = "recent"
    """Rule for writing slots; classic is the published one, by which a half-open gate overwrites everything within
    num_slots steps."""

    query: Literal["input", "state"] = "input"
    """Source of the memory's queries: the input, so that all steps are computed at once; or, as published, the state
    one step before, so that steps follow one another."""

    decay: float = 0.0
    """Share of a slot that is lost at a write, besides what is replaced."""

    gate_coef: float = 0.1
    """Weight of the auxiliary loss (mean gate - 1 / horizon)^2, the mean taken over each sequence's steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "num_slots", "slot_size")
        self.at_least(0, "gate_coef")
        if not 0 <= self.decay < 1:
            raise self.fault("decay", "it must be in [0, 1)")
        if self.query == "state" and self.backend not in ("auto", "torch", "reference"):
            raise self.fault("backend", "query=state goes step by step, so choose auto, or query=input")


@dataclass(frozen=True, kw_only=True)
class TransformerSettings(ControllerSettings):
    """Attention over a sliding window."""

    kind: Literal["transformer"] = "transformer"

    window_size: int | None = None
    """Steps that a step sees, itself included: nothing is remembered for longer. Unset: one more than the horizon, and
    512 at most."""

    num_heads: int | None = None
    """Heads, which share keys and values; a divisor of hidden_size. Unset: 4, or 2, or 1."""

    mlp_ratio: int = 2
    """Inner width of the MLP, in multiples of hidden_size."""

    gate: Literal["none", "gru"] = "none"
    """Gate through which a branch joins the stream: none adds the branch, gru gates it (GTrXL)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(2, "window_size")
        self.at_least(1, "num_heads", "mlp_ratio")
        if self.num_heads is not None and self.hidden_size % self.num_heads:
            raise self.fault("num_heads", f"it must divide hidden_size, {self.hidden_size}")


@dataclass(frozen=True, kw_only=True)
class OwnSettings(ControllerSettings):
    """A controller of the user's own, as module:Class."""

    kind: str = "module:Class"

    kwargs: dict[str, Any] = field(default_factory=dict)
    """Settings of your own controller."""


KINDS: Mapping[str, type[ControllerSettings]] = {
    "mlp": MlpSettings,
    "gru": GruSettings,
    "lstm": LstmSettings,
    "nbrc": NbrcSettings,
    "mamba": MambaSettings,
    "mamba_gru": MambaGruSettings,
    "mamba2": Mamba2Settings,
    "pseudo_mamba": PseudoMambaSettings,
    "lru": LruSettings,
    "mingru": MinGruSettings,
    "transformer": TransformerSettings,
}
"""The settings of every kind by its name."""


def settings_class(kind: Any) -> type[ControllerSettings]:
    """The settings of a kind.

    Raises:
        ValueError: there is no such kind.
    """
    key = ControllerSettings.key("kind")
    if ":" in typed(key, kind, str):
        return OwnSettings
    if kind in KINDS:
        return KINDS[kind]
    plain = {name.replace("_", ""): name for name in KINDS}
    letters = "".join(letter for letter in kind.lower() if letter.isalnum())
    near = get_close_matches(letters, plain, n=1)  # capitals and punctuation aside
    nearest = f" (nearest: {plain[near[0]]!r})" if near else ""
    raise ValueError(f"{key} is {kind!r}; choose one of {', '.join(KINDS)}{nearest}, or your own as module:Class")


@dataclass(frozen=True, kw_only=True)
class PolicySettings(Settings, section="policy"):
    """The whole network: encoder, controller and heads."""

    encoder: tuple[int, ...] = ()
    """Widths of the layers between observation and controller; () feeds observations straight in."""

    image_features: int = 128
    """Features that the convolutions make of each image observed."""

    normalize_observations: bool = False
    """Shift and scale real-valued observations by their running mean and variance, learned during training."""

    controller: ControllerSettings = field(default_factory=ControllerSettings)
    """The sequence model."""

    heads: tuple[int, ...] = ()
    """Widths of the layers between sequence model and action, and as many between it and value; () has neither."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("encoder", "heads"):
            for position, width in enumerate(getattr(self, name)):
                if width < 1:
                    raise ValueError(f"{self.key(name)}[{position}] is {width}; it must be at least 1")
        self.at_least(1, "image_features")
