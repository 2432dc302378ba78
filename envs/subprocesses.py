"""One subprocess for each lane, from a fork server, so that the threads of Ray and torch here do not matter there."""

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import ModuleType
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from envs.facts import TaskFacts, facts_of
from envs.guard import ARRAYS, EnvironmentFailure, Guard

_SECONDS_TO_DIE = 5.0  # between a pipe that breaks and the end of the process behind it


class Subprocesses(AsyncVectorEnv):
    """Gymnasium's asynchronous vector environment with same-step autoreset, and an end when a subprocess dies.

    Args:
        single: makes one environment; it must be picklable, and is called once in this process too, to look at.
        num_envs: lanes.

    Raises:
        EnvironmentFailure: in making, `reset` or `step`: a subprocess is gone; the others are ended.
    """

    facts: TaskFacts | None

    def __init__(self, single: Callable[[], Guard], num_envs: int) -> None:
        probe = single()
        try:
            self.facts, shared_memory = facts_of(probe), _is_of_arrays(probe.observation_space)
        finally:
            probe.close()
        multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
        with _no_main_module(), self._watched():
            super().__init__(
                [single] * num_envs,
                context="forkserver",
                shared_memory=shared_memory,
                autoreset_mode=AutoresetMode.SAME_STEP,
            )

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every lane."""
        with self._watched():
            return super().reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        """Act in every lane."""
        with self._watched():
            return super().step(actions)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError) as error:
            gone = wait([process.sentinel for process in self.processes], _SECONDS_TO_DIE)
            codes = {i: process.exitcode for i, process in enumerate(self.processes) if process.sentinel in gone}
            for process in self.processes:
                process.terminate()
            self.closed = True  # closing it in the ordinary way would wait for answers that never come
            raise EnvironmentFailure(
                f"an environment's subprocess died (exit codes by lane: {codes}), and its last words, if any, are in "
                f"the log of standard error; mend the environment, or use env.vectorization=sync to see it fail here"
            ) from error


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Python runs the main module of a program again in each subprocess, which here may import torch and Ray, or, where
    it is a script without a guard, start the training a second time. Nothing in a lane needs it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _is_of_arrays(space: gym.Space[Any]) -> bool:
    """Whether the space's values fit into shared memory."""
    if isinstance(space, spaces.Dict):
        return all(map(_is_of_arrays, space.spaces.values()))
    if isinstance(space, spaces.Tuple):
        return all(map(_is_of_arrays, space.spaces))
    return isinstance(space, ARRAYS)
