"""Checks of what goes in and what comes out: shapes, refusal of wrong arguments, weights from the seed."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator

from mneme.controllers.contract.finding import EXACT, Build, Deviation, check, deviations
from mneme.controllers.contract.trial import INPUT, LANES, draw, dtype_of, subject


@check("shapes", "a scan gives [T, B, output_size] and the carry's own shapes", EXACT)
def results_have_their_shapes(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    x, reset, carry = draw(controller, 3)
    y, last = controller.scan(x, reset, carry)
    expected = torch.empty(3, LANES, controller.output_size, dtype=dtype_of(controller))
    for name, actual, like in (("output", y, expected), *((f"carry {n}", last.get(n), carry[n]) for n in carry)):
        fits = actual is not None and (actual.shape, actual.dtype) == (like.shape, like.dtype)
        told = "missing" if actual is None else f"{actual.dtype} {list(actual.shape)}"
        yield Deviation.unless(fits, f"{name} of a scan is {told}; it must be {like.dtype} {list(like.shape)}")
    strangers = sorted(last.keys() - carry.keys())
    yield Deviation.unless(not strangers, f"the carry after a scan holds {strangers}, which initial_carry does not")


@check("seed", "the generator alone decides the weights", EXACT)
def weights_come_from_the_generator(build: Build) -> Iterator[Deviation]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = build(INPUT, Generator().manual_seed(3)).state_dict()
        torch.manual_seed(2)
        before = torch.get_rng_state()
        second = build(INPUT, Generator().manual_seed(3)).state_dict()
        untouched = torch.equal(torch.get_rng_state(), before)
    yield from deviations(dict(second), dict(first), "built again from the same seed")
    yield Deviation.unless(untouched, "torch's global generator, which was drawn from")


@check("wrong arguments", "each is refused with a ValueError", EXACT)
def wrong_arguments_are_refused(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    x, reset, carry = draw(controller, 3)

    def refused(what: str, *arguments: Any) -> Deviation:
        """None if a scan of these arguments raises a ValueError."""
        try:
            controller.scan(*arguments)
        except ValueError:
            return Deviation.unless(True, what)
        return Deviation.unless(False, f"{what}, which a scan took")

    no_lanes = {name: value[:0] for name, value in carry.items()}
    yield refused("inputs of another size", x[..., :2], reset, carry)
    yield refused("no steps", x[:0], reset[:0], carry)
    yield refused("no lanes", x[:, :0], reset[:, :0], no_lanes)
    yield refused("inputs of another type", x.half(), reset, carry)
    yield refused("no carry", x, reset, None)
    yield refused("reset flags of fewer steps", x, reset[:2], carry)
    yield refused("reset flags that are numbers", x, reset.float(), carry)
    yield refused("reset flags on another device", x, reset.to("meta"), carry)
    yield refused("a carry with a part too many", x, reset, {**carry, "stranger": x[0]})
    for name, value in carry.items():
        less = {other: carry[other] for other in carry if other != name}
        yield refused(f"a carry without {name!r}", x, reset, less)
        yield refused(f"a carry with fewer lanes in {name!r}", x, reset, {**carry, name: value[:3]})
        yield refused(f"a carry of another type in {name!r}", x, reset, {**carry, name: value.float()})
        yield refused(f"a carry on another device in {name!r}", x, reset, {**carry, name: value.to("meta")})
