"""State-space duality against a slow loop and against the quadratic form of the paper."""

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers.scans.ssd.cell import ssd_cell
from mneme.controllers.scans.ssd.scan import ssd_scan
from mneme.controllers.scans.ssd.torch import chunked_scan
from mneme.controllers.scans.ssd.torch import torch_ssd_step as ssd_step
from tests.controllers.published import SSD, mamba_ssm, module
from tests.controllers.scans.weighed import with_gradients

B, H, P, N = 3, 2, 4, 5
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def draw(T: int, seed: int = 0) -> list[Tensor]:
    """x, log decays, write, read, the state and the initial state, in float64 and differentiable."""
    generator = Generator().manual_seed(seed)
    shapes = [(T, B, H, P), (T, B, H), (T, B, N), (T, B, N), (B, H, P, N), (H, P, N)]
    x, a, *rest = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [value.requires_grad_() for value in (x, -a.abs(), *rest)]


def slow(x: Tensor, a: Tensor, write: Tensor, read: Tensor, h: Tensor, initial: Tensor, reset: Tensor) -> list[Tensor]:
    """Lane by lane, head by head, step by step."""
    y, last = torch.empty_like(x), torch.empty_like(h)
    for b in range(B):
        for head in range(H):
            state = h[b, head]
            for t in range(len(x)):
                if reset[t, b]:
                    state = initial[head]
                state = a[t, b, head].exp() * state + torch.outer(x[t, b, head], write[t, b])
                y[t, b, head] = state @ read[t, b]
            last[b, head] = state
    return [y, last]


@pytest.mark.parametrize("T,chunk", [(1, 1), (1, 8), (7, 8), (8, 8), (9, 8), (29, 8), (29, 1), (29, 64)])
@pytest.mark.parametrize("resets", [0.0, 0.3, 1.0])
def test_chunks_are_the_loop(T: int, chunk: int, resets: float) -> None:
    inputs = draw(T)
    reset = torch.rand(T, B, generator=Generator().manual_seed(1)) < resets
    x, a, write, read, h, initial = inputs
    actual = with_gradients(list(chunked_scan(x, a, write, read, reset, h, initial, chunk)), inputs)
    torch.testing.assert_close(actual, with_gradients(slow(*inputs, reset), inputs), **TIGHT)


def test_no_initial_state_is_one_of_zeros() -> None:
    *inputs, initial = draw(13)
    x, a, write, read, h = inputs
    reset = torch.rand(13, B, generator=Generator().manual_seed(1)) < 0.3
    zeros = with_gradients(list(chunked_scan(x, a, write, read, reset, h, torch.zeros_like(initial), 4)), inputs)
    torch.testing.assert_close(with_gradients(list(chunked_scan(x, a, write, read, reset, h, None, 4)), inputs), zeros)


def test_without_resets_it_is_the_masked_attention_of_the_paper() -> None:
    """Dao & Gu 2024, equation 16: y = (L o C B^T) x with L[t, m] the product of the decays from m + 1 to t."""
    x, a, write, read, h, initial = draw(11)
    y, _ = chunked_scan(x, a, write, read, torch.zeros(11, B, dtype=torch.bool), torch.zeros_like(h), initial, 4)
    for b in range(B):
        for head in range(H):
            decay = torch.zeros(11, 11, dtype=torch.float64)
            for m in range(11):
                for t in range(m, 11):
                    decay[t, m] = a[m + 1 : t + 1, b, head].sum().exp()
            expected = (decay * (read[:, b] @ write[:, b].t())) @ x[:, b, head]
            torch.testing.assert_close(y[:, b, head], expected, **TIGHT)


@pytest.mark.parametrize("chunk", [4, 5])
def test_without_resets_it_is_mamba_ssms_minimal_form(chunk: int) -> None:
    """Listing 1 of Dao & Gu 2024, from any state, whose chunks divide the steps."""
    *inputs, initial = draw(12)
    x, a, write, read, h = inputs
    reset = torch.zeros(12, B, dtype=torch.bool)
    actual = chunked_scan(x, a, write, read, reset, h, initial, chunk)
    every_head = (value.transpose(0, 1).unsqueeze(2).expand(-1, -1, H, -1) for value in (write, read))
    with mamba_ssm(SSD):
        minimal = module("modules.ssd_minimal").ssd_minimal_discrete
        y, last = minimal(x.transpose(0, 1), a.transpose(0, 1), *every_head, 4, h.unsqueeze(1))
    expected = with_gradients([y.transpose(0, 1), last], inputs)
    torch.testing.assert_close(with_gradients(list(actual), inputs), expected, **TIGHT)


def test_strong_decays_neither_overflow_nor_leak() -> None:
    x, _, write, read, h, initial = draw(9)
    a = torch.full((9, B, H), -500.0, dtype=torch.float64, requires_grad=True)
    reset = torch.zeros(9, B, dtype=torch.bool)
    reset[5] = True
    y, last = chunked_scan(x, a, write, read, reset, h, initial, 9)
    torch.testing.assert_close(y[3], x[3] * (read[3] * write[3]).sum(-1)[:, None, None], **TIGHT)
    grads = torch.autograd.grad(y[5:].sum() + last.sum(), [x, a, write, read, h, initial])
    assert all(grad.isfinite().all() for grad in grads)
    assert all(torch.count_nonzero(grad[:5]) == 0 for grad in grads[:4])
    assert torch.count_nonzero(grads[4]) == 0


def layer(T: int, lanes: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, B and C side by side, dt, the state and the initial state, minus the rates, and D."""
    generator = Generator().manual_seed(T + 10 * lanes)
    shapes = [(T, lanes, H * P + 2 * N), (T, lanes, H), (lanes, N, H * P), (N, H * P), (H,), (H,)]
    xbc, dt, h, initial, a, skip = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return [value.requires_grad_() for value in (xbc, dt.abs(), h, initial, -a.exp(), skip)]


def steps(inputs: list[Tensor], reset: Tensor) -> list[Tensor]:
    xbc, dt, h, initial, a, skip = inputs
    outputs = []
    for t in range(len(reset)):
        y, h = ssd_cell(xbc[t], dt[t], torch.where(reset[t].view(-1, 1, 1), initial, h), a, skip)
        outputs.append(y)
    return [torch.stack(outputs), h]


@pytest.mark.parametrize("T,lanes", [(1, 1), (1, 19), (8, 3), (17, 3), (37, 19)])
@pytest.mark.parametrize("resets", [0.0, 0.2, 1.0])
def test_the_scan_is_its_steps(T: int, lanes: int, resets: float) -> None:
    inputs = layer(T, lanes)
    reset = torch.rand(T, lanes, generator=Generator().manual_seed(1)) < resets
    xbc, dt, h, *rest = inputs
    actual = with_gradients(list(ssd_scan(xbc, dt, reset, h, *rest, 8)), inputs)
    torch.testing.assert_close(actual, with_gradients(steps(inputs, reset), inputs), **TIGHT)
    with torch.no_grad():
        given = [value.clone() for value in inputs]
        y, last = ssd_scan(xbc, dt, reset, h, *rest, 8)
    torch.testing.assert_close([y, last], actual[:2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(given, inputs, rtol=0, atol=0)


def test_the_step_that_writes_in_place_is_the_cell() -> None:
    xbc, dt, h, _, a, skip = (value.detach() for value in layer(1, 7))
    expected_y, expected_h = ssd_cell(xbc[0], dt[0], h, a, skip)
    y = ssd_step(xbc[0], dt[0], h, a, skip)
    torch.testing.assert_close((y, h), (expected_y, expected_h), **TIGHT)
