"""A minibatch shared out: the gradients of its shards, by the way that is fastest.

One thread computes them in turn, threads side by side, or, once all that has taken long enough to be worth a process's
start, one thread and processes. A thread computes what a process does too until that has given the same bits, so that
nothing depends on the way.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mneme.controllers import Policy
from mneme.controllers.torch_globals import threads_kept
from mneme.learner.batch import SequenceBatch
from mneme.learner.flat import FlatParameters
from mneme.learner.gradients import ShardResult, shard_gradients
from mneme.learner.returns import Returns
from mneme.learner.settings import LearnerSettings
from mneme.learner.shard_process import ShardProcess, ShardProcessError
from mneme.learner.shared_memory import AVAILABLE, SharedMemory, free_memory, pickled

_WORTH_IT = 5.0  # seconds that shards have taken; the start of a process takes two to three of a core
_PROCESS = 400 * 10**6  # bytes that one takes, for torch and Mneme
_TRIED = 8  # updates after which every way is tried again
_PATIENCE, _SLOWER = 60.0, 10.0  # seconds, and times the first shard's, after which no answer is expected any more
_State = Literal["none", "starting", "trying", "trusted"]
_Way = Literal["in turn", "threads", "processes"]
_WAYS: tuple[_Way, ...] = ("in turn", "threads", "processes")
T = TypeVar("T")


class Shared(NamedTuple):
    """A shard's result, and its gradient as a vector of `FlatParameters`, good until the next minibatch."""

    result: ShardResult
    gradient: Tensor


class Minibatch(NamedTuple):
    """What `shard_gradients` is to be computed of."""

    settings: LearnerSettings
    batch: SequenceBatch
    returns: Returns
    shares: Sequence[Tensor]  # the sequences of each shard
    steps: int


class Shards:
    """Those who compute.

    Args:
        policy: what is trained.
        flat: its parameters.
        num_threads: shards of a minibatch; one on a GPU.
    """

    warnings: list[str]
    """What there is to be told; one sentence each."""

    def __init__(self, policy: Policy, flat: FlatParameters, num_threads: int) -> None:
        self.warnings = []
        self._policy, self._flat, self._num_threads = policy, flat, num_threads
        self._names = [name for name, _ in policy.named_parameters()]
        # Torch's thread count is a thread's own: without this a shard's matrix products would take every core, and how
        # they are split, and so the last bits, would differ from machine to machine.
        self._pool = ThreadPoolExecutor(
            num_threads, thread_name_prefix="learner-thread", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._updates, self._seconds = 0, 0.0
        self._took: dict[_Way, float] = {}  # seconds of a minibatch
        self._alone = num_threads == 1 or not AVAILABLE
        self._state: _State = "none"
        self._processes: list[ShardProcess] = []
        self._told = False  # whether they know of this update
        self._expected: list[Tensor] = []  # gradients that they are to find too

    def map(self, work: Callable[[Tensor], T], shares: Sequence[Tensor]) -> list[T]:
        """`work` on each share, by threads; results in the order of the shares."""
        return list(self._pool.map(work, shares))

    def new_update(self) -> None:
        """Batch, returns or the policy's statistics may have changed."""
        self._told = False
        if self._updates <= 1 or not self._updates % _TRIED:  # the first one compiles
            self._took.clear()
        self._updates += 1

    def gradients(self, minibatch: Minibatch) -> list[Shared]:
        """`shard_gradients` of each share, in their order."""
        try:
            return self._gradients(minibatch)
        except ShardProcessError as error:
            self._give_up(str(error))
            return self._gradients(minibatch)
        except BaseException:  # such as Ctrl-C: the answers that were not heard are none to the next minibatch
            self._end()
            raise

    def _gradients(self, minibatch: Minibatch) -> list[Shared]:
        usable = self._usable(minibatch)
        if usable and self._state == "trying":
            self._ask(minibatch)
        way, began = self._way(minibatch, usable and self._state == "trusted"), perf_counter()
        if way == "processes":
            asked = self._ask(minibatch)
            found = [self._in_turn(minibatch, minibatch.shares[0])]
            patience = _PATIENCE + _SLOWER * (perf_counter() - began)
            found += [Shared(process.result(patience), process.gradient) for process in asked]
        elif way == "threads":
            found = self.map(lambda rows: self._shard(minibatch, rows), minibatch.shares)
        else:
            found = [self._in_turn(minibatch, rows) for rows in minibatch.shares]
        took = perf_counter() - began
        self._seconds += took
        if len(minibatch.shares) > 1:
            self._took[way] = took
        if usable and self._state == "trying":
            self._expected = [shared.gradient for shared in found[1:]]
        return found

    def _way(self, minibatch: Minibatch, by_processes: bool) -> _Way:
        """One that has not been tried lately, or else the fastest."""
        if len(minibatch.shares) <= 1:
            return "in turn"
        ways = _WAYS if by_processes else _WAYS[:-1]
        return next((way for way in ways if way not in self._took), min(ways, key=lambda way: self._took.get(way, 0.0)))

    def _shard(self, minibatch: Minibatch, rows: Tensor) -> Shared:
        s, batch, returns, _, steps = minibatch
        result = shard_gradients(self._policy, s, batch, returns, rows, steps)
        return Shared(result, self._flat.joined(dict(zip(self._names, result.gradients, strict=True))))

    def _in_turn(self, minibatch: Minibatch, rows: Tensor) -> Shared:
        """`_shard` in this thread, as one of the pool does it."""
        with threads_kept(), torch.enable_grad():  # whatever the caller has
            torch.set_num_threads(1)
            return self._shard(minibatch, rows)

    def _usable(self, minibatch: Minibatch) -> bool:
        """True if processes have nothing to answer and can be asked; otherwise they may have come closer to it.

        Raises:
            ShardProcessError: one has ended, or finds something else.
        """
        s, batch = minibatch.settings, minibatch.batch
        # Stored carries of every window are left where they lie, and not handed round.
        if self._alone or len(minibatch.shares) <= 1 or s.plan(batch.length).window < batch.length:
            return False
        if self._state == "trusted":
            return True
        if self._state == "none":
            if self._seconds >= _WORTH_IT:
                self._start()
            return False
        asked = self._processes[: len(self._expected)] if self._state == "trying" else self._processes
        if not all(process.answered() for process in asked):
            return False
        for process in asked:
            process.result()
        if self._state == "starting":
            self._state = "trying"
        elif all(_same_bits(p.gradient, gradient) for p, gradient in zip(asked, self._expected, strict=True)):
            self._state, self._took, self._expected = "trusted", {}, []
        else:
            raise ShardProcessError("its gradients are not those of a thread")
        return True

    def _ask(self, minibatch: Minibatch) -> list[ShardProcess]:
        """The processes that have begun with all shards but the first, one each."""
        s, batch, returns, (_, *shares), steps = minibatch
        if not self._told:
            statistics = dict(self._policy.named_buffers())
            try:
                given = self._arrays.put((s, replace(batch, final_observations={}, past=None), returns, statistics))
            except Exception as error:  # be it memory, or a tensor that is no array
                raise ShardProcessError(f"it cannot have the batch: {type(error).__name__}: {error}") from error
            for process in self._processes:
                process.update(given)
            self._told = True
        of_minibatch = returns if s.normalize_advantages == "minibatch" else None
        asked = self._processes[: len(shares)]
        for process, rows in zip(asked, shares, strict=True):
            process.begin(self._flat, of_minibatch, rows, steps)
        return asked

    def _start(self) -> None:
        try:
            if free_memory() < 2 * _PROCESS * (self._num_threads - 1):
                raise MemoryError("it takes 400 MB")
            self._arrays = SharedMemory()
            policy = self._arrays.put(np.frombuffer(pickled((self._policy, self._flat.names)), np.uint8))
            for _ in range(self._num_threads - 1):
                self._processes.append(ShardProcess(policy, self._flat, self._arrays))
            self._state, self._told = "starting", False
        except Exception as error:  # be it memory, or a policy that cannot be sent
            self._give_up(f"it cannot be started: {type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        self.warnings.append(f"threads alone compute gradients, as of a process beside them is told: {reason}")
        self._end()
        self._alone = True

    def _end(self) -> None:
        processes, self._processes, self._expected, self._state = self._processes, [], [], "none"
        for process in processes:
            process.close()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """True for equal numbers, and for what is none in both."""
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))
