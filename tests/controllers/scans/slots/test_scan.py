"""The slot memory: its scan against the steps, and its rules by what they promise."""

from itertools import product
from typing import get_args

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers.scans.slots.cell import Rule, Slots, slots_read, slots_write
from mneme.controllers.scans.slots.scan import slots_scan
from mneme.controllers.scans.slots.torch import write_in_place
from tests.controllers.scans.weighed import with_gradients

B, K, D = 3, 4, 5
BACKENDS = ["torch", "numba"]
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
RULES = get_args(Rule)


def draw(T: int, seed: int = 0) -> list[Tensor]:
    """Queries, gate logits, values, slots, usage and age, in float64 and differentiable."""
    generator = Generator().manual_seed(seed)
    shapes = [(T, B, D), (T, B), (T, B, D), (B, K, D)]
    parts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    parts += [torch.rand(B, K, generator=generator, dtype=torch.float64) * scale for scale in (1.0, 9.0)]
    return [part.requires_grad_() for part in parts]


def slow(inputs: list[Tensor], reset: Tensor, decay: float, rule: Rule) -> list[Tensor]:
    query, logit, value, *parts = inputs
    memory, reads = Slots(*parts), []
    for t in range(len(query)):
        again = reset[t].unsqueeze(1)
        memory = Slots(memory[0].masked_fill(again.unsqueeze(2), 0.0), *(x.masked_fill(again, 0.0) for x in memory[1:]))
        reads.append(slots_read(query[t], memory, rule))
        memory = slots_write(logit[t], value[t], memory, decay, rule)
    return [torch.stack(reads), *memory]


def empty(dtype: torch.dtype = torch.float64) -> Slots:
    return Slots(torch.zeros(B, K, D, dtype=dtype), torch.zeros(B, K, dtype=dtype), torch.zeros(B, K, dtype=dtype))


def written(logits: list[float], rule: Rule) -> Slots:
    """The memory after writing 1, 2, 3, ... everywhere under these gates."""
    memory = empty()
    for i, logit in enumerate(logits, 1):
        value = torch.full((B, D), float(i), dtype=torch.float64)
        memory = slots_write(torch.full((B,), logit, dtype=torch.float64), value, memory, 0.0, rule)
    return memory


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("T,chunk", [(1, 8), (7, 8), (8, 8), (9, 8), (29, 8), (29, 1), (29, 64)])
@pytest.mark.parametrize("resets", [0.0, 0.2, 1.0])
def test_the_scan_is_the_steps(backend: str, rule: Rule, decay: float, T: int, chunk: int, resets: float) -> None:
    inputs = draw(T)
    reset = torch.rand(T, B, generator=Generator().manual_seed(1)) < resets
    query, logit, value, *parts = inputs
    reads, memory = slots_scan(query, logit, value, reset, Slots(*parts), decay, rule, chunk, backend)
    torch.testing.assert_close(
        with_gradients([reads, *memory], inputs), with_gradients(slow(inputs, reset, decay, rule), inputs), **TIGHT
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_a_write_with_gate_0_changes_no_bit(rule: Rule, backend: str) -> None:
    _, _, value, *parts = draw(5)
    before = Slots(*(part.detach().float() for part in parts))
    shut = torch.full((5, B), -1e4)
    after = slots_write(shut[0], value[0].float(), before, 0.0, rule)
    _, scanned = slots_scan(
        value.float(), shut, value.float(), torch.zeros(5, B, dtype=torch.bool), before, 0.0, rule, 5, backend
    )
    for memory in (after, scanned):
        assert torch.equal(memory.slots, before.slots)
        assert torch.equal(memory.usage, before.usage)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("shift", [0.0, -1e4])
def test_a_write_in_place_is_the_write(rule: Rule, decay: float, shift: float) -> None:
    _, logit, value, *parts = (part.detach() for part in draw(9))
    memory, started_empty = Slots(*parts), empty()
    for start in (memory, started_empty):
        in_place = Slots(*(part.clone() for part in start))
        for t in range(9):
            start = slots_write(logit[t] + shift, value[t], start, decay, rule)
            write_in_place(logit[t] + shift, value[t], in_place, decay, rule)
            torch.testing.assert_close(in_place, start, **TIGHT)


def test_the_first_write_stands_in_full_however_small_its_gate() -> None:
    memory = written([-4.0], "recent")
    torch.testing.assert_close(memory.slots[:, 0], torch.ones(B, D, dtype=torch.float64), **TIGHT)
    torch.testing.assert_close(memory.usage[:, 0], torch.full((B,), -4.0, dtype=torch.float64).sigmoid(), **TIGHT)
    read = slots_read(torch.ones(B, D, dtype=torch.float64), memory, "recent")
    torch.testing.assert_close(read, torch.ones(B, D, dtype=torch.float64), **TIGHT)
    torch.testing.assert_close(written([0.0], "classic").slots[:, 0], torch.full((B, D), 0.5, dtype=torch.float64))


def test_full_slots_give_way_in_the_order_in_which_they_were_written() -> None:
    memory = written([30.0] * (K + 2), "recent")
    assert memory.slots[0, :, 0].round().tolist() == [K + 1.0, K + 2.0, *range(3, K + 1)]


def test_weak_writes_share_a_slot_and_leave_the_others_empty() -> None:
    memory = written([30.0, *[-4.0] * 10], "recent")
    assert memory.slots[0, 0, 0] == 1
    assert (memory.usage[0] > 0).tolist() == [True, True, *[False] * (K - 2)]


def test_the_classic_rule_writes_to_the_slot_used_least() -> None:
    memory = written([30.0, -2.0, 30.0, 30.0, 0.0], "classic")
    expected = torch.tensor([30.0, -2.0, 30.0, 30.0], dtype=torch.float64).sigmoid()
    expected[1] += 0.5  # the fifth write
    torch.testing.assert_close(memory.usage[0], expected, **TIGHT)


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_memory_reads_as_nothing(rule: Rule) -> None:
    assert torch.count_nonzero(slots_read(torch.ones(B, D, dtype=torch.float64), empty(), rule)) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [200.0, 15.0, -15.0, -50.0, -90.0])
def test_a_gate_that_is_wide_open_or_all_but_shut_has_finite_slopes(size: float, backend: str) -> None:
    query, logit, value, *parts = (part.detach().float() for part in draw(9))
    logit = (size + logit).requires_grad_()
    for rule, memory in product(RULES, (Slots(*parts), empty(torch.float32))):
        reads, memory = slots_scan(
            query, logit, value, torch.zeros(9, B, dtype=torch.bool), memory, 0.0, rule, 9, backend
        )
        (grad,) = torch.autograd.grad(reads.sum() + memory.slots.sum(), logit)
        assert reads.isfinite().all() and grad.isfinite().all()
