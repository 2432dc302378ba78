"""What numba compiles of Mamba and Mamba-2, against a loop over steps that autograd differentiates."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mneme.controllers.scans.compiled_mamba import MambaParameters, compiled_mamba
from mneme.controllers.scans.compiled_mamba2 import Mamba2Parameters, compiled_mamba2
from mneme.controllers.scans.convolution import silu_convolution_step
from mneme.controllers.scans.gated_norm import gated_norm
from mneme.controllers.scans.selective import SelectiveInputs, SelectiveParameters, selective_cell
from mneme.controllers.scans.ssd import ssd_cell
from tests.controllers.scans.weighed import with_gradients

STATES, RANK, HEADS, EPS = 8, 2, 2, 1e-5
TIGHT = {"rtol": 1e-10, "atol": 1e-10}

Scan = Callable[..., tuple[Tensor, Tensor, Tensor]]


def drawn(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    """Small enough for torch's softplus, which is the identity above 20."""
    generator = Generator().manual_seed(0)
    return [(torch.randn(shape, generator=generator, dtype=dtype) / 2).requires_grad_() for shape in shapes]


def mamba_inputs(T: int, B: int, I: int, K: int, dtype: torch.dtype, N: int = STATES) -> list[Tensor]:
    """x and z, the state and the window; then the parameters."""
    W, carried = K - 1, [(T, B, 2 * I), (B, N, I), (B, K - 1, I)]
    own = [(N, I), (W, I), (I, K), (I,), (RANK + 2 * N, I), (I, RANK), (I,), (I, N), (I,)]
    return drawn(carried + own, dtype)


def mamba2_inputs(T: int, B: int, I: int, K: int, dtype: torch.dtype, N: int = STATES) -> list[Tensor]:
    """z, x, B, C and dt, the state and the window; then the parameters."""
    C = I + 2 * N
    carried = [(T, B, I + C + HEADS), (B, N, I), (B, K - 1, C)]
    own = [(N, I), (K - 1, C), (C, K), (C,), (HEADS,), (HEADS,), (HEADS,), (I,)]
    return drawn(carried + own, dtype)


def mamba(inputs: list[Tensor], reset: Tensor, in_place: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    xz, h, window, *own = inputs
    return compiled_mamba(xz, reset, h, window, MambaParameters(*own), in_place)


def mamba2(inputs: list[Tensor], reset: Tensor, in_place: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    zxbcdt, h, window, *own = inputs
    return compiled_mamba2(zxbcdt, reset, h, window, Mamba2Parameters(*own), EPS, in_place)


def mamba_loop(inputs: list[Tensor], reset: Tensor) -> list[Tensor]:
    xz, h, window, *own = inputs
    p, outputs, N = MambaParameters(*own), [], h.shape[1]
    for xz_t, reset_t in zip(xz, reset.unsqueeze(-1).unsqueeze(-1), strict=True):
        h, window = torch.where(reset_t, p.initial_NI, h), torch.where(reset_t, p.initial_WI, window)
        x, z = xz_t.chunk(2, -1)
        u, window = silu_convolution_step(x, window, p.weight_IK, p.bias_I)
        steps, write, read = (u @ p.to_features_RI.t()).split([RANK, N, N], -1)
        features = SelectiveInputs(u, F.linear(steps, p.dt_Ir, p.dt_bias_I), z, write, read)
        y, h = selective_cell(features, h, SelectiveParameters(p.a_log_IN, p.skip_I))
        outputs.append(y)
    return [torch.stack(outputs), h, window]


def mamba2_loop(inputs: list[Tensor], reset: Tensor) -> list[Tensor]:
    zxbcdt, h, window, *own = inputs
    (_, N, I), p, outputs = h.shape, Mamba2Parameters(*own), []
    for row, reset_t in zip(zxbcdt, reset.unsqueeze(-1).unsqueeze(-1), strict=True):
        h, window = torch.where(reset_t, p.initial_NI, h), torch.where(reset_t, p.initial_WC, window)
        z, xbc, dt = row.split([I, I + 2 * N, HEADS], -1)
        xbc, window = silu_convolution_step(xbc, window, p.weight_CK, p.bias_C)
        y, h = ssd_cell(xbc, F.softplus(dt + p.dt_bias_H), h, -p.a_log_H.exp(), p.skip_H)
        outputs.append(gated_norm(y, z, p.norm_I, EPS))
    return [torch.stack(outputs), h, window]


both = pytest.mark.parametrize(
    "draw,scan,loop",
    [(mamba_inputs, mamba, mamba_loop), (mamba2_inputs, mamba2, mamba2_loop)],
    ids=["mamba", "mamba2"],
)


@both
@pytest.mark.parametrize("resets", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(
    "T,B,I,N,K",
    [
        (1, 1, 4, 8, 4), (1, 19, 6, 3, 4), (2, 3, 4, 8, 4), (8, 3, 4, 8, 2), (9, 3, 6, 3, 4), (17, 3, 64, 8, 4),
        (37, 35, 4, 8, 6),
    ],
)  # fmt: skip
def test_it_is_the_loop_with_all_its_gradients(
    draw: Callable[..., list[Tensor]], scan: Scan, loop: Scan, T: int, B: int, I: int, N: int, K: int, resets: float
) -> None:
    inputs = draw(T, B, I, K, torch.float64, N)
    reset = torch.rand(T, B, generator=Generator().manual_seed(1)) < resets
    actual, expected = (with_gradients(list(run(inputs, reset)), inputs) for run in (scan, loop))
    torch.testing.assert_close(actual, expected, **TIGHT)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("T", [1, 3, 17])
def test_in_place_and_without_gradients_the_numbers_are_the_same(
    draw: Callable[..., list[Tensor]], scan: Scan, loop: Scan, T: int, dtype: torch.dtype
) -> None:
    inputs = draw(T, 19, 32, 4, dtype)
    reset = torch.rand(T, 19, generator=Generator().manual_seed(1)) < 0.2
    expected = scan(inputs, reset)
    with torch.no_grad():
        given = [value.clone() for value in inputs]
        torch.testing.assert_close(scan(given, reset), expected, rtol=0, atol=0)
        torch.testing.assert_close(given, inputs, rtol=0, atol=0)
        y, h, window = scan(given, reset, in_place=True)  # type: ignore[call-arg]
        torch.testing.assert_close((y, h, window), expected, rtol=0, atol=0)
        assert h is given[1] and window is given[2]


@both
def test_a_carry_that_lies_out_of_order_is_not_overwritten(
    draw: Callable[..., list[Tensor]], scan: Scan, loop: Scan
) -> None:
    inputs = draw(2, 5, 8, 4, torch.float64)
    reset = torch.zeros(2, 5, dtype=torch.bool)
    inputs[1] = inputs[1].detach().transpose(1, 2).contiguous().transpose(1, 2)
    with torch.no_grad():
        expected, before = scan(inputs, reset), inputs[1].clone()
        torch.testing.assert_close(scan(inputs, reset, in_place=True), expected, rtol=0, atol=0)  # type: ignore[call-arg]
    torch.testing.assert_close(inputs[1], before, rtol=0, atol=0)


@both
@pytest.mark.parametrize("at", [0, 2])
def test_what_is_not_a_number_ends_at_a_reset_backward_too(
    draw: Callable[..., list[Tensor]], scan: Scan, loop: Scan, at: int
) -> None:
    inputs = draw(19, 4, 6, 4, torch.float64)
    reset = torch.zeros(19, 4, dtype=torch.bool)
    reset[at] = True
    unknown = [inputs[0], torch.full_like(inputs[1], torch.nan), torch.full_like(inputs[2], torch.nan), *inputs[3:]]
    y, *last = scan(unknown, reset)
    assert y[:at].isnan().all() and y[at:].isfinite().all() and all(value.isfinite().all() for value in last)
    (slope,) = torch.autograd.grad(y[at:].sum() + last[0].sum() + last[1].sum(), inputs[0])
    assert slope[at:].isfinite().all()


@both
def test_extreme_inputs_stay_finite(draw: Callable[..., list[Tensor]], scan: Scan, loop: Scan) -> None:
    inputs = draw(9, 3, 6, 4, torch.float32)
    reset = torch.zeros(9, 3, dtype=torch.bool)
    for size in (-1e3, 1e3):
        extreme = [(size * inputs[0]).detach().requires_grad_(), *inputs[1:]]
        outputs = with_gradients(list(scan(extreme, reset)), extreme)
        assert all(value.isfinite().all() for value in outputs)


@both
def test_a_backward_pass_that_needs_what_was_overwritten_says_so(
    draw: Callable[..., list[Tensor]], scan: Scan, loop: Scan
) -> None:
    inputs, reset = draw(2, 3, 8, 4, torch.float32), torch.zeros(2, 3, dtype=torch.bool)
    y, _, _ = scan(inputs, reset)
    with torch.no_grad():
        scan(inputs, reset, in_place=True)  # type: ignore[call-arg]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
