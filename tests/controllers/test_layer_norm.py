"""The LayerNorm that leaves alone what is next to nothing."""

import math

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional

from mneme.controllers.layer_norm import LayerNorm, layer_norm
from mneme.controllers.scans.gated_norm.norm import gated_norm

H = 24
X = torch.randn(50, H, generator=Generator().manual_seed(0), dtype=torch.float64)
SIZES = [0.0, 1e-6, 1e-4, 1e-3, 3e-3, 1e-2, 0.1, 1.0, 100.0]


def gated(x: Tensor) -> Tensor:
    """As a function of what is gated: silu(z) is 1 at this z."""
    z = torch.full_like(x, 1.278464542761074)
    return gated_norm(x, z, torch.ones(H, dtype=x.dtype), 1e-5)


@pytest.mark.parametrize("scale", [0.1, 1.0, 1e4])
def test_it_is_layer_norm_for_what_has_any_size(scale: float) -> None:
    torch.testing.assert_close(layer_norm(scale * X), functional.layer_norm(scale * X, (H,)), rtol=1e-5, atol=0)


def test_it_takes_away_the_mean_alone_where_there_is_next_to_nothing() -> None:
    x = 1e-7 * X + 3
    torch.testing.assert_close(layer_norm(x), x - x.mean(-1, keepdim=True), rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", [layer_norm, gated])
@pytest.mark.parametrize("size", SIZES)
def test_it_magnifies_gradients_by_less_than_what_it_is_given_is_small(norm, size: float) -> None:  # type: ignore[no-untyped-def]
    """By 1 at nothing, and by 260 at most, between."""
    x = size * X[0]
    largest = float(torch.linalg.matrix_norm(torch.autograd.functional.jacobian(norm, x), 2))
    assert largest <= min(260, 2 / size if size else math.inf)
    assert size > 1e-6 or largest <= 1.1


@pytest.mark.parametrize("size", SIZES)
def test_its_gradients_are_finite_differences(size: float) -> None:
    x, gain, bias = (value.clone().requires_grad_() for value in (size * X[:3], X[3], X[4]))
    step = min(1e-6, size / 1000) or 1e-9
    assert torch.autograd.gradcheck(layer_norm, (x, gain, bias), eps=step, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(7, 5, H), (H,), (0, H)])
def test_it_is_the_damped_norm(shape: tuple[int, ...]) -> None:
    """Values and all gradients against the plain form, over rows of every size at once."""
    generator = Generator().manual_seed(1)
    sizes = torch.logspace(-7, 2, math.prod(shape[:-1]), dtype=torch.float64).reshape(*shape[:-1], 1)
    x = sizes * torch.randn(shape, generator=generator, dtype=torch.float64) + 1
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    found = []
    for norm in (layer_norm, plainly):
        arguments = [value.clone().requires_grad_() for value in (x, X[3], X[4])]
        y = norm(*arguments)
        found.append([y, *torch.autograd.grad((y * weights).sum(), arguments)])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def plainly(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    n = functional.layer_norm(x, x.shape[-1:])
    return n * (1 - (1 - 1e-5) * (1 - n.square().mean(-1, keepdim=True)).square()).sqrt() * gain + bias


def test_a_row_that_is_none_changes_no_other() -> None:
    x = 1e-4 * X[:2].float()
    whole = layer_norm(x)[1]
    x[0] = math.nan
    torch.testing.assert_close(layer_norm(x)[1], whole, rtol=0, atol=0)


@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [layer_norm, gated])
def test_halves_have_gradients_at_nothing(norm, dtype: torch.dtype, size: float) -> None:  # type: ignore[no-untyped-def]
    half = (size * X[:3]).to(dtype).requires_grad_()
    whole = half.detach().float().requires_grad_()
    gradients = [torch.autograd.grad((norm(x).float() * X[3:6].float()).sum(), x)[0] for x in (half, whole)]
    assert norm(half).dtype is dtype
    torch.testing.assert_close(gradients[0].float(), gradients[1], rtol=0.1, atol=0.1 * float(gradients[1].abs().max()))


def test_under_autocast_it_computes_in_single_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = layer_norm(X.to(torch.bfloat16), X[3].float(), X[4].float())
    assert y.dtype is torch.float32
    torch.testing.assert_close(y, layer_norm(X.to(torch.bfloat16).float(), X[3].float(), X[4].float()))


def test_the_module_has_torchs_parameters_and_starts_as_torchs() -> None:
    ours, torchs = LayerNorm(H).double(), torch.nn.LayerNorm(H).double()
    torchs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(X), torchs(X), rtol=1e-5, atol=1e-7)
    assert set(LayerNorm(H, bias=False).state_dict()) == {"weight"}
