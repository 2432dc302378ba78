"""The trajectory fragment: the one record that travels from a rollout worker to the learner.

A fragment holds B sequences of T steps, one Arrow row a sequence, in fixed-shape-tensor columns, and in list columns
what only some steps have. An Arrow record batch is serialised out of band, so readers on the same machine map it from
the object store without a copy, and the same schema can be written to Parquet.

Legend: B environments (one sequence each), T steps, S stored carries, F final observations, P steps of the past.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mneme.envs import LARGEST_OBSERVED
from mneme.rollout_workers.columns import from_column, from_lists, to_column, to_lists

SCHEMA_VERSION = 3
_GROUPS = {"observations": "observation.", "final_observations": "final.", "carries": "carry."}
"""Fields of named arrays, and their columns' prefix."""
_PAST = "past."  # prefix of the columns of `Past`, before the prefix of the group
_LISTS = _GROUPS["final_observations"]  # prefix of columns that hold a list a row
_OF_TASK = (_GROUPS["observations"], _GROUPS["final_observations"])  # prefixes of what the environment is to blame for
_PROVENANCE = ("worker", "lane", "first_step", "weights_version", "seed")
_DTYPES: dict[str, str] = {
    "log_probs": "float32", "values": "float32", "final_values": "float32", "rewards": "float32",
    "terminated": "bool", "truncated": "bool", "valid": "bool", "resets": "bool",
    "weights_version": "int64", "worker": "int64", "lane": "int64", "first_step": "int64", "seed": "uint64",
}  # fmt: skip


class FragmentError(ValueError):
    """A fragment that must not reach a loss; the message names the column, the value and where it came from."""


class Past(NamedTuple):
    """The P steps before a fragment's first, from which the learner renews the carries that entered it.

    `resets` is true at every step from before the lane began, and at its first: what such steps hold changes nothing.
    """

    observations: Mapping[str, np.ndarray]  # part -> [B, P, ...]
    resets: np.ndarray  # [B, P] bool
    carries: Mapping[str, np.ndarray]  # name -> [B, *carry], incoming at the first of these steps


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """B sequences of T steps and everything needed to train on them.

    `resets[:, t]` is true where `observations[:, t]` opens an episode: the carry is replaced by the initial carry
    *before* that observation is consumed. Stored carries are the *incoming* ones, before any reset is applied:
    `carries[name][:, s]` precedes step `s * carry_stride`.

    Where `valid` is false the environment did not act on the action (the filler step of next-step autoreset, or a
    failure that cut the episode): such a step belongs to no episode and must enter no sum. Therefore
    `resets[:, t + 1] == terminated[:, t] | truncated[:, t] | ~valid[:, t]`; `resets[:, 0]` continues from the fragment
    before, or in a row of packed episodes from where its first one was cut.
    """

    observations: Mapping[str, np.ndarray]  # part -> [B, T + 1, ...]; the last one bootstraps
    actions: np.ndarray  # [B, T, *action] int64 or float32, packed as the policy's action distribution packs them
    log_probs: np.ndarray  # [B, T] float32, of the behaviour policy
    values: np.ndarray  # [B, T + 1] float32
    final_values: np.ndarray  # [B, T] float32, V(true final observation) where cut short, else 0
    final_observations: Mapping[str, np.ndarray]  # part -> [F, ...], true final ones where cut short, lane by lane
    rewards: np.ndarray  # [B, T] float32
    terminated: np.ndarray  # [B, T] bool
    truncated: np.ndarray  # [B, T] bool
    valid: np.ndarray  # [B, T] bool
    resets: np.ndarray  # [B, T + 1] bool
    carries: Mapping[str, np.ndarray]  # name -> [B, S, *carry] with S = ceil(T / carry_stride)
    carry_stride: int  # steps between stored carries
    weights_version: np.ndarray  # [B] int64, the weights that acted; the oldest of them where episodes are packed
    worker: np.ndarray  # [B] int64
    lane: np.ndarray  # [B] int64, numbered over all workers; of the first step where episodes are packed
    first_step: np.ndarray  # [B] int64, the lane's step count at t = 0
    seed: np.ndarray  # [B] uint64, the lane's random key
    past: Past | None = None  # what came before, where it is wanted

    @property
    def num_envs(self) -> int:
        """Sequences in this fragment, B."""
        return int(self.actions.shape[0])

    @property
    def length(self) -> int:
        """Steps in each sequence, T."""
        return int(self.actions.shape[1])

    @property
    def steps(self) -> int:
        """Environment steps in this fragment: valid ones."""
        return int(self.valid.sum())

    @property
    def warm_up(self) -> int:
        """Steps of the past, P."""
        return 0 if self.past is None else int(self.past.resets.shape[-1])

    @property
    def cut_short(self) -> np.ndarray:
        """[B, T] bool, true at the F steps where an episode was truncated and not terminated.

        Its future is worth the value of its true final observation.
        """
        cut: np.ndarray = self.truncated & ~self.terminated
        return cut

    def validate(self) -> None:
        """Refuse a fragment whose shapes or types disagree, whose flags contradict each other, or that is not finite.

        Raises:
            FragmentError: one sentence naming the column, the value and the provenance.
        """
        if self.actions.ndim < 2 or not self.actions.size or self.actions.dtype.name not in ("int64", "float32"):
            raise FragmentError(
                f"the actions of a fragment are {self.actions.dtype} of shape {self.actions.shape}; "
                f"they must be int64 or float32 of shape (lanes, steps, ...), and some"
            )
        B, T = self.actions.shape[:2]
        columns = self._columns()
        # First what messages tell the origin by.
        expected: dict[str, tuple[int, ...]] = dict.fromkeys(_PROVENANCE, (B,))
        expected |= dict.fromkeys(("log_probs", "final_values", "rewards", "terminated", "truncated", "valid"), (B, T))
        expected |= dict.fromkeys(("values", "resets"), (B, T + 1))
        for name, shape in expected.items():
            self._require(name, columns[name], shape, _DTYPES[name], whole=True)
        for group, leading in (("observations", (B, T + 1)), ("carries", (B, -(-T // self.carry_stride)))):
            for name, array in getattr(self, group).items():
                self._require(_GROUPS[group] + name, array, leading, array.dtype.name)
        self._require_alike(_GROUPS["final_observations"], self.final_observations, (int(self.cut_short.sum()),))
        if self.past is not None:
            self._require_alike(_PAST + _GROUPS["observations"], self.past.observations, (B, self.warm_up))
            self._require(_PAST + "resets", self.past.resets, (B, self.warm_up), "bool", whole=True)
            self._require_alike(_PAST + _GROUPS["carries"], self.past.carries, (B,), self.carries)
        if not np.array_equal(self.resets[:, 1:], self.terminated | self.truncated | ~self.valid):
            raise FragmentError(
                f"the reset flags of a fragment from {self._origin(0)} disagree with its terminated, truncated and "
                f"valid flags; a reset must follow exactly the steps that end an episode"
            )
        if not self.valid.any():
            raise FragmentError(
                f"a fragment from {self._origin(0)} holds no valid step; check that the environment's episodes are "
                f"longer than one step"
            )
        # First what the environment gave: from that all other numbers come that are not finite.
        for name in sorted(columns, key=lambda name: not name.startswith(_OF_TASK)):
            self._require_finite(name, columns[name])

    def _require(
        self, name: str, array: np.ndarray, leading: tuple[int, ...], dtype: str, *, whole: bool = False
    ) -> None:
        """Refuse an array of another type, or of a shape that does not begin with `leading`, or is not `whole`."""
        shape = array.shape if whole else array.shape[: len(leading)]
        if shape != leading or array.dtype.name != dtype:
            raise FragmentError(
                f"column {name} of a fragment from {self._origin(0)} has shape {array.shape} and type {array.dtype}; "
                f"it must {'be' if whole else 'begin with'} {leading} of {dtype}"
            )

    def _require_alike(
        self,
        prefix: str,
        arrays: Mapping[str, np.ndarray],
        leading: tuple[int, ...],
        like: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Refuse arrays [*leading, ...] that are not of the names, types and sizes of `like` [B, T, ...]."""
        like = self.observations if like is None else like
        if arrays.keys() != like.keys():
            raise FragmentError(
                f"a fragment from {self._origin(0)} has columns {prefix}* for {sorted(arrays)}; "
                f"they must be for {sorted(like)}"
            )
        for name, array in like.items():
            shape = (*leading, *array.shape[2:])
            self._require(prefix + name, arrays[name], shape, array.dtype.name, whole=True)

    def _require_finite(self, name: str, array: np.ndarray) -> None:
        if array.dtype.kind != "f":
            return
        with np.errstate(over="ignore", invalid="ignore"):
            # A sum of squares is finite only if every term is: one cheap pass before the exact one.
            if np.isfinite(np.vdot(array, array)):
                return
            observed = name.removeprefix(_PAST).startswith(_OF_TASK)
            usable = np.abs(array) <= LARGEST_OBSERVED if observed else np.isfinite(array)
        if usable.all():
            return
        where = tuple(int(i) for i in np.argwhere(~usable)[0])
        row = int(np.nonzero(self.cut_short)[0][where[0]]) if name.startswith(_LISTS) else where[0]
        remedy = "lower learner.learning_rate, or mneme check the controller"
        if observed or name == "rewards":
            remedy = "check the environment"
        if observed:
            remedy += f": what is observed must be finite and at most {LARGEST_OBSERVED:.1e}, or its square overflows"
        raise FragmentError(
            f"column {name} of a fragment from {self._origin(row)} holds {array[where]} at index {where}; {remedy}"
        )

    def _origin(self, row: int) -> str:
        if any(array.ndim != 1 or len(array) <= row for array in (self.worker, self.lane, self.first_step)):
            return "an unknown worker"
        return f"worker {self.worker[row]}, lane {self.lane[row]}, step {self.first_step[row]}"

    def to_arrow(self) -> pa.RecordBatch:
        """This fragment as an Arrow record batch of B rows, sharing memory with the arrays where Arrow allows."""
        columns = self._columns()
        counts = self.cut_short.sum(1)
        arrays = [
            to_lists(column, counts) if name.startswith(_LISTS) else to_column(column)
            for name, column in columns.items()
        ]
        schema = pa.schema(
            [
                pa.field(name, array.type, nullable=False, metadata={"dtype": column.dtype.name})
                for (name, column), array in zip(columns.items(), arrays, strict=True)
            ],
            metadata={"schema_version": str(SCHEMA_VERSION), "carry_stride": str(self.carry_stride)},
        )
        return pa.record_batch(arrays, schema=schema)

    def _columns(self) -> dict[str, np.ndarray]:
        plain = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*_GROUPS, "carry_stride", "past")
        }
        named = {prefix + name: a for group, prefix in _GROUPS.items() for name, a in getattr(self, group).items()}
        if self.past is not None:
            named[_PAST + "resets"] = self.past.resets
            for group in ("observations", "carries"):
                named |= {_PAST + _GROUPS[group] + name: a for name, a in getattr(self.past, group).items()}
        return plain | named

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch) -> "Fragment":
        """The fragment in a record batch, as read-only views of the batch's memory.

        Raises:
            FragmentError: another schema version, or a column that is missing or cannot be read.
        """
        with _readable():
            metadata = {key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()}
        version = metadata.get("schema_version")
        if version != str(SCHEMA_VERSION):
            raise FragmentError(
                f"the fragment has schema version {version} and this code reads version {SCHEMA_VERSION}; "
                f"run the same release of Mneme everywhere"
            )
        with _readable():
            stride = int(metadata["carry_stride"])
            if stride < 1:
                raise ValueError(f"carry_stride is {stride}")
            lists = {field.name: field for field in batch.schema if field.name.startswith(_LISTS)}
            columns: dict[str, Any] = {
                field.name: from_column(batch.column(field.name), field)
                for field in batch.schema
                if field.name not in lists
            }
            past = {name.removeprefix(_PAST): columns.pop(name) for name in list(columns) if name.startswith(_PAST)}
            groups: dict[str, Any] = {group: _taken(columns, prefix) for group, prefix in _GROUPS.items()}
        wanted = {field.name for field in fields(cls)} - {*_GROUPS, "carry_stride", "past"}
        if set(columns) != wanted or not groups["observations"]:
            raise FragmentError(
                f"the fragment lacks columns {sorted(wanted - set(columns))} and has unknown columns "
                f"{sorted(set(columns) - wanted)}, with {len(groups['observations'])} of observations; "
                f"run the same release of Mneme everywhere"
            )
        with _readable():
            counts = (columns["truncated"] & ~columns["terminated"]).sum(1)
            for name, field in lists.items():
                part = name.removeprefix(_LISTS)
                like = groups["observations"][part]
                groups["final_observations"][part] = from_lists(batch.column(name), field, counts, like.shape[2:])
            if past:
                earlier = {group: _taken(past, _GROUPS[group]) for group in ("observations", "carries")}
                groups["past"] = Past(resets=past.pop("resets"), **earlier)
                if past:
                    raise ValueError(f"there are unknown columns {sorted(past)} of the past")
        return cls(carry_stride=stride, **groups, **columns)


@contextmanager
def _readable() -> Iterator[None]:
    """Raise errors inside this context as a `FragmentError`: the columns read here may have been written by anybody."""
    try:
        yield
    except (pa.ArrowException, ValueError, TypeError, LookupError, AttributeError) as error:
        raise FragmentError(
            f"the fragment cannot be read ({type(error).__name__}: {' '.join(str(error).split())}); "
            f"run the same release of Mneme everywhere"
        ) from None


def _taken(columns: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The columns of a prefix, without it, taken out of the others."""
    return {name.removeprefix(prefix): columns.pop(name) for name in list(columns) if name.startswith(prefix)}
