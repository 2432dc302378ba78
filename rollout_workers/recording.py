"""Recording: complete episodes, cut out of consecutive fragments, as a Parquet file of one row an episode.

Legend: B environments or episodes (one row each), T steps of a row, L steps of an episode.
"""

import heapq
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from mneme.rollout_workers.fragment import Fragment

DESCRIPTION = b"recording"
"""The key of the schema's metadata that says what was recorded."""

_STEPS = ("actions", "log_probs", "final_values", "rewards", "terminated", "truncated", "valid", "carries")
_STEPS_AND_ONE = ("observations", "values", "resets")  # one step more than the others
_ROWS = ("weights_version", "worker", "lane", "first_step", "seed")

_LIMIT = 2**32  # bytes
_ROW_GROUP = 2**26  # bytes of padded rows that are made, and read, at once
_PROBE = bytes(2**16)  # what a disk that is not full can take

Combine = Callable[[list[np.ndarray], int], np.ndarray]


class _Recorded(NamedTuple):
    """One complete episode; the greatest is the one to keep."""

    rank: tuple[float, int, int]  # undiscounted return, minus the step at which it ended, minus the lane: never equal
    episode: Fragment  # [1, L]


class Recorder:
    """Keeps the complete episodes of one evaluation.

    In memory are the episodes that are kept, all of them or the `best`, and the running one of each lane. As every
    row of the file is as long as its longest episode, what is bounded is rows x longest x bytes a step, besides the
    running ones.

    Args:
        best: keep so many of highest return; of equal ones, those that finished first. Unset: keep all.
        limit: that bound, in bytes; one fragment may exceed it.
    """

    def __init__(self, best: int | None = None, limit: int = _LIMIT) -> None:
        self._best, self._limit = best, limit
        self._kept: list[_Recorded] = []
        self._running: dict[int, list[Fragment]] = {}  # row of the fragments -> the episode's pieces so far

    def add(self, fragment: Fragment, wanted_B: np.ndarray, initial: Mapping[str, np.ndarray]) -> None:
        """Take from the next fragment the episodes that end in it, of lane b at most `wanted_B[b]`.

        Steps that belong to no episode, and episodes that a failure cut short, are left out. The carry of an episode's
        first step becomes the `initial` one, name -> [*carry], which the reset puts there, instead of the last
        episode's.

        Raises:
            ValueError: the fragment does not hold the carry of every step, or there is more to hold than the limit.
        """
        if fragment.carry_stride != 1:
            raise ValueError(f"carry_stride is {fragment.carry_stride}; a recording needs 1, a carry at every step")
        for b in range(fragment.num_envs):
            self._add_lane(b, fragment, int(wanted_B[b]), initial)
        self._check_size(fragment)

    def _add_lane(self, b: int, fragment: Fragment, wanted: int, initial: Mapping[str, np.ndarray]) -> None:
        T, start = fragment.length, 0
        for stop in (*np.flatnonzero(fragment.resets[b, 1:]) + 1, T):
            if wanted and start < stop:
                pieces = self._running.setdefault(b, [])
                pieces.append(cut(fragment, b, start, stop))
                if fragment.resets[b, stop]:
                    episode = _joined(self._running.pop(b))
                    if episode.valid.all():
                        for name, carry in initial.items():
                            episode.carries[name][:, 0] = carry
                        self._keep(episode)
                        wanted -= 1
            start = stop

    def _keep(self, episode: Fragment) -> None:
        total = float(episode.rewards.sum(dtype=np.float64))
        end, lane = int(episode.first_step[0]) + episode.length, int(episode.lane[0])
        heapq.heappush(self._kept, _Recorded((total, -end, -lane), episode))
        if self._best is not None and len(self._kept) > self._best:
            heapq.heappop(self._kept)

    def _check_size(self, fragment: Fragment) -> None:
        running = sum(piece.length for pieces in self._running.values() for piece in pieces)
        if (len(self._kept) * self._longest + running) * _bytes_a_step(fragment) > self._limit:
            raise ValueError(
                f"the recording would hold more than {self._limit / 2**30:.3g} GiB, as {len(self._kept)} episodes of "
                f"up to {self._longest} steps; record fewer: lower best or episodes"
            )

    @property
    def _longest(self) -> int:
        return max((kept.episode.length for kept in self._kept), default=0)

    def write(self, file: BinaryIO, description: str) -> None:
        """Write the kept episodes, in the order in which they finished, or the best first.

        Raises:
            ValueError: there are none.
            OSError: the disk is full.
        """
        if not self._kept:
            raise ValueError("no complete episode was recorded; raise episodes")
        ordered = sorted(self._kept, reverse=True, key=lambda kept: kept.rank[self._best is None :])
        episodes = [kept.episode for kept in ordered]
        T = self._longest
        rows = max(1, int(_ROW_GROUP / (T * _bytes_a_step(episodes[0]))))
        schema = _stacked(episodes[:1], T).to_arrow().schema
        schema = schema.with_metadata({**schema.metadata, DESCRIPTION: description})
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for first in range(0, len(episodes), rows):
                group = _stacked(episodes[first : first + rows], T)
                group.validate()
                writer.write_batch(group.to_arrow())


@contextmanager
def recording(path: Path, description: str, best: int | None = None) -> Iterator[Recorder]:
    """A recorder whose episodes are in the Parquet file `path` once the block has ended well.

    Args:
        path: a file that does not exist yet.
        description: one line that says what is recorded; readers show it.
        best: see `Recorder`.

    Raises:
        OSError: the file exists, or cannot be written; as far as that can be known, at once.
    """
    with _new_file(path) as file:
        recorder = Recorder(best)
        yield recorder
        recorder.write(file, description)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path`, open for writing. It takes that place when the block ends, and vanishes where it fails."""
    if path.exists():
        raise FileExistsError(f"{path} exists already; name another file, or remove it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to; make it first")
    partial = path.with_name(f".partial-{path.name}-{os.getpid()}")
    try:
        with partial.open("xb") as file:
            _probe(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}; free some space, or name another file"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _probe(file: BinaryIO) -> None:
    """Find a full disk before there is anything to lose."""
    file.write(_PROBE)
    file.flush()
    os.fsync(file.fileno())
    file.truncate(0)
    file.seek(0)


def cut(fragment: Fragment, row: int, start: int, stop: int) -> Fragment:
    """A copy of the steps from `start` to before `stop` of one row of a fragment whose carry_stride is 1: [1, L]."""
    provenance: dict[str, Any] = {name: getattr(fragment, name)[row : row + 1].copy() for name in _ROWS}
    provenance["first_step"] += start
    rows, steps = np.nonzero(fragment.cut_short)
    inside = (rows == row) & (start <= steps) & (steps < stop)
    return replace(
        fragment, **provenance, past=None,
        final_observations={name: part[inside] for name, part in fragment.final_observations.items()},
        **_combined([fragment], lambda arrays, extra: arrays[0][row : row + 1, start : stop + extra].copy()),
    )  # fmt: skip


def _joined(pieces: list[Fragment]) -> Fragment:
    """One sequence [1, L] from its consecutive pieces; the step after a piece is the first of the next one."""

    def join(arrays: list[np.ndarray], extra: int) -> np.ndarray:
        return np.concatenate([*(array[:, : array.shape[1] - extra] for array in arrays[:-1]), arrays[-1]], axis=1)

    return replace(pieces[0], **_combined(pieces, join), final_observations=_all_finals(pieces))


def _stacked(episodes: list[Fragment], T: int) -> Fragment:
    """Episodes [1, L] of any lengths up to T as one fragment [B, T]; the steps beyond an episode's end are zeros."""

    def stack(arrays: list[np.ndarray], extra: int) -> np.ndarray:
        rows = np.zeros((len(arrays), T + extra, *arrays[0].shape[2:]), arrays[0].dtype)
        for row, array in zip(rows, arrays, strict=True):
            row[: array.shape[1]] = array[0]
        return rows

    provenance: dict[str, Any] = {
        name: np.concatenate([getattr(episode, name) for episode in episodes]) for name in _ROWS
    }
    fragment = replace(
        episodes[0], **_combined(episodes, stack), **provenance, final_observations=_all_finals(episodes)
    )
    fragment.resets[:, 1:] = fragment.terminated | fragment.truncated | ~fragment.valid
    return fragment


def _all_finals(fragments: list[Fragment]) -> dict[str, np.ndarray]:
    return {
        name: np.concatenate([fragment.final_observations[name] for fragment in fragments])
        for name in fragments[0].final_observations
    }


def _combined(fragments: list[Fragment], combine: Combine) -> dict[str, Any]:
    """Each field with a time axis: `combine` of the fragments' arrays, told how many steps it has beyond T (0 or 1)."""
    changes: dict[str, Any] = {}
    for name in (*_STEPS, *_STEPS_AND_ONE):
        extra = int(name in _STEPS_AND_ONE)
        columns = [getattr(fragment, name) for fragment in fragments]
        if isinstance(columns[0], Mapping):
            changes[name] = {key: combine([column[key] for column in columns], extra) for key in columns[0]}
        else:
            changes[name] = combine(columns, extra)
    return changes


def _bytes_a_step(fragment: Fragment) -> float:
    return fragment.to_arrow().nbytes / (fragment.num_envs * fragment.length)
