"""Mamba: its mixer is mamba_ssm's, its start remembers for as long as the task asks, its sizes are checked."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, nn

from mneme.controllers import ControllerSettings, build_controller
from mneme.controllers.mamba import MambaController
from tests.controllers.published import SELECTIVE_SCAN, mamba_ssm, module

MODEL, LANES = 24, 3


def build(horizon: int = 10, input_size: int = MODEL, **settings: Any) -> MambaController:
    chosen = ControllerSettings(kind="mamba", hidden_size=MODEL, **settings)
    controller = build_controller(chosen, input_size, horizon, Generator().manual_seed(0))
    assert isinstance(controller, MambaController)
    return controller


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """mamba_ssm's own module, with its own reference for the scan in the place of the CUDA kernel."""
    with mamba_ssm(SELECTIVE_SCAN):
        mamba = module("modules.mamba_simple")
        monkeypatch.setattr(mamba, "selective_scan_fn", module("ops.selective_scan_interface").selective_scan_ref)
        torch.manual_seed(0)
        yield mamba.Mamba(MODEL)


def test_the_mixer_is_mamba_ssm_with_its_weights(published: nn.Module) -> None:
    controller = build()
    controller.mixer.load_state_dict(published.state_dict())
    x = torch.randn(13, LANES, MODEL, requires_grad=True)
    y, _ = controller.scan(x, torch.zeros(13, LANES, dtype=torch.bool), controller.initial_carry(LANES))
    expected = x + published(F.layer_norm(x, (MODEL,)).transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(y)
    ours, theirs = dict(controller.mixer.named_parameters()), dict(published.named_parameters())
    actual = torch.autograd.grad((y * weight).sum(), [x, *ours.values()])
    wanted = torch.autograd.grad((expected * weight).sum(), [x, *(theirs[name] for name in ours)])
    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


def test_a_step_is_mamba_ssms_step(published: Any) -> None:
    controller = build()
    controller.mixer.load_state_dict(published.state_dict())
    convolved, state = published.allocate_inference_cache(LANES, 1)
    carry = controller.initial_carry(LANES)
    for x in torch.randn(6, LANES, MODEL):
        with torch.no_grad():
            y, carry = controller.step(x, torch.zeros(LANES, dtype=torch.bool), carry)
            expected, _, _ = published.step(F.layer_norm(x, (MODEL,)).unsqueeze(1), convolved, state)
        torch.testing.assert_close(y, x + expected[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(carry["state"], state.transpose(1, 2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(carry["window"], convolved[..., 1:].transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("horizon", [1, 10, 5000])
def test_chrono_spreads_every_channels_time_constants_up_to_twice_the_horizon(horizon: int) -> None:
    mixer = build(horizon).mixer
    dt = F.softplus(mixer.dt_proj.bias)
    assert 0.0999 <= dt.min() < 0.2 and 0.5 < dt.max() <= 1.001
    constants = 1 / (dt.unsqueeze(1) * mixer.A_log.exp())
    expected = torch.logspace(0, math.log10(2 * horizon), 16).expand_as(constants)
    torch.testing.assert_close(constants, expected, rtol=1e-4, atol=0)


def test_without_chrono_the_start_is_the_published_one() -> None:
    mixer = build(5000, chrono=False).mixer
    dt = F.softplus(mixer.dt_proj.bias)
    assert 0.999e-3 <= dt.min() < 2e-3 and 0.05 < dt.max() <= 0.1001
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17).expand(2 * MODEL, -1))


@pytest.mark.parametrize("kind", ["mamba", "mamba_gru"])
@pytest.mark.parametrize("name,value,least", [("d_state", 0, 1), ("expand", 0, 1), ("d_conv", 1, 2)])
def test_a_size_that_is_too_small_is_refused(kind: str, name: str, value: int, least: int) -> None:
    with pytest.raises(ValueError, match=rf"policy\.controller\.{name} is {value}; it must be at least {least}"):
        ControllerSettings(kind=kind, **{name: value})


def test_the_carry_has_the_sizes_that_were_chosen() -> None:
    kwargs = {"d_state": 5, "expand": 3, "d_conv": 2}
    assert {k: v.shape for k, v in build(**kwargs).initial().items()} == {
        "state": (5, 3 * MODEL),
        "window": (1, 3 * MODEL),
    }
    settings = ControllerSettings(kind="mamba_gru", hidden_size=MODEL, **kwargs)
    both = build_controller(settings, 3, 10, Generator().manual_seed(0))
    assert {k: v.shape for k, v in both.initial().items()} == {
        "state_0": (5, 3 * MODEL),
        "window_0": (1, 3 * MODEL),
        "h_1": (MODEL,),
    }
