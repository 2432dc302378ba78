"""Checks that nothing goes where it must not: across resets, across lanes, between calls, into the arguments."""

import itertools
from collections.abc import Iterator

import torch

from mneme.controllers.contract.finding import EXACT, TIGHT, Build, Deviation, check, deviations
from mneme.controllers.contract.trial import LANES, Trial, draw, gradients, loss_of, results, subject
from mneme.controllers.controller import Carry, Controller

_LANE = 1  # the one that is looked at
_RESETS = (0, 1, 6)  # of 13 steps


@check("reset cuts", "no gradient crosses a reset, and it flows after it", EXACT)
def a_reset_cuts_the_gradient(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    for at in _RESETS:
        dx, dcarry = _gradients_of_one_lane(controller, at)
        yield Deviation(float(dx[:at].abs().max()) if at else 0.0, f"gradient of the inputs before a reset at {at}")
        for name, grad in dcarry.items():
            yield Deviation(float(grad.abs().max()), f"gradient of carry {name} before a reset at {at}")
        alive = torch.count_nonzero(dx[at:, _LANE]) > dx[at:, _LANE].numel() / 2  # all but where a ReLU is shut
        yield Deviation.unless(bool(alive), f"no gradient of the inputs after a reset at {at}")


@check("reset is a start", "after a reset all is as in a fresh lane", TIGHT)
def a_reset_starts_afresh(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    for at in _RESETS:
        x, reset, carry = _reset_once(controller, at)
        y, last = controller.scan(x, reset, carry)
        fresh = controller.scan(x[at:], torch.zeros_like(reset[at:]), controller.initial_carry(LANES))
        expected = _of_lane(*fresh)
        yield from deviations(_of_lane(y[at:], last), expected, f"after a reset at {at}")


@check("lanes are apart", "no gradient goes from one lane to another", EXACT)
def lanes_are_apart(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    dx, dcarry = _gradients_of_one_lane(controller, None)
    others = torch.arange(LANES) != _LANE
    yield Deviation(float(dx[:, others].abs().max()), "gradient of the other lanes' inputs")
    for name, grad in dcarry.items():
        yield Deviation(float(grad[others].abs().max()), f"gradient of the other lanes' carry {name}")


@check("nothing is hidden", "the same call gives the same bits, whatever came between", EXACT)
def nothing_is_kept_between_calls(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    trial = draw(controller, 7)
    before = results(*controller.scan(*trial))
    controller.scan(*draw(controller, 2, seed=1, lanes=3))
    yield from deviations(results(*controller.scan(*trial)), before, "the same call again, another in between")


@check("nothing is touched", "arguments are not modified, and results share no memory", EXACT)
def nothing_passed_in_is_touched(build: Build) -> Iterator[Deviation]:
    for learning, resets in itertools.product((True, False), (0.0, 0.3)):
        controller = subject(build)
        trial = draw(controller, 7, resets=resets)
        given = {"the input": trial.x, "the reset flags": trial.reset}
        given |= {f"carry {name}": value for name, value in trial.carry.items()}
        given |= {**dict(controller.named_parameters()), **dict(controller.named_buffers())}
        before = {name: value.detach().clone() for name, value in given.items()}
        with torch.set_grad_enabled(learning):
            y, last = controller.scan(*trial)
        if learning:
            loss_of(y, last).backward()
        yield from deviations(given, before, "after a scan")
        returned = {name: value.detach() for name, value in results(y, last).items()}
        for written in returned:
            rest = given | {name: value for name, value in returned.items() if name != written}
            before = {name: value.detach().clone() for name, value in rest.items()}
            returned[written].fill_(7.0)
            yield from deviations(rest, before, f"when {written} is overwritten")


@check("initial carry", "it gets gradients where it is learned, and is zero elsewhere", EXACT)
def the_initial_carry_is_learned_or_zero(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    start = controller.initial_carry(LANES)
    learned = {
        name: value for name, value in controller.named_parameters() if name.rpartition(".")[2].startswith("initial_")
    }
    if not learned:
        zeros = {name: torch.zeros_like(value) for name, value in start.items()}
        yield from deviations(start, zeros, "initial carry")
        return
    x, reset, _ = draw(controller, 5, resets=0.0)
    y, _ = controller.scan(x, reset, start)
    for name, grad in zip(learned, torch.autograd.grad(y.sum(), list(learned.values())), strict=True):
        yield Deviation.unless(bool((grad != 0).all()), f"no gradient in a part of {name}")


def _reset_once(controller: Controller, at: int | None) -> Trial:
    """13 steps without resets but for one in the lane that is looked at."""
    trial = draw(controller, 13, resets=0.0)
    if at is not None:
        trial.reset[at, _LANE] = True
    return trial


def _of_lane(y: torch.Tensor, last: Carry) -> dict[str, torch.Tensor]:
    """Results of the lane that is looked at."""
    return results(y[:, _LANE], {name: value[_LANE] for name, value in last.items()})


def _gradients_of_one_lane(controller: Controller, at: int | None) -> tuple[torch.Tensor, Carry]:
    """Gradients of one lane's outputs after its reset and of its last carry, in the inputs and the incoming carry."""
    trial = _reset_once(controller, at)
    y, last = controller.scan(*trial)
    loss = loss_of(y[at or 0 :, _LANE], {name: value[_LANE] for name, value in last.items()})
    found = gradients(controller, trial, loss)
    return found["gradient of input"], {name: found[f"gradient of carry {name}"] for name in trial.carry}
