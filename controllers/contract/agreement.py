"""Checks that one computation in several forms is one: scan, step, split scan, slow loop, finite differences."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Generator, Tensor

from mneme.controllers.contract.finding import EXACT, TIGHT, Build, Deviation, check, deviations
from mneme.controllers.contract.trial import (
    LANES,
    LENGTHS,
    Trial,
    differentiated,
    draw,
    gradients,
    loss_of,
    outcome,
    results,
    subject,
)
from mneme.controllers.controller import Carry, Controller, Step

_STEPS = max(LENGTHS)
_CUTS = ((1,), (32,), (5, 6, 20), (11, 22))
_WIDTHS = (1, 100, 600)
_EPSILON, _DIRECTIONS = 1e-6, 4  # of finite differences


@check("scan is the loop", "outputs, last carry and all gradients are those of a loop over cell", TIGHT)
def scan_is_the_loop_in_float64(build: Build) -> Iterator[Deviation]:
    yield from _scan_is_the_loop(subject(build))


@check("... in float32", "the same in single precision", 1e-05)
def scan_is_the_loop_in_float32(build: Build) -> Iterator[Deviation]:
    yield from _scan_is_the_loop(subject(build, torch.float32))


def _scan_is_the_loop(controller: Controller) -> Iterator[Deviation]:
    for steps in LENGTHS:
        trial = draw(controller, steps)
        expected = outcome(controller.reference_scan, controller, trial)
        yield from deviations(outcome(controller.scan, controller, trial), expected, f"{steps} steps")


@check("... at any width", "the same with 1, 100 and 600 lanes", TIGHT)
def scan_is_the_loop_at_any_width(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    for lanes in _WIDTHS:
        trial = draw(controller, 9, lanes=lanes)
        expected = outcome(controller.reference_scan, controller, trial)
        yield from deviations(outcome(controller.scan, controller, trial), expected, f"{lanes} lanes")


@check("cuts are detached", "with gradient cuts too, all is as in a loop that detaches the carry there", TIGHT)
def cut_scan_is_the_detached_loop(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    for steps in LENGTHS:
        trial = draw(controller, steps)
        step_T1 = torch.arange(steps).unsqueeze(1)
        random = torch.rand(steps, LANES, generator=Generator().manual_seed(2)) < 0.3
        for what, cut in {
            "here and there": random,
            "before every step": torch.ones(steps, LANES, dtype=torch.bool),
            "before every fifth step": (step_T1 % 5 == 0).expand(steps, LANES),
            "nowhere": torch.zeros(steps, LANES, dtype=torch.bool),
        }.items():
            fast, slow = (
                outcome(partial(scan, cut_TB=cut), controller, trial)
                for scan in (controller.scan, controller.reference_scan)
            )
            yield from deviations(fast, slow, f"{steps} steps cut {what}")


@check("acting is learning", "a scan without gradient gives the same values", TIGHT)
def acting_is_learning(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    for steps in LENGTHS:
        trial = draw(controller, steps)
        expected = results(*controller.scan(*trial))
        with torch.no_grad():
            yield from deviations(results(*controller.scan(*trial)), expected, f"{steps} steps without gradient")


@check("steps are the scan", "step after step gives what one scan gives", TIGHT)
def steps_are_the_scan(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    trial = draw(controller, _STEPS)

    expected = results(*controller.scan(*trial))
    yield from deviations(results(*_stepwise(controller.step, *trial)), expected, "step by step")
    with torch.no_grad():
        found = results(*_stepwise(controller.step, *trial))
        yield from deviations(found, expected, "step by step without gradient")


def _stepwise(step: Step, x: Tensor, reset: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
    """As a scan; what a step returns need be good until the next one alone."""
    outputs = []
    for x_BD, reset_B in zip(x, reset, strict=True):
        y_BH, carry = step(x_BD, reset_B, carry)
        outputs.append(y_BH.clone())
    return torch.stack(outputs), carry


@check("split is the whole", "a scan in parts is one scan, gradients too", TIGHT)
def split_is_the_whole(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    trial = draw(controller, _STEPS)
    expected = outcome(controller.scan, controller, trial)
    for cuts in _CUTS:

        def split(x: Tensor, reset: Tensor, carry: Carry, cuts: tuple[int, ...] = cuts) -> tuple[Tensor, Carry]:
            outputs = []
            for x_part, reset_part in zip(x.tensor_split(cuts), reset.tensor_split(cuts), strict=True):
                y, carry = controller.scan(x_part, reset_part, carry)
                outputs.append(y)
            return torch.cat(outputs), carry

        yield from deviations(outcome(split, controller, trial), expected, f"{_STEPS} steps cut at {cuts}")


@check("finite differences", "all gradients are those that finite differences find", 1e-06)
def gradients_are_finite_differences(build: Build) -> Iterator[Deviation]:
    """Central differences along random directions: an error in any element shows in each of them."""
    controller = subject(build)
    trial = draw(controller, 5, lanes=2)
    found = gradients(controller, trial, loss_of(*controller.scan(*trial)))
    generator = Generator().manual_seed(1)
    for (name, value), gradient in zip(differentiated(controller, trial).items(), found.values(), strict=True):
        start = value.detach().clone()
        for _ in range(_DIRECTIONS):
            direction = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            direction /= direction.norm()
            losses = []
            for side in (_EPSILON, -_EPSILON):
                with torch.no_grad():
                    value.copy_(start + side * direction)
                losses.append(loss_of(*controller.scan(*trial)).detach())
            with torch.no_grad():
                value.copy_(start)
            expected = {f"gradient of {name}": (losses[0] - losses[1]) / (2 * _EPSILON)}
            yield from deviations({f"gradient of {name}": (gradient * direction).sum()}, expected, "along a direction")


@check("parts have gradients", "outputs or one carry alone can be differentiated", TIGHT)
def parts_have_their_own_gradients(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    trial = draw(controller, 7)
    fast, slow = (results(*run(*trial)) for run in (controller.scan, controller.reference_scan))
    for name, value in slow.items():
        expected = gradients(controller, trial, loss_of(value, {}))
        yield from deviations(gradients(controller, trial, loss_of(fast[name], {})), expected, f"{name} alone")


@check("prepared steps", "what steps many times with the same weights gives the same", TIGHT)
def prepared_steps_are_steps(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    x, reset, carry = draw(controller, 9)
    given = {name: value.detach().clone() for name, value in carry.items()}
    with torch.no_grad():
        plain, prepared = (
            results(*_stepwise(step, x.detach(), reset, given)) for step in (controller.step, controller.stepper())
        )  # in this order, as what is prepared may overwrite the carry
    yield from deviations(prepared, plain, "step by step")


@check("nothing is given away", "a step modifies no carry that it is given, and results share no memory", EXACT)
def a_step_touches_no_carry(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    x, reset, carry = draw(controller, 1)
    given = {name: value.detach() for name, value in carry.items()}
    before = {name: value.clone() for name, value in given.items()}
    with torch.no_grad():
        y_BH, last = controller.step(x[0].detach(), reset[0], given)
    returned = results(y_BH, last)
    for written in returned:
        rest = given | {name: value for name, value in returned.items() if name != written}
        kept = {name: before.get(name, value.clone()) for name, value in rest.items()}
        returned[written].fill_(7.0)
        yield from deviations(rest, kept, f"when {written} is overwritten after a step")


@check("lanes permute", "lanes in another order give the same in that order", TIGHT)
def lanes_may_be_permuted(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    x, reset, carry = draw(controller, 9)
    order = torch.tensor([2, 0, 3, 1])
    y, last = controller.scan(x, reset, carry)
    permuted = controller.scan(x[:, order], reset[:, order], {name: value[order] for name, value in carry.items()})
    expected = results(y[:, order], {name: value[order] for name, value in last.items()})
    yield from deviations(results(*permuted), expected, f"{LANES} lanes in another order")


@check("memory layout", "strided views do as well", TIGHT)
def memory_layout_does_not_matter(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    trial = draw(controller, 7)
    carry = {name: value.detach().transpose(0, -1).contiguous().transpose(0, -1) for name, value in trial.carry.items()}
    strided = Trial(
        trial.x.detach().transpose(0, 1).contiguous().transpose(0, 1), trial.reset.t().contiguous().t(), carry
    )
    for steps in (7, 1):
        actual, expected = (
            results(*controller.scan(x[:steps], reset[:steps], carry)) for x, reset, carry in (strided, trial)
        )
        yield from deviations(actual, expected, f"strided arguments of {steps} step(s)")


@check("backward repeats", "a second backward pass is the first", EXACT)
def a_second_backward_is_the_first(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    trial = draw(controller, 7)
    loss = loss_of(*controller.scan(*trial))
    first, second = (gradients(controller, trial, loss) for _ in range(2))
    yield from deviations(second, first, "the second time")
