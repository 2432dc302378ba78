"""Callbacks, which follow a run as it trains: the terminal, MLflow, the learning curve, and whatever a user adds."""

import logging
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from mneme.configuration.config import Config
from mneme.distributed.config import ConfigError
from mneme.interruption import StopRequest

if TYPE_CHECKING:
    from mneme.distributed.blueprint import Blueprint
    from mneme.rollout_workers import Evaluation

_log = logging.getLogger(__name__)

Outcome = Literal["complete", "stopped", "failed"]


class Look(IntEnum):
    """The purpose of an evaluation; each purpose has episodes of its own in a run."""

    EVALUATION = 0  # how far training is
    CONFIRMATION = 1  # whether what the first look saw is seen again
    RESULT = 2  # what the run reports; decides nothing
    PROBE = 3  # whether a full look is worth its time; told as metrics of the update alone

    @property
    def prefix(self) -> str:
        """Before the names of its metrics."""
        return {Look.CONFIRMATION: "confirmation/", Look.PROBE: "probe/"}.get(self, "evaluation/")

    def seed(self, run_seed: int, steps: int) -> int:
        """Seed of the look after `steps` environment steps."""
        return int(np.random.SeedSequence([run_seed, steps, int(self)]).generate_state(1)[0])


class RunStart(NamedTuple):
    """A run that is about to train."""

    folder: Path
    blueprint: "Blueprint[Config]"  # the configuration, complete, and what was seen of the environment
    key: str  # by which others that record the run find it again when it is resumed
    resumed: bool

    @property
    def config(self) -> Config:
        """Every setting, as resolved."""
        return self.blueprint.config


class Progress(NamedTuple):
    """The progress of a run."""

    update: int  # updates since the run's very beginning: the version of the weights
    steps: int  # environment steps trained on, since the run's very beginning
    total_timesteps: int  # after which training ends


class Callback:
    """Told what happens in a run; every method may be left as it is.

    All of it happens in the process that called `train`, between two updates: what takes long delays training.

    `on_update`, `on_evaluation` and `on_checkpoint` may return True: training then stops, with a checkpoint. One that
    raises ends the run in the same way, and its error is what `train` raises in the end.
    """

    def on_start(self, run: RunStart) -> None:
        """The run's folder is there and its actors are about to start."""

    def on_begin(self, progress: Progress) -> None:
        """Training begins, or goes on where a resumed run was saved: metrics of later steps are forgotten by now."""

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> bool | None:
        """The learner has made an update. docs/metrics.md lists the metrics; what was not measured is NaN."""
        return None

    def on_evaluation(self, progress: Progress, evaluation: "Evaluation", look: Look) -> bool | None:
        """Complete episodes were played greedily."""
        return None

    def on_checkpoint(self, progress: Progress, path: Path) -> bool | None:
        """A checkpoint is whole on the disk."""
        return None

    def on_unrecorded(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """These metrics, an update's or an evaluation's, could not be written into the run's folder."""

    def on_end(self, progress: Progress, outcome: Outcome) -> None:
        """Training is over. The last call, whatever happened."""


class Callbacks:
    """Several callbacks as one; one that raises hears only of the end, and the run stops."""

    def __init__(self, callbacks: Iterable[Callback], stop: StopRequest) -> None:
        self._callbacks = list(callbacks)
        self._failed: list[Callback] = []
        self._stop = stop
        self.error: BaseException | None = None

    def start(self, run: RunStart) -> None:
        """See `Callback.on_start`."""
        self._tell(lambda callback: callback.on_start(run))

    def begin(self, progress: Progress) -> None:
        """See `Callback.on_begin`."""
        self._tell(lambda callback: callback.on_begin(progress))

    def update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """See `Callback.on_update`."""
        self._tell(lambda callback: callback.on_update(progress, metrics), may_stop=True)

    def evaluation(self, progress: Progress, evaluation: "Evaluation", look: Look) -> None:
        """See `Callback.on_evaluation`."""
        self._tell(lambda callback: callback.on_evaluation(progress, evaluation, look), may_stop=True)

    def checkpoint(self, progress: Progress, path: Path) -> None:
        """See `Callback.on_checkpoint`."""
        self._tell(lambda callback: callback.on_checkpoint(progress, path), may_stop=True)

    def unrecorded(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """See `Callback.on_unrecorded`."""
        self._tell(lambda callback: callback.on_unrecorded(progress, metrics))

    def end(self, progress: Progress, outcome: Outcome) -> None:
        """See `Callback.on_end`."""
        self._tell(lambda callback: callback.on_end(progress, outcome), last=True)

    def _tell(self, call: Callable[[Callback], Any], *, may_stop: bool = False, last: bool = False) -> None:
        for callback in self._callbacks:
            if callback in self._failed and not last:
                continue
            try:
                answer = call(callback)
            except (Exception, SystemExit) as error:
                _log.warning(f"the callback {type(callback).__name__} failed ({type(error).__name__}: {error})")
                self._failed.append(callback)
                self._stop.made = True
                self.error = self.error or error
            else:
                if may_stop and isinstance(answer, bool | np.bool_) and answer:
                    self._stop.made = True


def checked(callbacks: Any) -> list[Callback]:
    """The callbacks, or the only one, as a list of instances of `Callback`.

    Raises:
        ConfigError: one is not.
    """
    given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
    for callback in given:
        if not isinstance(callback, Callback):
            raise ConfigError(f"a callback is given as {callback!r}; give instances of a subclass of mneme.Callback")
    return given
