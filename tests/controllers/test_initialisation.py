"""Chrono initialisation and orthogonality, as statistics of fresh controllers."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Generator, nn

from mneme.controllers import ControllerSettings, build_controller
from mneme.controllers.gru import GruController
from mneme.controllers.initialisation import chrono_bias, undrawn
from mneme.controllers.lstm import LstmController


def test_chrono_time_constants_are_uniform_over_the_horizon() -> None:
    spans = chrono_bias(20_000, 101, Generator().manual_seed(0)).exp()
    assert spans.min() >= 1 and spans.max() <= 100 * (1 + 1e-6)
    quantiles = spans.quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quantiles, torch.tensor([25.75, 50.5, 75.25]), rtol=0, atol=1.5)


@pytest.mark.parametrize("horizon", [1, 2])
def test_chrono_accepts_the_shortest_horizons(horizon: int) -> None:
    assert torch.equal(chrono_bias(8, horizon, Generator().manual_seed(0)), torch.zeros(8))


def gru(horizon: int, **settings: object) -> GruController:
    choice = ControllerSettings(kind="gru", hidden_size=64, **settings)  # type: ignore[arg-type]
    built = build_controller(choice, 3, horizon, Generator().manual_seed(0))
    assert isinstance(built, GruController)
    return built


def test_a_chrono_gru_keeps_its_state_for_about_the_horizon() -> None:
    z = (gru(100).bias_ih + gru(100).bias_hh)[64:128].sigmoid()
    assert z.min() >= 0.5 and z.max() < 1 - 1 / 101
    assert z.median() > 0.95


def test_the_setting_overrides_the_task_and_chrono_can_be_switched_off() -> None:
    assert gru(100, expected_horizon=1000).bias_ih.max() > math.log(100)
    assert torch.count_nonzero(gru(100, chrono=False).bias_ih) == 0


def test_a_chrono_lstm_opens_its_input_gate_as_little_as_it_forgets() -> None:
    built = build_controller(ControllerSettings(kind="lstm", hidden_size=64), 3, 100, Generator().manual_seed(0))
    assert isinstance(built, LstmController)
    i, f, g, o = (built.bias_ih + built.bias_hh).chunk(4)
    torch.testing.assert_close(i, -f)
    assert f.min() >= 0 and f.max() > math.log(50)
    assert torch.count_nonzero(g) == torch.count_nonzero(o) == 0


def test_recurrent_weights_are_orthogonal_gate_by_gate() -> None:
    for w in gru(10).weight_hh.chunk(3):
        torch.testing.assert_close(w @ w.t(), torch.eye(64), rtol=0, atol=1e-5)


def test_an_undrawn_layer_is_one_on_the_cpu_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    layer, plain = undrawn(nn.Conv1d, 6, 4, 3, groups=2), nn.utils.skip_init(nn.Conv1d, 6, 4, 3, groups=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert str(layer) == str(plain)
    for name, parameter in plain.named_parameters():
        own = layer.get_parameter(name)
        assert (own.shape, own.dtype, own.device, own.requires_grad) == (
            parameter.shape, parameter.dtype, parameter.device, True,
        )  # fmt: skip
    assert [*layer.state_dict()] == [*plain.state_dict()]


def test_a_policy_is_built_without_sympy() -> None:
    code = (
        "import sys;"
        "from mneme.controllers import Categorical, PolicySettings, PolicySpec, Vector, build_policy;"
        "build_policy(PolicySpec({'x': Vector(7)}, Categorical(4)), PolicySettings(encoder=(4,)), 9, 0);"
        "assert 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
