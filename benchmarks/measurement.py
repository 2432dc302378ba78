"""The task, the timing and the report that all contestants share. It needs nothing but the standard library.

Every contestant is a program of its own that prints one `Measurement` as a line of JSON on standard output. Time runs
from the end of the warm-up's last update to the end of the last one of all, so start-up is nobody's burden.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from mneme.experiments.machine import versions

ENV_ID = "mneme/DelayedCue-v0"
CUES = 4
HIDDEN = 128
EPOCHS = 4
MINIBATCHES = 4
LEARNING_RATE = 3e-3
CHANCE = 1 / CUES
WARM_UP = 3  # updates that are not timed, where a contestant needs no more

OWN = "itself"  # a contestant's first process

_MARK = "MEASUREMENT "


@dataclass(frozen=True, kw_only=True)
class Work:
    """One update's share of the task: an episode in each lane."""

    horizon: int
    lanes: int

    @property
    def episode(self) -> int:
        """Steps."""
        return self.horizon + 1

    @property
    def batch(self) -> int:
        """Environment steps in an update."""
        return self.lanes * self.episode


WORKS = SHORT, LONG = Work(horizon=64, lanes=256), Work(horizon=1023, lanes=64)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One contestant's timed stretch."""

    steps: int  # environment steps collected and trained on in it
    seconds: float  # wall clock
    processor_seconds: float  # of all cores, see `processor_seconds`
    processes: dict[str, float] = field(default_factory=dict)  # the same by process
    mean_return: float | None  # of the episodes that ended in it, if any: about CHANCE before anything is learned
    configuration: dict[str, Any]
    versions: dict[str, str]
    spent: dict[str, float] = field(default_factory=dict)  # seconds by activity, where the contestant measures them

    @property
    def speed(self) -> float:
        """Trained environment steps per second."""
        return self.steps / self.seconds

    @property
    def thrift(self) -> float:
        """Trained environment steps per second of the processor."""
        return self.steps / self.processor_seconds

    def report(self) -> None:
        """Print for `Measurement.read`."""
        print(_MARK + json.dumps(asdict(self)), flush=True)

    @classmethod
    def read(cls, output: str) -> "Measurement":
        """The measurement among whatever else a contestant printed.

        Raises:
            ValueError: there is none.
        """
        lines = [line for line in output.splitlines() if line.startswith(_MARK)]
        if not lines:
            raise ValueError("it printed no measurement")
        return cls(**json.loads(lines[-1].removeprefix(_MARK)))


def processor_seconds() -> Counter[str]:
    """User and system time, by name, of this process and of all that descend from it, as Ray's do; that of children
    that ended is their parent's.

    Where there is no /proc, descendants count only once they have ended.
    """
    total, parents = Counter({OWN: sum(os.times()[:4])}), [Path("/proc/self")]
    while parents:
        for children in parents.pop().glob("task/*/children"):
            for child in _read(children).split():
                process = Path("/proc", child)
                ticks = _read(process / "stat").rpartition(")")[2].split()[11:15]  # own and of ended children
                total[_name(process)] += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
                parents.append(process)
    return total


def _name(process: Path) -> str:
    """An actor's class, a script or a program."""
    program, *arguments = _read(process / "cmdline").split("\0")
    if program.startswith("ray::"):
        return program.removeprefix("ray::").partition(".")[0].strip()
    scripts = [argument for argument in arguments if argument.endswith(".py")]
    return Path(scripts[0] if scripts and "python" in program else program).name.removesuffix(".py")


def _read(file: Path) -> str:
    """Nothing, if the process has ended."""
    try:
        return file.read_text()
    except OSError:
        return ""


@dataclass
class Stopwatch:
    """Counts steps, seconds and episodes from the end of the warm-up on, which takes so many updates."""

    warm_up: int = WARM_UP
    _updates: int = 0
    _started: tuple[float, Counter[str]] = (0.0, Counter())  # by the clock, and of the processor
    _stopped: tuple[float, Counter[str]] = (0.0, Counter())
    _steps: int = 0
    _episodes: float = 0.0
    _returns: float = 0.0
    _spent: dict[str, float] = field(default_factory=dict)

    def update(
        self, steps: int, episodes: float = 0.0, mean_return: float = 0.0, spent: Mapping[str, float] | None = None
    ) -> None:
        """To be called at the end of every update.

        Args:
            steps: environment steps that the update was trained on.
            episodes: that ended while they were collected.
            mean_return: of those episodes.
            spent: seconds by activity.
        """
        self._stopped = perf_counter(), processor_seconds()
        self._updates += 1
        if self._updates <= self.warm_up:
            self._started = self._stopped
            return
        self._steps += steps
        if episodes:  # the mean of none is not a number
            self._episodes += episodes
            self._returns += episodes * mean_return
        for key, seconds in (spent or {}).items():
            self._spent[key] = self._spent.get(key, 0.0) + seconds

    def measurement(self, configuration: dict[str, Any], *packages: str) -> Measurement:
        """The measurement from the end of the warm-up to the last update.

        Args:
            configuration: how the contestant was set up.
            packages: distributions whose versions matter.

        Raises:
            ValueError: nothing was timed.
        """
        if not self._steps:
            raise ValueError(
                f"only {self._updates} updates were made; more than {self.warm_up} are needed, so raise --steps"
            )
        (started, used_before), (stopped, used) = self._started, self._stopped
        processes = {name: seconds for name in used if (seconds := used[name] - used_before[name]) > 0}
        return Measurement(
            steps=self._steps,
            seconds=stopped - started,
            processor_seconds=sum(processes.values()),
            processes=processes,
            mean_return=self._returns / self._episodes if self._episodes else None,
            configuration=configuration,
            versions=versions(*packages),
            spent=self._spent,
        )


def contestant_parser(description: str | None) -> argparse.ArgumentParser:
    """The command line that all contestants share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=SHORT.batch, help="environment steps to time")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def add_work(parser: argparse.ArgumentParser) -> None:
    """Let `work` be chosen: short episodes in many lanes, or with --long the other way round."""
    parser.add_argument("--long", dest="work", action="store_const", const=LONG, default=SHORT, help="long episodes")


def updates_for(steps: int, batch: int = SHORT.batch, warm_up: int = WARM_UP) -> int:
    """Updates of `batch` steps that time at least `steps` environment steps, the warm-up included."""
    return warm_up + max(1, -(-steps // batch))
