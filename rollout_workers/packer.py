"""The packer: fragments of T steps of every lane in, fragments of whole episodes end to end out.

Legend: B lanes, T steps of a row and of a collected fragment, R rows of a packed fragment, S stored carries of a row, L
steps of an episode or of a piece of one, N steps that wait, P pieces that wait.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from mneme.rollout_workers.fragment import Fragment
from mneme.rollout_workers.packing import best_fit, ripe
from mneme.rollout_workers.state import State, under
from mneme.rollout_workers.step_table import StepTable

_STORED = 32  # carries in T steps, at which an episode that is too long may be cut: 3 % of a row at most is lost
_SPARE = 8  # rows that may wait besides two a lane: with few lanes there is little to choose from
_COLUMNS = ("lane", "first_step", "length", "opens", "under_way")
_PIECES, _STEPS = "piece.", "step."  # prefixes of a state's arrays, by piece and by step


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive steps of one episode: all of them, or those since it was last cut."""

    lane: int  # counted within the worker
    first_step: int  # the lane's step count at the first of them
    opens: bool  # whether that is the episode's first
    steps: np.ndarray  # [L] int64, where they stand in the table
    following: int | None = None  # where the step after stands, if the episode was cut there

    def __len__(self) -> int:
        return len(self.steps)

    def split(self, at: int) -> "tuple[Piece, Piece]":
        """The first `at` steps, and those after."""
        return (
            replace(self, steps=self.steps[:at], following=int(self.steps[at])),
            Piece(self.lane, self.first_step + at, False, self.steps[at:]),
        )


class Packer:
    """Keeps what belongs to episodes that have not ended, and gives out rows of T steps of those that have.

    An episode that is longer than a row goes on in another one, which it opens: it is cut where its carry was stored,
    so as to fill up the row of an earlier one's last steps, or else as late as it fits. Steps that belong to no episode
    are dropped, but for the one at which a failure cut an episode, which shows what the step before it led to.

    Bounds, reached but never exceeded: of each lane wait at most T steps of an episode under way, and of all lanes
    (2 B + 8) T steps of episodes that have ended, in rows that are not filled well enough.

    Args:
        like: a fragment such as will be packed, with a carry stored every `stride_to_collect` steps; its contents do
            not matter.
        carry_stride: steps between the carries of a packed row.
    """

    def __init__(self, like: Fragment, carry_stride: int) -> None:
        self._length, self._stride, self._collected = like.length, carry_stride, like.carry_stride
        self._worker, self._first_lane = int(like.worker[0]), int(like.lane[0])
        self._seed_B = like.seed.copy()
        none = np.empty(0, np.int64)
        self._table = StepTable.of(like).take(none, none.astype(np.bool_))
        self._ended: list[Piece] = []  # oldest first
        self._open: dict[int, Piece] = {}  # by lane

    @property
    def most(self) -> int:
        """Steps of ended episodes that may wait."""
        return (2 * len(self._seed_B) + _SPARE) * self._length

    @property
    def waiting(self) -> tuple[int, int]:
        """Steps that wait, of ended episodes and of those under way."""
        return sum(map(len, self._ended)), sum(map(len, self._open.values()))

    def add(self, fragment: Fragment) -> Fragment | None:
        """Take the next fragment of all lanes; a fragment of R rows, or None where none is filled well enough."""
        table = self._table.joined(StepTable.of(fragment))
        ended, under_way = self._continued(fragment)
        long = self._cut(table, ended, under_way)
        waited = sum(int(piece.steps[-1]) < len(self._table) for piece in ended)
        lengths, tails = [len(piece) for piece in ended], [not piece.opens for piece in ended]
        found = best_fit(lengths, tails, self._length, waited)
        rows = [*long, *([ended[i] for i in row] for row in found)]
        chosen = ripe(
            [sum(map(len, row)) for row in rows], [0] * len(long) + [min(row) for row in found], self._length,
            least=len(self._seed_B) * self._length // 2, most=self.most,
        )  # fmt: skip
        packed = self._packed([rows[i] for i in chosen], table) if chosen else None
        left = {i for row in set(range(len(long), len(rows))) - set(chosen) for i in found[row - len(long)]}
        self._keep([ended[i] for i in sorted(left)], under_way, table)
        return packed

    def _continued(self, fragment: Fragment) -> tuple[list[Piece], dict[int, Piece]]:
        """What has ended with this fragment, oldest first, and what is under way after it."""
        B, T, before = fragment.num_envs, fragment.length, len(self._table)
        opens_BT = fragment.resets[:, :T]
        begins_BT = opens_BT.copy()
        begins_BT[:, 0] = True
        lanes, steps = np.nonzero(begins_BT)
        start = lanes * T + steps
        stop = np.append(start[1:], B * T)
        counted = np.add.reduceat(fragment.valid.reshape(-1).astype(np.int64), start) > 0
        over = fragment.resets[lanes, stop - lanes * T]
        first_step = fragment.first_step[lanes] + steps
        columns = (lanes, first_step, opens_BT[lanes, steps], start + before, stop + before, counted, over)
        ended, under_way = self._ended.copy(), self._open.copy()
        for lane, first, opens, begin, end, counts, ends in zip(*(column.tolist() for column in columns), strict=True):
            piece = Piece(lane, first, opens, np.arange(begin, end))
            if not opens and lane in under_way:
                earlier = under_way.pop(lane)
                piece = replace(earlier, steps=np.concatenate([earlier.steps, piece.steps]))
            elif not counts:
                continue
            if ends:
                ended.append(piece)
            else:
                under_way[lane] = piece
        return ended, dict(sorted(under_way.items()))

    def _cut(self, table: StepTable, ended: list[Piece], under_way: dict[int, Piece]) -> list[list[Piece]]:
        """Cut what is longer than a row; the rows that are full of it. What is left takes its place."""
        T, rows = self._length, []
        over = [piece for piece in ended if len(piece) > T]
        ended[:] = [piece for piece in ended if len(piece) <= T]
        for piece in (*over, *(piece for piece in under_way.values() if len(piece) > T)):
            rest = piece
            if piece.opens:
                first, rest, tail = self._first_part(table, piece, ended)
                rows.append([first] if tail is None else [ended.pop(tail), first])
            while len(rest) > T:
                first, rest = rest.split(T)
                rows.append([first])
            if under_way.get(piece.lane) is piece:
                under_way[piece.lane] = rest
            elif table.valid[rest.steps].any():  # not only the step at which a failure cut the episode
                ended.append(rest)
        return rows

    def _first_part(self, table: StepTable, piece: Piece, ended: list[Piece]) -> tuple[Piece, Piece, int | None]:
        """An episode that is too long cut as late as possible beside the oldest tail of another one, by its rank among
        what has ended: a tail has to open a row, and may find nothing else to fill it. Without any, in a whole row."""
        tails = [(rank, self._length - len(tail)) for rank, tail in enumerate(ended) if not tail.opens]
        for rank, room in (*tails, (None, self._length)):
            places = np.flatnonzero(table.stored[piece.steps[1 : room + 1]])
            if len(places):
                return (*piece.split(int(places[-1]) + 1), rank)
        raise AssertionError("an episode that is too long for a row holds no carry to go on from")

    def _packed(self, rows: Sequence[Sequence[Piece]], table: StepTable) -> Fragment:
        """Rows of pieces as a fragment. Where a row is not full, its last step stands again and again, not valid."""
        R, T = len(rows), self._length
        index, real = np.empty((R, T + 1), np.int64), np.zeros((R, T), np.bool_)
        for r, row in enumerate(rows):
            used = sum(map(len, row))
            index[r, :used] = np.concatenate([piece.steps for piece in row])
            real[r, :used] = True
            last = row[-1]
            index[r, used:] = last.steps[-1] if last.following is None else last.following
        steps = index[:, :T]
        valid = table.valid[steps] & real
        terminated, truncated = table.terminated[steps] & valid, table.truncated[steps] & valid
        cut = truncated & ~terminated
        lane = np.array([row[0].lane for row in rows])
        resets = np.empty((R, T + 1), np.bool_)
        resets[:, 0] = [row[0].opens for row in rows]
        resets[:, 1:] = terminated | truncated | ~valid
        return Fragment(
            observations={name: x[index] for name, x in table.observations.items()},
            actions=table.actions[steps],
            log_probs=table.log_probs[steps],
            values=table.values[index],
            final_values=np.where(cut, table.final_values[steps], np.float32(0)),
            final_observations=table.some("final_observations", steps[cut]),
            rewards=np.where(valid, table.rewards[steps], np.float32(0)),
            terminated=terminated,
            truncated=truncated,
            valid=valid,
            resets=resets,
            carries=self._carries(table, steps, valid & ~resets[:, :T]),
            carry_stride=self._stride,
            weights_version=np.where(real, table.weights_version[steps], np.iinfo(np.int64).max).min(1),
            worker=np.full(R, self._worker),
            lane=self._first_lane + lane,
            first_step=np.array([row[0].first_step for row in rows]),
            seed=self._seed_B[lane],
        )

    def _carries(self, table: StepTable, steps_RT: np.ndarray, needed_RT: np.ndarray) -> State:
        """The carries of rows, name -> [R, S, ...]: zeros where a reset follows at once, or nothing that counts."""
        at, needed = steps_RT[:, :: self._stride], needed_RT[:, :: self._stride]
        stored = table.stored[at]
        assert not (needed & ~stored).any(), "a carry that a row needs was not kept"
        carries = {}
        for name, found in table.some("carries", at[stored]).items():
            carries[name] = np.zeros((*at.shape, *found.shape[1:]), found.dtype)
            carries[name][stored] = found
        return carries

    def _keep(self, ended: list[Piece], under_way: dict[int, Piece], table: StepTable) -> None:
        """Keep the steps of these pieces, and of their carries those that may be asked for."""
        pieces = [*ended, *under_way.values()]
        lengths = [len(piece) for piece in pieces]
        index = np.concatenate([np.empty(0, np.int64), *(piece.steps for piece in pieces)])
        opens = np.array([piece.opens for piece in pieces], np.bool_)
        self._table = table.take(index, self._asked_for(lengths, opens, len(ended)))
        bounds = np.cumsum([0, *lengths])
        placed = [
            replace(piece, steps=np.arange(start, stop))
            for piece, (start, stop) in zip(pieces, pairwise(bounds.tolist()), strict=True)
        ]
        self._ended, self._open = placed[: len(ended)], {piece.lane: piece for piece in placed[len(ended) :]}

    def _asked_for(self, lengths: Sequence[int] | np.ndarray, opens: np.ndarray, ended: int) -> np.ndarray:
        """[N] bool: where a row may ask for the carry, of pieces of such lengths, of which `ended` have ended."""
        bounds = np.cumsum([0, *lengths])
        asked = np.full(bounds[-1], self._stride < self._length)
        asked[bounds[:-1][~opens]] = True  # a row opens there
        asked[bounds[ended] :] = True  # the episode may be cut there yet
        return asked

    def state(self) -> State:
        """All that waits, for `set_state`: arrays by step, and by piece."""
        pieces = [*self._ended, *self._open.values()]
        columns: State = {
            "lane": np.array([piece.lane for piece in pieces], np.int64),
            "first_step": np.array([piece.first_step for piece in pieces], np.int64),
            "length": np.array([len(piece) for piece in pieces], np.int64),
            "opens": np.array([piece.opens for piece in pieces], np.bool_),
            "under_way": np.arange(len(pieces)) >= len(self._ended),
        }
        pieces_of = {f"{_PIECES}{name}": column for name, column in columns.items()}
        return pieces_of | {f"{_STEPS}{name}": x.copy() for name, x in self._table.state().items()}

    def largest_state(self) -> State:
        """Arrays of the names, types and greatest lengths that `state` may give; their contents have no meaning."""
        most = self.most + len(self._seed_B) * self._length
        return {name: np.broadcast_to(np.zeros((), x.dtype), (most, *x.shape[1:])) for name, x in self.state().items()}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue where `state()` was taken.

        Raises:
            ValueError: its parts do not agree. Names, types and sizes of a step are taken to be right.
        """
        lane, first_step, length, opens, under_way = (state[f"{_PIECES}{name}"] for name in _COLUMNS)
        table, ended = self._table.like(under(_STEPS, state)), len(lane) - int(under_way.sum())
        bounds = np.cumsum([0, *length])
        if {len(first_step), len(length), len(opens), len(under_way)} != {len(lane)} or bounds[-1] != len(table):
            raise ValueError("the episodes that wait do not have the steps that wait")
        if ((lane < 0) | (lane >= len(self._seed_B)) | (length < 1) | (length > self._length)).any():
            raise ValueError("an episode that waits is of no lane, or does not fit into a row")
        for name, x in ({"first_step": first_step} | table.state()).items():
            if x.dtype.kind == "i" and (x < 0).any():
                raise ValueError(f"{name} of what waits holds {x.min()}; it must be at least 0")
        if under_way[:ended].any() or length[:ended].sum() > self.most or len(set(lane[ended:])) < len(lane) - ended:
            raise ValueError("more episodes wait than may, or in another order")
        last, starts = np.zeros(len(table), np.bool_), bounds[:-1]
        last[bounds[1 : ended + 1] - 1] = True
        step = np.arange(len(table)) + np.repeat(first_step - starts, length)
        known = (step % self._length % self._collected == 0) & self._asked_for(length, opens, ended)
        if not np.array_equal(table.done, last) or not np.array_equal(table.stored, known):
            raise ValueError("the episodes that wait do not end, or have no carries, where they should")
        if not table.stored[starts[~opens]].all():
            raise ValueError("an episode that waits goes on from a carry that is not there")
        self._table = table
        pieces = [
            Piece(int(lane[i]), int(first_step[i]), bool(opens[i]), np.arange(bounds[i], bounds[i + 1]))
            for i in range(len(lane))
        ]
        self._ended, self._open = pieces[:ended], {piece.lane: piece for piece in pieces[ended:]}

    def check_agrees(self, step: int, reset_B: np.ndarray) -> None:
        """See that the episodes under way are those of lanes that have taken `step` steps.

        Raises:
            ValueError: they are not.
        """
        ends = {piece.first_step + len(piece) for piece in self._open.values()}
        if sorted(self._open) != np.flatnonzero(~reset_B).tolist() or not ends <= {step}:
            raise ValueError("the episodes that wait are not those that the environments are in")


def stride_to_collect(length: int, carry_stride: int) -> int:
    """Steps between the carries of a collected fragment, so that every carry is there which a packed row may need.

    A row opens with any step at which an episode was cut; where its other carries are wanted too, they are anywhere.
    """
    return max(1, length // _STORED) if carry_stride >= length else 1
