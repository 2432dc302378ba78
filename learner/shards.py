"""A minibatch shared out: the gradients of its shards, computed side by side.

It is done by threads, and once that has taken long enough to be worth a process's start, all but the first shard by
processes. A thread computes what a process does too until that has given the same bits, so that nothing depends on
which of them it was.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter
from typing import Literal, NamedTuple, TypeVar
from weakref import finalize

import torch
from torch import Tensor

from mneme.controllers import Policy
from mneme.learner.batch import SequenceBatch
from mneme.learner.flat import FlatParameters
from mneme.learner.gradients import ShardResult, shard_gradients
from mneme.learner.returns import Returns
from mneme.learner.settings import LearnerSettings
from mneme.learner.shard_process import ShardProcess, ShardProcessError
from mneme.learner.shared_memory import AVAILABLE, SharedMemory

_WORTH_IT = 5.0  # seconds that shards have taken; the start of a process takes two to three of a core
_SHORT = 3e-3  # seconds; threads lose about four to each other's hold of Python's lock
_State = Literal["threads", "starting", "trying", "processes"]
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Shared(NamedTuple):
    """A shard's result, and its gradient as a vector of `FlatParameters`, good until the next minibatch."""

    result: ShardResult
    gradient: Tensor


class Shards:
    """Those who compute.

    Args:
        policy: what is trained.
        flat: its parameters.
        num_threads: shards of a minibatch; one on a GPU.
    """

    def __init__(self, policy: Policy, flat: FlatParameters, num_threads: int) -> None:
        self._policy, self._flat, self.num_threads = policy, flat, num_threads
        self._names = [name for name, _ in policy.named_parameters()]
        # Torch's thread count is a thread's own: without this a shard's matrix products would take every core, and how
        # they are split, and so the last bits, would differ from machine to machine.
        self._pool = ThreadPoolExecutor(
            num_threads, thread_name_prefix="learner-thread", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._state: _State = "threads"
        self._alone = num_threads == 1 or not AVAILABLE
        self._seconds = 0.0
        self._processes: list[ShardProcess] = []
        self._told = False  # whether the processes know of this update
        self._short: bool | None = None  # whether shards of this update are
        self._tried: list[Tensor] = []  # gradients that they are to find too

    def map(self, work: Callable[[Tensor], T], shares: Sequence[Tensor]) -> list[T]:
        """`work` on each share, by threads; results in the order of the shares."""
        return list(self._pool.map(work, shares))

    def new_update(self) -> None:
        """Batch, returns or the policy's statistics may have changed."""
        self._told, self._short = False, None

    def gradients(
        self, s: LearnerSettings, batch: SequenceBatch, returns: Returns, shares: Sequence[Tensor], count: int
    ) -> list[Shared]:
        """`shard_gradients` of each share, in their order."""
        began = perf_counter()

        def work(rows: Tensor) -> Shared:
            result = shard_gradients(self._policy, s, batch, returns, rows, count)
            return Shared(result, self._flat.joined(dict(zip(self._names, result.gradients, strict=True))))

        try:
            asked = self._ask(s, batch, returns, shares[1:], count)
            if asked and self._state == "processes":
                found = [self._here(work, shares[0])]
                found += [Shared(process.result(), process.gradient) for process in asked]
            else:
                found = self._by_threads(work, shares)
        except ShardProcessError as error:
            self._give_up(str(error))
            found = self._by_threads(work, shares)
        if self._state == "trying" and asked:
            self._tried = [shared.gradient for shared in found[1:]]
        self._seconds += perf_counter() - began
        return found

    def _by_threads(self, work: Callable[[Tensor], Shared], shares: Sequence[Tensor]) -> list[Shared]:
        """`map`, or one after the other where shards are short; those of an update's first minibatch show whether."""
        if len(shares) == 1 or self._short is not False:
            found = [self._here(work, share) for share in shares]
            longest = max((sum(shared.result.seconds.values()) for shared in found), default=0.0)
            self._short = longest < _SHORT
            return found
        return self.map(work, shares)

    def _here(self, work: Callable[[Tensor], T], share: Tensor) -> T:
        """`work` in this thread, as one of the pool does it."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return work(share)
        finally:
            torch.set_num_threads(before)

    def _ask(
        self, s: LearnerSettings, batch: SequenceBatch, returns: Returns, shares: Sequence[Tensor], count: int
    ) -> list[ShardProcess]:
        """The processes that have begun with these shares; none, or one a share.

        Raises:
            ShardProcessError: one has ended.
        """
        # Stored carries of every window are left where they lie, and not handed round.
        if self._alone or not shares or s.plan(batch.length).window < batch.length:
            return []
        if self._state == "threads" and self._seconds >= _WORTH_IT:
            self._start()
        if self._state == "threads" or not (self._state == "processes" or self._answered()):
            return []
        processes = self._processes[: len(shares)]
        if not self._told:
            given = self._arrays.put(
                (s, replace(batch, final_observations={}, past=None), returns, dict(self._policy.named_buffers()))
            )
            for process in self._processes:
                process.update(given)
            self._told = True
        of_minibatch = returns if s.normalize_advantages == "minibatch" else None
        for process, rows in zip(processes, shares, strict=True):
            process.begin(self._flat, of_minibatch, rows, count)
        return processes

    def _answered(self) -> bool:
        """True if all that was asked has been answered, by which the processes come from one state to the next."""
        asked = self._processes[: len(self._tried)] if self._state == "trying" else self._processes
        if not all(process.answered() for process in asked):
            return False
        for process in asked:
            process.result()
        if self._state == "starting":
            self._state = "trying"
        elif all(torch.equal(process.gradient, gradient) for process, gradient in zip(asked, self._tried, strict=True)):
            self._state = "processes"
        else:
            raise ShardProcessError("its gradients are not those of a thread")
        return True

    def _start(self) -> None:
        try:
            self._arrays = SharedMemory()
            for _ in range(self.num_threads - 1):
                self._processes.append(ShardProcess(self._policy, self._flat, self._arrays))
                finalize(self, self._processes[-1].close)
            self._state = "starting"
        except Exception as error:  # be it memory, or a policy that cannot be sent
            self._give_up(f"it cannot be started: {type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        _log.warning(f"threads alone compute gradients, as of a process beside them is told: {reason}")
        for process in self._processes:
            process.close()
        self._processes, self._state, self._alone = [], "threads", True
