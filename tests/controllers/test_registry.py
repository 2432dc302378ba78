"""Kinds by name, kinds of one's own, what only a kind has to choose, and layers."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers import CONTROLLERS, KINDS, Carry, Controller, ControllerSettings, build_controller
from mneme.controllers.gru import GruController


@dataclass(frozen=True, kw_only=True)
class AverageSettings(ControllerSettings):
    """What it has to choose."""

    keep: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "keep")


class Average(Controller):
    """Somebody's own: a moving average."""

    settings_class = AverageSettings

    def __init__(self, input_size: int, settings: AverageSettings, horizon: int, generator: Generator) -> None:
        super().__init__(input_size, input_size, {"mean": (input_size,)}, settings.initial_carry == "learned")
        self.keep = settings.keep

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        mean = self.keep * carry["mean"] + (1 - self.keep) * x_BD
        return mean, {"mean": mean}


class Derived(GruController):
    """Somebody's own, with the settings of the kind that it derives from."""


class Plain(Controller):
    """Somebody's own, with nothing to choose."""

    def __init__(self, input_size: int, settings: ControllerSettings, horizon: int, generator: Generator) -> None:
        super().__init__(input_size, input_size, {}, learn_initial=False)

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return x_BD, {}


NOT_A_CONTROLLER = 3


def build(**settings: Any) -> Controller:
    return build_controller(ControllerSettings(**settings), 5, 10, Generator().manual_seed(0))


def test_a_controller_of_ones_own_is_built_with_its_settings() -> None:
    own = build(kind=f"{__name__}:Average", kwargs={"keep": 0.0}, num_layers=2)
    x = torch.randn(3, 2, 5)
    y, carry = own.scan(x, torch.zeros(3, 2, dtype=torch.bool), own.initial_carry(2))
    torch.testing.assert_close(y, x)
    assert carry.keys() == {"mean_0", "mean_1"}


def test_a_controller_of_ones_own_has_the_settings_of_what_it_derives_from() -> None:
    assert build(kind=f"{__name__}:Derived").gate_gains is None
    assert build(kind=f"{__name__}:Derived", kwargs={"layer_norm": True}).gate_gains is not None
    assert build(kind=f"{__name__}:Plain").output_size == 5


def test_every_kind_has_its_settings() -> None:
    assert CONTROLLERS.keys() == KINDS.keys()
    for kind, settings in KINDS.items():
        assert CONTROLLERS[kind].settings_class is settings
        assert settings().kind == kind
        assert type(ControllerSettings(kind=kind)) is settings


def test_one_without_parameters_has_the_type_of_its_carry() -> None:
    own = build(kind=f"{__name__}:Average").double()
    x, reset = torch.randn(3, 2, 5, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.bool)
    y, _ = own.scan(x, reset, own.initial_carry(2))
    assert y.dtype == own.dtype == torch.float64
    with pytest.raises(ValueError, match=r"the input is torch.float32.*must be torch.float64"):
        own.scan(x.float(), reset, own.initial_carry(2))


def test_layers_are_built_from_one_stream_of_numbers_and_differ() -> None:
    stack = build(kind="gru", hidden_size=5, num_layers=3)
    state = stack.state_dict()
    weights = [state[f"layers.{i}.weight_hh"] for i in range(3)]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], build(kind="gru", hidden_size=5).state_dict()["weight_hh"])


def test_two_layers_are_one_scan_after_the_other() -> None:
    stack = build(kind="gru", hidden_size=5, num_layers=2)
    x, reset = torch.randn(7, 2, 5), torch.rand(7, 2) < 0.3
    lower, upper = stack.layers  # type: ignore[misc]
    middle, _ = lower.scan(x, reset, lower.initial_carry(2))
    expected, last = upper.scan(middle, reset, upper.initial_carry(2))
    y, carry = stack.scan(x, reset, stack.initial_carry(2))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(carry["h_1"], last["h"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "grue"}, r"policy.controller.kind is 'grue'; choose one of .*nearest: 'gru'"),
        ({"kind": "no_such_module:X"}, "cannot be imported: No module named 'no_such_module'"),
        ({"kind": f"{__name__}:Missing"}, "cannot be imported: .*Missing"),
        ({"kind": f"{__name__}:NOT_A_CONTROLLER"}, "not a subclass of controllers.Controller"),
        ({"kind": f"{__name__}:Average", "kwargs": {"kep": 0.1}}, r"kwargs.kep is 0.1, but .* it accepts keep"),
        ({"kind": f"{__name__}:Average", "kwargs": {"keep": "x"}}, "kwargs.keep is 'x'; it must be a number"),
        ({"kind": f"{__name__}:Average", "kwargs": {"keep": -1}}, "keep is -1.0; it must be at least 0"),
        ({"kind": f"{__name__}:Plain", "kwargs": {"keep": 1}}, "it accepts none"),
        ({"layer_norm": "false"}, "policy.controller.layer_norm is 'false'; it must be true or false"),
        ({"kind": "pseudo_mamba", "decay": "abc"}, "policy.controller.decay is 'abc'; it must be a number"),
        ({"kind": "pseudo_mamba", "decay": True}, "policy.controller.decay is True; it must be a number"),
        ({"kind": "pseudo_mamba", "gate_coef": float("nan")}, "policy.controller.gate_coef is nan; it must be finite"),
        ({"num_layers": 0}, "policy.controller.num_layers is 0; it must be at least 1"),
        ({"num_layers": 1.5}, "policy.controller.num_layers is 1.5; it must be a whole number"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(**settings)


def test_a_negative_number_of_lanes_is_refused() -> None:
    with pytest.raises(ValueError, match="batch is -1; it must be at least 0"):
        build(kind="gru").initial_carry(-1)
