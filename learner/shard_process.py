"""A process that computes the gradients of a shard of every minibatch, beside the learner's own.

Threads share Python's lock: what lies between the compiled parts of two shards is done one after the other, and at
every change of hands a processor has to be woken up. A process has a lock of its own.
"""

import pickle
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from time import perf_counter
from typing import Any, NamedTuple
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

from mneme.learner.flat import FlatParameters
from mneme.learner.gradients import ShardResult, shard_gradients
from mneme.learner.returns import Returns
from mneme.learner.shared_memory import Put, SharedMemory

_SERVE = "import sys; sys.path[:] = {path!r}; from mneme.learner.shard_process import serve; serve(*{descriptors!r})"
_LOOKING = 2e-3  # seconds; to wake a processor up takes up to 0.3 ms, and between two minibatches lies 1 ms


class _Update(NamedTuple):
    given: Put  # settings, batch, returns, and the policy's statistics


class _Shard(NamedTuple):
    returns: Sequence[np.ndarray] | None  # of this minibatch alone
    rows: np.ndarray  # [n] of the batch
    steps: int  # of the minibatch


class ShardProcessError(RuntimeError):
    """The process has ended, or could not do what it was asked for."""


class ShardProcess:
    """The learner's end. Making it waits for nothing, and the process ends with the object, or with its parent.

    Args:
        policy: where it lies among the arrays, `pickled` with the names of its parameters, until there is an answer.
        flat: its parameters.
        arrays: where this process puts what belongs to an update.
    """

    gradient: Tensor
    """[numbers of all parameters], as in `FlatParameters`, of the newest result."""

    def __init__(self, policy: Put, flat: FlatParameters, arrays: SharedMemory) -> None:
        self._vectors, size = SharedMemory(), len(flat.gradient)
        self._weights, self.gradient = self._vectors.numbers(2 * size, flat.gradient).split(size)
        self._connection, there = Pipe()
        descriptors = there.fileno(), self._vectors.descriptor, arrays.descriptor
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE.format(path=sys.path, descriptors=descriptors)],
            pass_fds=descriptors, stdin=subprocess.DEVNULL, start_new_session=True,  # away from the keyboard's signals
        )  # fmt: skip
        there.close()
        self._end = finalize(self, _ended, self._connection, self._process)
        self._send(pickle.dumps(policy))

    def close(self) -> None:
        """End the process, whatever it does: it holds nothing."""
        self._end()

    def answered(self) -> bool:
        """True if `result` has nothing to wait for."""
        return self._connection.poll()

    def update(self, given: Put) -> None:
        """Take what belongs to an update: settings, batch, returns, and the policy's buffers by name."""
        self._send(pickle.dumps(_Update(given)))

    def begin(self, flat: FlatParameters, returns: Returns | None, rows: Tensor, count: int) -> None:
        """Ask for `shard_gradients` with the present weights, and with the update's returns or with others."""
        flat.read(self._weights)
        of_minibatch = None if returns is None else tuple(x.numpy() for x in returns)
        self._send(pickle.dumps(_Shard(of_minibatch, rows.numpy(), count)))

    def result(self, patience: float = 0.0) -> ShardResult:
        """The answer, when it is there: of what `begin` asked for, without the gradients; the first of all says that
        the process has started, and nothing else.

        Raises:
            ShardProcessError: there is none, or none after so many seconds.
        """
        try:
            answer: ShardResult | str = pickle.loads(_received(self._connection, patience))
        except TimeoutError:
            raise ShardProcessError(f"it has not answered for {patience:.0f} s") from None
        except (EOFError, OSError):
            raise self._gone() from None
        if isinstance(answer, str):
            raise ShardProcessError(answer)
        return answer

    def _send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except OSError:
            raise self._gone() from None

    def _gone(self) -> ShardProcessError:
        with suppress(subprocess.TimeoutExpired):  # it lets go of the connection shortly before it has ended
            self._process.wait(1.0)
        return ShardProcessError(f"it has ended, with status {self._process.returncode}")


def _ended(connection: Connection, process: subprocess.Popen[bytes]) -> None:
    connection.close()
    process.kill()
    process.wait()


def _received(connection: Connection, patience: float | None = None) -> bytes:
    """The next message, looked for again and again before it is waited for, so many seconds or for ever."""
    until = perf_counter() + _LOOKING
    while not connection.poll() and perf_counter() < until:
        pass
    if not connection.poll(patience):
        raise TimeoutError
    return connection.recv_bytes()


def serve(connection: int, vectors: int, arrays: int) -> None:
    """The other end: answer until the parent is gone. Arguments are descriptors."""
    torch.set_num_threads(1)  # as the learner's own threads have it
    parent = Connection(connection)
    try:
        _serve(parent, SharedMemory(vectors), SharedMemory(arrays))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass
    except Exception:
        with suppress(OSError):  # the parent is gone
            parent.send_bytes(pickle.dumps(traceback.format_exc(limit=-3)))


def _serve(parent: Connection, vectors: SharedMemory, arrays: SharedMemory) -> None:
    policy, names = pickle.loads(arrays.get(pickle.loads(parent.recv_bytes())))
    named: Mapping[str, Any] = dict(policy.named_parameters())
    flat = FlatParameters([{name: named[name] for name in group} for group in names])
    size = len(flat.gradient)
    weights, gradient = vectors.numbers(2 * size, flat.gradient).split(size)
    parent.send_bytes(pickle.dumps(ShardResult((), {}, 0.0, {})))
    while True:
        message: _Update | _Shard = pickle.loads(_received(parent))
        if isinstance(message, _Update):
            settings, batch, returns, buffers = arrays.get(message.given)
            for name, value in policy.named_buffers():
                value.copy_(buffers[name])
            continue
        flat.write(weights)
        own = Returns(*map(torch.from_numpy, message.returns)) if message.returns else returns
        result = shard_gradients(policy, settings, batch, own, torch.from_numpy(message.rows), message.steps)
        flat.joined(dict(zip(named, result.gradients, strict=True)), out=gradient)
        parent.send_bytes(pickle.dumps(result._replace(gradients=())))
