"""Windowed attention against loops over time, lanes and heads."""

import math

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers.scans.attention.torch import CHUNK, attention_scan, attention_step, banded, steps_since_reset

LANES, HEADS, WIDTH = 3, 2, 4


def draw(steps: int, window: int, share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, memory (that of window - 1 earlier steps first), how many steps each looks back on, and biases."""
    generator = Generator().manual_seed(steps + window)
    reset = torch.rand(steps, LANES, generator=generator) < share
    past = torch.tensor([0.0, 2.0, 1000.0], dtype=torch.float64)
    q = torch.randn(steps, LANES, HEADS, WIDTH, generator=generator, dtype=torch.float64)
    memory = torch.randn(LANES, window - 1 + steps, 2 * WIDTH, generator=generator, dtype=torch.float64)
    bias = torch.randn(HEADS, window, generator=generator, dtype=torch.float64)
    return q.requires_grad_(), memory.requires_grad_(), steps_since_reset(reset, past), bias.requires_grad_()


def slow(q: Tensor, memory: Tensor, past: Tensor, bias: Tensor) -> Tensor:
    """The equations, one output at a time."""
    rows = []
    for t, b, n in ((t, b, n) for t in range(len(q)) for b in range(LANES) for n in range(HEADS)):
        now, farthest = bias.shape[1] - 1 + t, min(bias.shape[1] - 1, int(past[t, b]))
        k, v = memory[b, now - farthest : now + 1].flip(0).chunk(2, 1)  # by distance
        weights = (k @ q[t, b, n] / math.sqrt(WIDTH) + bias[n, : farthest + 1]).softmax(0)
        rows.append(weights @ v)
    return torch.stack(rows).view_as(q)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("window", [1, 2, 9, 40])
@pytest.mark.parametrize("steps", [1, 2, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_the_scan_is_the_slow_loop_in_values_and_gradients(steps: int, window: int, share: float) -> None:
    q, memory, past, bias = draw(steps, window, share)
    weight = torch.randn(q.shape, generator=Generator().manual_seed(0), dtype=torch.float64)
    actual, expected = attention_scan(q, memory, past, bias), slow(q, memory, past, bias)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    inputs = [q, memory, bias]
    torch.testing.assert_close(
        torch.autograd.grad((actual * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.parametrize("window", [1, 2, 9])
def test_a_step_is_a_scan_of_one(window: int) -> None:
    q, memory, past, bias = draw(1, window, 0.0)
    torch.testing.assert_close(
        attention_step(q[0], memory, past[0], bias), slow(q, memory, past, bias)[0], rtol=1e-12, atol=1e-12
    )


def test_a_step_sees_itself_whatever_is_said_of_its_past() -> None:
    q, memory, past, bias = draw(3, 4, 0.0)
    nothing = torch.full_like(past, -5.0)
    expected = memory[:, 3:, WIDTH:].transpose(0, 1).unsqueeze(2).expand(-1, -1, HEADS, -1)
    torch.testing.assert_close(attention_scan(q, memory, nothing, bias), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        attention_step(q[0], memory[:, :4], nothing[0], bias), expected[0], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("window,queries", [(1, 1), (1, 4), (5, 1), (5, 3), (3, 7)])
def test_the_band_holds_the_bias_of_each_distance_inside_the_window(window: int, queries: int) -> None:
    bias = torch.arange(2.0 * window).view(2, window)
    band = banded(bias, queries)
    assert band.shape == (2, queries, window - 1 + queries)
    for n, i, j in ((n, i, j) for n in range(2) for i in range(queries) for j in range(window - 1 + queries)):
        distance = i + window - 1 - j
        assert band[n, i, j] == (bias[n, distance] if 0 <= distance < window else -math.inf)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_steps_since_the_reset_are_counted_and_go_on_from_those_before(share: float) -> None:
    reset = torch.rand(20, 4, generator=Generator().manual_seed(1)) < share
    past = torch.tensor([0.0, 3.0, 0.5, 7.0])
    count, expected = past.tolist(), []
    for t in range(20):
        count = [0.0 if reset[t, b] else count[b] + (t > 0) for b in range(4)]
        expected.append(list(count))
    assert steps_since_reset(reset, past).tolist() == expected
