"""A trial: an ordinary run, in a thread of its actor, which the actor asks how it goes."""

import math
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

from mneme.callbacks import Callback, Look, Progress, RunStart
from mneme.configuration.config import Config
from mneme.controllers.given import take
from mneme.distributed.search_space import Report, Trial
from mneme.envs import Registered, register_missing
from mneme.experiments.sweep.plan import Plan
from mneme.reporting.meter import Row, evaluation_row
from mneme.rollout_workers import Evaluation
from mneme.storage.run_folder import RunFolder
from mneme.training import train

_PREFIX = "evaluation/"


class Code(NamedTuple):
    """What the process of the sweep has, and those of its trials cannot import."""

    environments: Registered
    controllers: Mapping[str, bytes]  # classes by their kinds, pickled


def begin(plan: Plan, code: Code, trial: Trial) -> "RunningTrial":
    """Start a trial's run, or go on with it."""
    register_missing(code.environments)
    take(code.controllers)
    return RunningTrial(plan.config(trial), plan.sweep.metric)


class RunningTrial:
    """A run that trains in the background; see `Process`.

    Args:
        config: the run's; it goes on with a run of its name that has begun.
        metric: by which it is compared.
    """

    def __init__(self, config: Config, metric: str) -> None:
        self._config, self._metric = config, metric
        self._news: SimpleQueue[Report] = SimpleQueue()
        self._follower = _Follower(self._news)
        self._thread = Thread(target=self._run, name="mneme-trial", daemon=True)
        self._thread.start()

    def report(self, seconds: float) -> Report:
        """What is new, as soon as there is something, or after `seconds` nothing but the steps so far."""
        try:
            return self._news.get(timeout=seconds)
        except Empty:
            return {"steps": self._follower.steps}

    def stop(self) -> None:
        """End it with a checkpoint, and wait until it has."""
        self._follower.stopping = True
        self._thread.join()

    def _run(self) -> None:
        try:
            run = train(self._config, local=True, go_on=True, callbacks=[self._follower], progress=False)
        except Exception as error:  # whatever went wrong, the other trials go on
            sentence = str(error) or type(error).__name__
            self._end({"failure": sentence, self._metric: math.nan, "steps": self._follower.steps})
            return
        if run.interrupted:  # by `stop`: nobody asks any more
            return
        history = RunFolder(run.folder).history()
        results = evaluations_in(history)
        if not results or results[-1]["steps"] != run.steps or self._metric not in results[-1]:
            missing = f"the evaluation at the end came to no result with {self._metric}"
            self._end({"failure": missing, self._metric: math.nan, "steps": run.steps})
            return
        self._end(results[-1] | {"outcome": "complete", "seconds": seconds_of(history)})

    def _end(self, report: Report) -> None:
        self._news.put(report | {"done": True})


class _Follower(Callback):
    """Tells of evaluations, and stops when asked."""

    def __init__(self, news: SimpleQueue[Report]) -> None:
        self._news = news
        self.steps, self.stopping = 0, False

    def on_start(self, run: RunStart) -> None:
        self._folder, self._resumed = RunFolder(run.folder), run.resumed

    def on_begin(self, progress: Progress) -> None:
        """Tell of what was before, which whoever asks may not know."""
        self.steps = progress.steps
        for row in evaluations_in(self._folder.history()) if self._resumed else ():
            self._news.put(row)

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> bool:
        self.steps = progress.steps
        return self.stopping

    def on_evaluation(self, progress: Progress, evaluation: Evaluation, look: Look) -> None:
        if look is Look.EVALUATION:
            seconds = {"seconds": seconds_of(self._folder.history())}
            self._news.put({"steps": progress.steps, **evaluation_row(evaluation, _PREFIX), **seconds})


def evaluations_in(history: Sequence[Row]) -> list[Report]:
    """The evaluations among a run's metrics, oldest first."""
    rows = ((row, {key: value for key, value in row.items() if key.startswith(_PREFIX)}) for row in history)
    return [{"steps": int(row["step"]), **found} for row, found in rows if found]


def seconds_of(history: Sequence[Row]) -> float:
    """Seconds that a run has trained, evaluations and pauses between processes left out."""
    updates = [row for row in history if "steps_per_second" in row]
    before = [0.0, *(row["step"] for row in updates[:-1])]
    spent = ((row["step"] - step) / row["steps_per_second"] for row, step in zip(updates, before, strict=True))
    return round(sum(spent), 3)
