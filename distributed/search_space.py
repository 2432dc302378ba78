"""The space that a sweep searches, and one trial in it. Nothing here needs Ray."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

Search = Literal["grid", "random", "optuna"]
Report = dict[str, Any]  # plain data; `steps`, and once it is the last one, `done`


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False  # every factor is as probable as every other, where otherwise every distance is
    whole: bool = False  # whole numbers alone


Space = Mapping[str, "tuple[Any, ...] | Range"]
"""What each setting may be: one of several values, or a number in a range."""


class Trial(NamedTuple):
    """One configuration with one seed."""

    number: int  # of the configuration
    seed: int
    point: Mapping[str, Any]  # a value for each name of the space


class Process(Protocol):
    """A trial that runs in the background, as the actor that holds it sees it."""

    def report(self, seconds: float) -> Report:
        """What is new, as soon as there is something, or after `seconds` nothing but the steps so far."""

    def stop(self) -> None:
        """End it with a checkpoint, and wait until it has."""


Begin = Callable[[Trial], Process]


class Listener(Protocol):
    """Who is told in the driver how trials go."""

    def started(self, trial: Trial) -> None:
        """It has a process."""

    def reported(self, trial: Trial, report: Report) -> None:
        """It came to an evaluation."""

    def ended(self, trial: Trial, report: Report, reason: str | None) -> None:
        """It is over; `reason`: why its process was lost for good, None if it was not."""
