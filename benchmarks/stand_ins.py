"""Actors that stand in for rollout workers and learner where the service is measured without their work.

What they answer has the form of the real thing. They load neither torch nor an environment, so that many fit into one
machine: a real delivery or report travels through them as bytes.
"""

import pickle
from collections.abc import Sequence
from time import sleep
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray

SIZES = (10_000, 1_000_000, 10_000_000)  # bytes of a fragment, by the level of the curriculum
Sent = dict[str, Any]


class Setting:
    """What a run is built from: to the driver its configuration, and to the actors that it is sent to something else.

    Args:
        config: of the run.
        sent: what the actors are given.
    """

    def __init__(self, config: Any, sent: Sent) -> None:
        self.config, self._sent = config, sent

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self._sent,)


class StandInWeights(NamedTuple):
    """A version, and as many bytes as are to travel."""

    version: int
    payload: np.ndarray


class Pickled:
    """A named tuple that is one only where it arrives.

    Args:
        original: pickled.
        changes: to its fields.
    """

    def __init__(self, original: bytes, **changes: int) -> None:
        self._original, self._changes = original, changes

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self._original, self._changes)


def _arrived(original: bytes, changes: dict[str, int]) -> Any:
    return pickle.loads(original)._replace(**changes)


class ReadyWorker:
    """A `RolloutWorker` whose fragments are made before they are asked for: at level L, of `SIZES[L]` bytes."""

    def __init__(self, sent: Sent, worker: int, incarnation: int = 0) -> None:
        self._delivery, self._worker, self._incarnation = sent["delivery"], worker, incarnation
        self._version, self._policy, self._pause = -1, np.empty(0, np.uint8), sent["pause"]
        self._fragments = [pa.record_batch({"data": pa.array(np.zeros(size, np.uint8))}) for size in SIZES]

    def ready(self) -> bool:
        """See `RolloutWorker.ready`."""
        return True

    def collect(self, weights: StandInWeights, level: int) -> tuple[Pickled, pa.RecordBatch]:
        """See `RolloutWorker.collect`; weights that are new are copied, as into a policy."""
        sleep(self._pause)
        if weights.version != self._version:
            self._version, self._policy = weights.version, weights.payload.copy()
        fragment = self._fragments[level]
        changes = {"worker": self._worker, "version": weights.version, "nbytes": fragment.nbytes, "level": level}
        return Pickled(self._delivery, **changes, incarnation=self._incarnation), fragment


class ReadyLearner:
    """A `LearnerReplica` that maps its fragments and answers with the next version at once."""

    def __init__(self, sent: Sent, rank: int, size: int) -> None:
        self._report, self._version = sent["report"], 0

    def weights(self) -> StandInWeights:
        """See `LearnerReplica.weights`."""
        return StandInWeights(self._version, np.zeros(1000, np.uint8))

    def state(self) -> dict[str, np.ndarray]:
        """See `LearnerReplica.state`."""
        return {"version": np.array(self._version)}

    def update(self, fragments: Sequence[Any]) -> tuple[Pickled, StandInWeights]:
        """See `LearnerReplica.update`."""
        ray.get(list(fragments))
        self._version += 1
        return Pickled(self._report, version=self._version), self.weights()
