"""Where the steps went that were collected: none is trained twice, and none vanishes without a word."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mneme.distributed.replay import Held, Replay


class StepCounts(NamedTuple):
    """Environment steps since the process began: `collected` is the sum of all others, at every moment."""

    collected: int  # in fragments that arrived
    trained: int
    refused: int  # in fragments that were malformed, or went with their node, which may have undone their update
    dropped_stale: int  # thrown away because they fell behind the lag bound
    dropped_full: int  # thrown away because newer ones needed their bytes
    in_flight: int  # in the replay, or with the learner


class Accounts:
    """Keeps count of the steps that leave a replay.

    Args:
        replay: through which all of them pass.
    """

    def __init__(self, replay: Replay[Any]) -> None:
        self._replay = replay
        self._trained = self._refused = self._learning = 0

    def begin(self, fragments: Sequence[Held[Any]]) -> None:
        """An update of these begins."""
        self._learning = sum(fragment.steps for fragment in fragments)

    def end(self, trained: int) -> None:
        """It has ended, and trained on so many steps; 0 if it did not take place."""
        self._trained += trained
        self._refused += self._learning - trained
        self._learning = 0

    def steps(self, unlearned: int) -> StepCounts:
        """The counts now, where so many steps that were trained on have been lost again; see `Condition`."""
        of, trained, refused = self._replay.steps, self._trained - unlearned, self._refused + unlearned
        return StepCounts(of.added, trained, refused, of.dropped_stale, of.dropped_full, of.waiting + self._learning)
