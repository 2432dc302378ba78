"""Listeners to what is logged under "mneme"."""

import logging
from typing import ClassVar

LOGGER = logging.getLogger("mneme")


class Listener(logging.Handler):
    """Hears everything from INFO on while it listens. With the last listener gone, the logger is as it was."""

    _all: ClassVar[list["Listener"]] = []
    _level_before: ClassVar[int] = logging.NOTSET

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def listen(self) -> None:
        """Begin, unless it has begun."""
        if self in self._all:
            return
        if not self._all:
            Listener._level_before = LOGGER.level
            LOGGER.setLevel(min(logging.INFO, LOGGER.level or logging.INFO))
        self._all.append(self)
        LOGGER.addHandler(self)

    def stop_listening(self) -> None:
        """End, if it has begun."""
        if self not in self._all:
            return
        self._all.remove(self)
        LOGGER.removeHandler(self)
        if not self._all:
            LOGGER.setLevel(self._level_before)
