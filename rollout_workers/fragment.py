"""The trajectory fragment: the one record that travels from a rollout worker to the learner.

A fragment holds B sequences of T steps, one Arrow row a sequence, in fixed-shape-tensor columns. An Arrow record batch
is serialised out of band, so readers on the same machine map it from the object store without a copy, and the same
schema can be written to Parquet.

Legend: B lanes (one sequence each), T steps, S stored carries.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 2
_GROUPS = {"observations": "observation.", "carries": "carry."}  # fields of named arrays, and their columns' prefix


class FragmentError(ValueError):
    """A fragment that must not reach a loss; the message names the column, the value and where it came from."""


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """B sequences of T steps and everything needed to train on them.

    `resets[:, t]` is true where `observations[:, t]` opens an episode: the carry is replaced by the initial carry
    *before* that observation is consumed. Stored carries are the *incoming* ones, before any reset is applied:
    `carries[name][:, s]` precedes step `s * carry_stride`.

    Where `valid` is false the environment did not act on the action (the filler step of next-step autoreset, or a
    failure that cut the episode): such a step belongs to no episode and must enter no sum. Therefore
    `resets[:, t + 1] == terminated[:, t] | truncated[:, t] | ~valid[:, t]`; `resets[:, 0]` continues from the fragment
    before.
    """

    observations: Mapping[str, np.ndarray]  # part -> [B, T + 1, ...]; the last one bootstraps
    actions: np.ndarray  # [B, T, *action] int64 or float32, packed as the policy's action head packs them
    log_probs: np.ndarray  # [B, T] float32, of the behaviour policy
    values: np.ndarray  # [B, T + 1] float32
    final_values: np.ndarray  # [B, T] float32, V(true final observation) where truncated, else 0
    rewards: np.ndarray  # [B, T] float32
    terminated: np.ndarray  # [B, T] bool
    truncated: np.ndarray  # [B, T] bool
    valid: np.ndarray  # [B, T] bool
    resets: np.ndarray  # [B, T + 1] bool
    carries: Mapping[str, np.ndarray]  # name -> [B, S, *carry] with S = ceil(T / carry_stride)
    carry_stride: int  # steps between stored carries
    weights_version: np.ndarray  # [B] int64, the weights that acted
    worker: np.ndarray  # [B] int64
    lane: np.ndarray  # [B] int64, numbered over all workers
    first_step: np.ndarray  # [B] int64, the lane's step count at t = 0
    seed: np.ndarray  # [B] uint64, the lane's random key

    @property
    def lanes(self) -> int:
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

    def validate(self) -> None:
        """Refuse a fragment whose shapes disagree, whose flags contradict each other, or that is not finite.

        Raises:
            FragmentError: one sentence naming the column, the value and the provenance.
        """
        B, T = self.actions.shape[:2]
        expected = {
            "log_probs": (B, T), "values": (B, T + 1), "final_values": (B, T), "rewards": (B, T),
            "terminated": (B, T), "truncated": (B, T), "valid": (B, T), "resets": (B, T + 1),
        }  # fmt: skip
        expected |= {_GROUPS["observations"] + name: (B, T + 1) for name in self.observations}
        expected |= {_GROUPS["carries"] + name: (B, -(-T // self.carry_stride)) for name in self.carries}
        columns = self._columns()
        for name, shape in expected.items():
            self._require_shape(name, columns[name], shape)
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
        for name, column in columns.items():
            self._require_finite(name, column)

    def _require_shape(self, name: str, array: np.ndarray, leading: tuple[int, ...]) -> None:
        if array.shape[: len(leading)] != leading:
            raise FragmentError(
                f"column {name} of a fragment from {self._origin(0)} has shape {array.shape}; "
                f"it must begin with {leading}"
            )

    def _require_finite(self, name: str, array: np.ndarray) -> None:
        # A sum is finite only if every term is (overflow aside): one cheap pass before the exact one.
        if array.dtype.kind != "f" or np.isfinite(array.sum(dtype=np.float64)):
            return
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        of_task = name == "rewards" or name.startswith(_GROUPS["observations"])
        remedy = "check the environment" if of_task else "lower learner.learning_rate, or mneme check the controller"
        raise FragmentError(
            f"column {name} of a fragment from {self._origin(where[0])} holds {array[where]} at index {where}; {remedy}"
        )

    def _origin(self, row: int) -> str:
        return f"worker {self.worker[row]}, lane {self.lane[row]}, step {self.first_step[row]}"

    def to_arrow(self) -> pa.RecordBatch:
        """This fragment as an Arrow record batch of B rows, sharing memory with the arrays where Arrow allows."""
        columns = self._columns()
        arrays = [_to_column(column) for column in columns.values()]
        schema = pa.schema(
            [
                pa.field(name, array.type, nullable=False, metadata={"dtype": column.dtype.name})
                for (name, column), array in zip(columns.items(), arrays, strict=True)
            ],
            metadata={"schema_version": str(SCHEMA_VERSION), "carry_stride": str(self.carry_stride)},
        )
        return pa.record_batch(arrays, schema=schema)

    def _columns(self) -> dict[str, np.ndarray]:
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*_GROUPS, "carry_stride")}
        named = {prefix + name: a for group, prefix in _GROUPS.items() for name, a in getattr(self, group).items()}
        return plain | named

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch) -> "Fragment":
        """The fragment in a record batch, as read-only views of the batch's memory.

        Raises:
            FragmentError: another schema version, or a column that is missing.
        """
        metadata = {key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()}
        version = metadata.get("schema_version")
        if version != str(SCHEMA_VERSION):
            raise FragmentError(
                f"the fragment has schema version {version} and this code reads version {SCHEMA_VERSION}; "
                f"run the same release of Mneme everywhere"
            )
        columns: dict[str, Any] = {field.name: _from_column(batch.column(field.name), field) for field in batch.schema}
        groups: dict[str, Any] = {
            group: {name.removeprefix(prefix): columns.pop(name) for name in list(columns) if name.startswith(prefix)}
            for group, prefix in _GROUPS.items()
        }
        wanted = {field.name for field in fields(cls)} - {*_GROUPS, "carry_stride"}
        if set(columns) != wanted or not groups["observations"]:
            raise FragmentError(
                f"the fragment lacks columns {sorted(wanted - set(columns))} and has unknown columns "
                f"{sorted(set(columns) - wanted)}, with {len(groups['observations'])} of observations; "
                f"run the same release of Mneme everywhere"
            )
        return cls(carry_stride=int(metadata["carry_stride"]), **groups, **columns)


def _to_column(array: np.ndarray) -> pa.Array:
    # Arrow packs booleans into bits, which numpy cannot view: flags travel as bytes.
    array = np.ascontiguousarray(array.view(np.uint8) if array.dtype == np.bool_ else array)
    return pa.array(array) if array.ndim == 1 else pa.FixedShapeTensorArray.from_numpy_ndarray(array)


def _from_column(column: pa.Array, field: pa.Field) -> np.ndarray:
    tensor = isinstance(column, pa.FixedShapeTensorArray)
    array = column.to_numpy_ndarray() if tensor else column.to_numpy(zero_copy_only=True)
    return array.view(np.bool_) if (field.metadata or {}).get(b"dtype") == b"bool" else array
