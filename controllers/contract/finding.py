"""A check of a controller, and its outcome."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Self

from torch import Generator, Tensor

from mneme.controllers.controller import Controller

Build = Callable[[int, Generator], Controller]
"""Makes the controller under test from its input size and a generator, anew at every call."""


EXACT, TIGHT = 0.0, 1e-10
"""Tolerances: to the bit, and in float64."""


class Deviation(NamedTuple):
    """The deviation of one result from what it must be."""

    error: float  # see `deviations`; NaN and infinity are beyond every tolerance
    where: str  # what was compared

    @classmethod
    def unless(cls, holds: bool, where: str) -> Self:
        """None if it holds, else without bounds: for what is either so or not."""
        return cls(0.0 if holds else math.inf, where)


class Finding(NamedTuple):
    """The outcome of one check."""

    name: str
    meaning: str  # the rule, in one line
    error: float  # the largest deviation; NaN if none could be measured
    tolerance: float  # 0 where it must be exact
    passed: bool
    detail: str  # where the deviation is largest, or why nothing could be measured


class Check(NamedTuple):
    """One rule that every controller keeps."""

    name: str
    meaning: str  # the rule, in one line
    tolerance: float
    measure: Callable[[Build], Iterable[Deviation]]

    def run(self, build: Build) -> Finding:
        """Measure all deviations; an exception in the controller is a finding too."""
        try:
            worst = max(self.measure(build), key=lambda d: math.inf if math.isnan(d.error) else d.error)
        except Exception as error:
            reason = f"it raised {type(error).__name__}: {' '.join(str(error).split())}"
            return Finding(*self[:2], math.nan, self.tolerance, passed=False, detail=reason)
        return Finding(*self[:2], worst.error, self.tolerance, worst.error <= self.tolerance, worst.where)


def check(name: str, meaning: str, tolerance: float) -> Callable[[Callable[[Build], Iterable[Deviation]]], Check]:
    """Make a check of the function that measures."""
    return lambda measure: Check(name, meaning, tolerance, measure)


def deviations(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> Iterator[Deviation]:
    """The largest |actual - expected| in each tensor, over 1 + the largest |expected|.

    A name, shape or type that differs is without bounds.
    """
    yield Deviation.unless(actual.keys() == expected.keys(), f"{sorted(actual)} instead of {sorted(expected)}, {where}")
    for name in sorted(actual.keys() & expected.keys()):
        a, e = actual[name].detach(), expected[name].detach()
        if (a.shape, a.dtype) != (e.shape, e.dtype):
            told = f"{name} is {a.dtype} {list(a.shape)}, not {e.dtype} {list(e.shape)}, {where}"
            yield Deviation(math.inf, told)
        elif e.numel():
            a, e = a.double(), e.double()
            yield Deviation(float((a - e).abs().max() / (1 + e.abs().max())), f"{name}, {where}")
