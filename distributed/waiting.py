"""Waiting: for what a cluster may not have, said every few seconds and not for ever; and how long who waited."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any

import ray
from ray._private import state
from ray.util import client

from mneme.distributed.runners import ServiceError

_log = logging.getLogger(__name__)

_SILENCE = 10.0  # seconds after which it is said that the run waits, and between such words


class Waiting:
    """One wait for parts of the run to be placed and to start.

    Args:
        limit: seconds after which the run ends, `service.wait_for_resources`.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._began = self._said = monotonic()

    def go_on(self, what: str, each: Mapping[str, float], remedy: str) -> None:
        """Say what is missing when that is due; to be called again and again while one waits.

        Args:
            what: is not there, such as "2 of 4 rollout actors".
            each: resources that one of them asks for.
            remedy: what to change where it never comes.

        Raises:
            ServiceError: the limit has passed.
        """
        now = monotonic()
        if now - self._began >= self._limit:
            raise ServiceError(
                f"{what} did not start within {self._limit:g} seconds (service.wait_for_resources): "
                f"{_shortage(each)}; {remedy}"
            )
        if now - self._said >= _SILENCE:
            self._said = now
            _log.info(f"waiting for {what}, {now - self._began:.0f} s so far: {_shortage(each)}")


def _shortage(each: Mapping[str, float]) -> str:
    """Each resource asked for, beside what Ray has of it."""
    present, free = ray.cluster_resources(), ray.available_resources()
    parts = [
        f"{amount:g} {name} for each, of {present.get(name, 0.0):g} in Ray, {free.get(name, 0.0):g} of them free"
        for name, amount in each.items()
        if amount
    ]
    return " and ".join(parts) or "they reserve nothing, so they are being started"


def has_process(actor: Any) -> bool:
    """True if an actor has a process, in which it may still be being built; through Ray's client nobody knows."""
    if client.ray.is_connected():
        return False
    return bool(state.actors(actor._actor_id.hex()).get("Pid"))


class Waits:
    """Seconds by who waited, until they are taken.

    Args:
        names: of those who wait.
    """

    def __init__(self, *names: str) -> None:
        self._seconds = dict.fromkeys(names, 0.0)

    def add(self, name: str, seconds: float) -> None:
        """Count so many more."""
        self._seconds[name] += seconds

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time within."""
        began = monotonic()
        try:
            yield
        finally:
            self.add(name, monotonic() - began)

    def taken(self) -> dict[str, float]:
        """What was counted since this was last asked."""
        seconds, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        return seconds
