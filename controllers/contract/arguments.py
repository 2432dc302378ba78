"""Checks of what goes in and what comes out: shapes, sentences about wrong arguments, weights from the seed."""

import re
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


@check("wrong arguments", "each is refused in one sentence", EXACT)
def wrong_arguments_get_one_sentence(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    x, reset, carry = draw(controller, 3)

    def refused(sentence: str, *arguments: Any) -> Deviation:
        """None if a scan of these arguments raises a ValueError that says it."""
        try:
            controller.scan(*arguments)
        except ValueError as error:
            return Deviation.unless(re.search(sentence, str(error)) is not None, f"the sentence {str(error)!r}")
        return Deviation.unless(False, f"no ValueError that says {sentence!r}")

    size = controller.input_size
    yield refused(rf"has shape \[3, {LANES}, 2\]; it must be \[T, B, {size}\]", x[..., :2], reset, carry)
    yield refused("0 time steps", x[:0], reset[:0], carry)
    yield refused("0 lanes", x[:, :0], reset[:, :0], {name: value[:0] for name, value in carry.items()})
    yield refused("the input is torch.float16 of shape", x.half(), reset, carry)
    yield refused("the carry is None", x, reset, None)
    yield refused(rf"reset flags are torch.bool of shape \[2, {LANES}\].*\[3, {LANES}\]", x, reset[:2], carry)
    yield refused("reset flags are torch.float32.*torch.bool", x, reset.float(), carry)
    elsewhere = "on meta and the input on cpu; move them to one device"
    yield refused(f"the reset flags are {elsewhere}", x, reset.to("meta"), carry)
    yield refused("the carry holds .*'stranger'.*initial_carry", x, reset, {**carry, "stranger": x[0]})
    for name, value in carry.items():
        less = {other: carry[other] for other in carry if other != name}
        yield refused("the carry holds .*needs exactly", x, reset, less)
        narrow, coarse = {**carry, name: value[:3]}, {**carry, name: value.float()}
        yield refused(rf"carry '{name}' is torch.float64 of shape \[3.*\[{LANES}", x, reset, narrow)
        yield refused(rf"carry '{name}' is torch.float32.*must be torch.float64", x, reset, coarse)
        yield refused(f"carry '{name}' is {elsewhere}", x, reset, {**carry, name: value.to("meta")})
