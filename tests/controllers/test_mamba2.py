"""Mamba-2: its mixer is mamba_ssm's, its start remembers for as long as the task asks, its sizes are checked."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mneme.controllers import ControllerSettings, build_controller
from mneme.controllers.mamba2 import Mamba2Controller
from tests.controllers.published import SSD, mamba_ssm, module

MODEL, LANES = 24, 3


class GatedNorm(nn.Module):
    """In the place of mamba_ssm's Triton kernel: root mean square of y silu(z)."""

    def __init__(self, size: int, eps: float, norm_before_gate: bool, group_size: int, **_: Any) -> None:
        super().__init__()
        assert group_size == size and not norm_before_gate
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        gated = y * F.silu(z)
        return gated / (gated.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight


def build(horizon: int = 10, **settings: Any) -> Mamba2Controller:
    chosen = ControllerSettings(kind="mamba2", hidden_size=MODEL, **settings)
    controller = build_controller(chosen, MODEL, horizon, Generator().manual_seed(0))
    assert isinstance(controller, Mamba2Controller)
    return controller


@pytest.fixture
def published() -> Iterator[Any]:
    """mamba_ssm's own module, of which one step runs without CUDA."""
    stubs = {
        "huggingface_hub": {"PyTorchModelHubMixin": type("PyTorchModelHubMixin", (), {})},
        "mamba_ssm.ops.triton.layernorm_gated": {"RMSNorm": GatedNorm},
        "mamba_ssm.ops.triton.selective_state_update": {},
        "mamba_ssm.distributed.tensor_parallel": {"ColumnParallelLinear": None, "RowParallelLinear": None},
    }
    with mamba_ssm(SSD | stubs):
        torch.manual_seed(0)
        yield module("modules.mamba2").Mamba2(MODEL, d_state=16, headdim=16)


def test_the_scan_is_mamba_ssms_step_with_its_weights(published: Any) -> None:
    controller = build()
    controller.mixer.load_state_dict(published.state_dict())
    x, carry = torch.randn(19, LANES, MODEL), controller.initial_carry(LANES)
    convolved, state = published.allocate_inference_cache(LANES, 1)
    with torch.no_grad():
        y, carry = controller.scan(x, torch.zeros(19, LANES, dtype=torch.bool), carry)
        for x_BD, y_BD in zip(x, y, strict=True):
            mixed, _, _ = published.step(F.layer_norm(x_BD, (MODEL,)).unsqueeze(1), convolved, state)
            # the gated norm is damped where the gate is all but shut, which moves these small numbers by 3e-5
            torch.testing.assert_close(y_BD, x_BD + mixed[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(carry["state"], state.flatten(1, 2).mT, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(carry["window"], convolved[..., 1:].transpose(1, 2), rtol=1e-5, atol=1e-5)


def constants(controller: Mamba2Controller) -> Tensor:
    """Time constants of the heads at the start, in steps, for inputs of zero."""
    return 1 / (F.softplus(controller.mixer.dt_bias) * controller.mixer.A_log.exp())


@pytest.mark.parametrize("horizon", [2, 10, 5000])
def test_chrono_spreads_the_time_constants_evenly_from_one_step_to_twice_the_horizon(horizon: int) -> None:
    spread = constants(build(horizon, headdim=4))
    torch.testing.assert_close(spread, torch.linspace(1, 2 * horizon, 12), rtol=1e-3, atol=0.0)


def test_a_single_head_gets_the_longest_time_constant() -> None:
    torch.testing.assert_close(constants(build(64, headdim=48)), torch.tensor([128.0]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_with_chrono_a_blank_step_writes_nothing_at_the_start(kind: str) -> None:
    settings = ControllerSettings(kind=kind, hidden_size=8)
    controller = build_controller(settings, 3, 10, Generator().manual_seed(0))
    no_reset = torch.zeros(5, LANES, dtype=torch.bool)
    _, carry = controller.scan(torch.zeros(5, LANES, 3), no_reset, controller.initial_carry(LANES))
    assert all(torch.count_nonzero(value) == 0 for value in carry.values())


@pytest.mark.parametrize(
    "kind,shows", [("mamba", False), ("mamba2", False), ("mamba_gru", True), ("pseudo_mamba", True)]
)
def test_what_is_remembered_shows_at_a_blank_step_only_above_a_bias(kind: str, shows: bool) -> None:
    """As docs/controllers.md says: else an encoder is wanted."""
    settings = ControllerSettings(kind=kind, hidden_size=MODEL)
    controller = build_controller(settings, MODEL, 10, Generator().manual_seed(0))
    x_TBD = torch.zeros(4, 2, MODEL)
    x_TBD[0] = torch.randn(2, MODEL, generator=Generator().manual_seed(1))
    y_TBH, _ = controller.scan(x_TBD, torch.zeros(4, 2, dtype=torch.bool), controller.initial_carry(2))
    assert (y_TBH[3, 0] != y_TBH[3, 1]).any() == shows
    assert shows or (y_TBH[1:] == 0).all()


def test_without_chrono_the_start_is_the_published_one() -> None:
    mixer = build(5000, chrono=False, headdim=1).mixer
    dt, rate = F.softplus(mixer.dt_bias), mixer.A_log.exp()
    assert 0.99e-3 <= dt.min() < 2e-3 and 0.05 < dt.max() <= 0.101
    assert 1 <= rate.min() < 2 and 15 < rate.max() <= 16


def test_head_sizes_divide_what_they_must() -> None:
    assert build().mixer.sizes[1:3] == (3, 16)
    with pytest.raises(ValueError, match=r"policy.controller.headdim is 32; it must divide expand \* hidden_size, 48"):
        build(headdim=32)


@pytest.mark.parametrize("kind", ["mamba2", "pseudo_mamba"])
@pytest.mark.parametrize(
    "name,value,least",
    [("d_state", 0, 1), ("headdim", 0, 1), ("expand", 0, 1), ("d_conv", 1, 2), ("chunk_size", 0, 1)],
)
def test_a_size_that_is_too_small_is_refused(kind: str, name: str, value: int, least: int) -> None:
    with pytest.raises(ValueError, match=rf"policy\.controller\.{name} is {value}; it must be at least {least}"):
        ControllerSettings(kind=kind, **{name: value})


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_the_chunk_changes_nothing_but_rounding(chunk: int) -> None:
    x, reset = torch.randn(23, LANES, MODEL), torch.rand(23, LANES) < 0.2
    expected, other = build(), build(chunk_size=chunk)
    y, last = other.scan(x, reset, other.initial_carry(LANES))
    torch.testing.assert_close((y, last), expected.scan(x, reset, expected.initial_carry(LANES)))
