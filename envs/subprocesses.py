"""One subprocess for each lane, from a fork server, so that the threads of Ray and torch here do not matter there."""

import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from types import ModuleType
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import _async_worker

from mneme.envs.facts import TaskFacts, facts_of
from mneme.envs.guard import ARRAYS, EnvironmentFailure, Guard, one_line

_SECONDS_TO_DIE = 5.0  # between a pipe that breaks and the end of the process behind it


class Subprocesses(AsyncVectorEnv):
    """Gymnasium's asynchronous vector environment with same-step autoreset, and an end when a subprocess dies.

    A lane may start processes of its own. It and they are a process group, which ends with this process.

    Args:
        lanes: each makes one environment; they must be picklable, and the first is called in this process too, to look
            at what it makes.
        spec: of the environment.

    Raises:
        EnvironmentFailure: in making, `reset` or `step`: a subprocess is gone; the others are ended.
    """

    facts: TaskFacts | None

    def __init__(self, lanes: Sequence[Callable[[], Guard]], spec: EnvSpec) -> None:
        groups: list[int] = []
        self._at_exit = Finalize(self, _end_groups, (groups,), exitpriority=0)
        probe = lanes[0]()
        try:
            self.facts, shared_memory = facts_of(probe), _is_of_arrays(probe.observation_space)
        finally:
            probe.close()
        multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
        with _no_main_module(), self._watched():
            super().__init__(
                lanes,
                context="forkserver",
                shared_memory=shared_memory,
                worker=_lane,  # type: ignore[arg-type]
                autoreset_mode=AutoresetMode.SAME_STEP,
            )
        self.spec = spec
        groups += [process.pid for process in self.processes if process.pid]

    def close_extras(self, **how: Any) -> None:  # type: ignore[override]
        """End the subprocesses; see Gymnasium's."""
        super().close_extras(**how)
        self._at_exit.cancel()

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every lane."""
        with self._watched():
            return super().reset(seed=seed, options=options)

    def step_async(self, actions: Any) -> None:
        """Act in every lane; they step while this process does something else."""
        with self._watched():
            super().step_async(actions)

    def step_wait(self, timeout: float | None = None) -> Any:
        """The results of `step_async`."""
        with self._watched():
            return super().step_wait(timeout)

    def _raise_if_errors(self, successes: Sequence[bool]) -> None:
        """See Gymnasium's, which besides prints the traceback of every lane: the error says what there is to say."""
        if not all(successes):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                super()._raise_if_errors(successes)  # type: ignore[arg-type]

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError) as error:
            gone = wait([process.sentinel for process in self.processes], _SECONDS_TO_DIE)
            codes = {i: process.exitcode for i, process in enumerate(self.processes) if process.sentinel in gone}
            for process in self.processes:
                process.terminate()
            _end_groups([process.pid for process in self.processes if process.pid])
            self.closed = True  # closing it in the ordinary way would wait for answers that never come
            raise EnvironmentFailure(
                f"an environment's subprocess died (exit codes by lane: {codes}), and its last words, if any, are in "
                f"the log of standard error; mend the environment, or use env.vectorization_mode=sync to see it fail "
                f"here"
            ) from error


def _lane(
    index: int, make: Callable[[], Guard], pipe: Any, parent_pipe: Any, memory: Any, errors: Any, mode: Any
) -> None:
    """Run one lane in a subprocess: Gymnasium's loop, with an environment that may start processes of its own."""
    os.setpgid(0, 0)  # a Ctrl-C in the terminal is for the main program, which then ends its lanes
    parent_pipe.close()
    os.register_at_fork(after_in_child=pipe.close)  # or the main program would wait for what is forked here, too
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    try:
        try:
            env = make()
        except BaseException as error:
            told = f"lane {index} cannot be made: {one_line(error)}"
            errors.put((index, EnvironmentFailure, told, traceback.format_exc()))
            pipe.recv()
            pipe.send((None, False))
            return
        with suppress(BrokenPipeError):  # the main program is gone
            _async_worker(index, lambda: env, pipe, parent_pipe, memory, errors, mode)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)


def _end_groups(pids: Sequence[int]) -> None:
    """End the lanes and what they started."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGTERM)


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Python runs the main module of a program again in each subprocess, which here may import torch and Ray, or, where
    it is a script without a guard, start the training a second time. Nothing in a lane needs it."""
    main = sys.modules["__main__"]
    without_origin = sys.modules["__main__"] = ModuleType("__main__")
    vars(without_origin).update({n: v for n, v in vars(main).items() if n not in ("__file__", "__spec__")})
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _is_of_arrays(space: gym.Space[Any]) -> bool:
    """True if the space's values fit into shared memory."""
    if isinstance(space, spaces.Dict):
        return all(map(_is_of_arrays, space.spaces.values()))
    if isinstance(space, spaces.Tuple):
        return all(map(_is_of_arrays, space.spaces))
    return isinstance(space, ARRAYS)
