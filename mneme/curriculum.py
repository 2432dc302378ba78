"""The curriculum: easier forms of the task first, the next one once the present one is mastered."""

from collections import deque
from collections.abc import Iterable
from typing import Any

from mneme.distributed.settings import CurriculumSettings
from mneme.episodes import Episodes


class Curriculum:
    """Counts successes at the present level and says when the next one begins.

    Levels count from 0, the easiest stage, to the number of stages, the task itself.
    """

    def __init__(self, settings: CurriculumSettings) -> None:
        self._settings = settings
        self._recent: deque[bool] = deque(maxlen=settings.episodes)
        self.level = 0

    @property
    def complete(self) -> bool:
        """True if the task itself is being played."""
        return self.level == len(self._settings.stages)

    def advance(self, episodes: Iterable[Episodes]) -> bool:
        """Count the episodes that were played at the present level; whether a new level begins."""
        for played in episodes:
            if played.level == self.level:
                self._recent.extend(bool(success) for success in played.successes)
        enough = len(self._recent) == self._settings.episodes
        mastered = enough and sum(self._recent) >= self._settings.success * len(self._recent)
        if self.complete or not mastered:
            return False
        self.level += 1
        self._recent.clear()
        return True

    def state(self) -> dict[str, Any]:
        """The state that a resumed run needs, as JSON."""
        return {"level": self.level, "recent": list(self._recent)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where `state()` was taken."""
        self.level = state["level"]
        self._recent.clear()
        self._recent.extend(state["recent"])
