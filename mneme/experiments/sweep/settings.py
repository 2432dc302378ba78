"""Settings of a sweep: what is searched, how, and what is compared."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from mneme.configuration.config import settings
from mneme.controllers import Settings, hints_of
from mneme.distributed.config import ConfigError
from mneme.distributed.search_space import Range, Search, Space

_RANGE = "{low: 0.0001, high: 0.01, log: true}"


@dataclass(frozen=True, kw_only=True)
class SweepSettings(Settings, section="sweep"):
    """The section `sweep` of a sweep's file, whose other sections are settings of every trial."""

    space: dict[str, Any] = field(default_factory=dict)
    """What each setting may be: a list of values, or a range such as {low: 0.0001, high: 0.01, log: true}. `extends`
    stands for presets."""
    search: Search = "grid"
    """grid: every combination. random: points at random. optuna: Optuna's search, which learns from what was tried."""
    trials: int = 16
    """Configurations to try; a grid has all of its own."""
    seeds: int = 1
    """Runs of each configuration, with as many seeds from the run's `seed` on; one where optuna searches."""
    metric: str = "evaluation/return"
    """Metric of an evaluation by which configurations are compared: that of the result, which decides nothing else."""
    goal: Literal["max", "min"] = "max"
    """max: the more of the metric the better. min: the less."""
    early_stopping: Literal["none", "asha", "median"] = "none"
    """Trials that are given up at an evaluation: none; those outside the best share at their rung (asha: asynchronous
    successive halving); those whose best is below the median of the others' means so far (median)."""
    grace: int | None = None
    """Environment steps that early_stopping leaves every trial. Unset: a tenth of train.total_timesteps."""
    reduction_factor: float = 3.0
    """One trial in so many goes on at each of asha's rungs, which are so many times as far apart, one from the next."""
    max_concurrent: int | None = None
    """Trials at once, at most. Unset: as many as there is room for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "trials", "seeds", "grace", "max_concurrent")
        if not self.reduction_factor > 1:
            raise self.fault("reduction_factor", "it must be above 1")
        if self.search == "optuna" and self.seeds > 1:
            raise self.fault("seeds", "search=optuna takes one seed a trial; repeat its best with other seeds instead")


def sweep_settings(tree: Mapping[str, Any] | None) -> SweepSettings:
    """The settings that a file's section has.

    Raises:
        ConfigError: one of them is wrong.
    """
    if not isinstance(tree, Mapping) or not tree:
        raise ConfigError(
            "there is no section sweep; give it a space, as in sweep: {space: {learner.learning_rate: [0.001, 0.003]}}"
        )
    known = hints_of(SweepSettings)
    for name in tree:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f"did you mean sweep.{near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"unknown setting sweep.{name}; {hint}")
    try:
        return SweepSettings(**tree)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def space_of(sweep: SweepSettings) -> Space:
    """The space that is searched.

    Raises:
        ConfigError: there is nothing to search, or not by this search.
    """
    if not sweep.space:
        raise ConfigError(
            "sweep.space is empty; name settings and what they may be, as in learner.learning_rate: [0.001, 0.003]"
        )
    kinds = {setting.key: setting.type for setting in settings()}
    return {key: _values(key, given, sweep.search, kinds.get(key)) for key, given in sweep.space.items()}


def _values(key: str, given: Any, search: Search, kind: str | None) -> tuple[Any, ...] | Range:
    name = f"sweep.space.{key}"
    if isinstance(given, list | tuple):
        if not given:
            raise ConfigError(f"{name} is an empty list; give the values to try")
        if twice := next(_repeated(given), None):
            raise ConfigError(f"{name} has {twice[0]!r} twice; give each value once")
        return tuple(given)
    if not isinstance(given, Mapping) or not {"low", "high"} <= given.keys() <= {"low", "high", "log"}:
        raise ConfigError(f"{name} is {given!r}; give a list of values, or a range such as {_RANGE}")
    low, high, log = given["low"], given["high"], given.get("log", False)
    for bound in (low, high):
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise ConfigError(f"{name} has a bound {bound!r}, which is no number; a range is such as {_RANGE}")
    if not isinstance(log, bool) or not low < high or (log and low <= 0):
        raise ConfigError(f"{name} is {given!r}; low must be below high, and above 0 where log is true")
    if search == "grid":
        raise ConfigError(f"{name} is a range, which no grid covers; list its values, or set sweep.search=random")
    return Range(low, high, log, kind == "int" or (kind is None and isinstance(low, int) and isinstance(high, int)))


def _repeated(values: list[Any] | tuple[Any, ...]) -> Iterator[tuple[Any]]:
    for i, value in enumerate(values):
        if any(type(value) is type(other) and value == other for other in values[:i]):
            yield (value,)
