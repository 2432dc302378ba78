"""Reading a recording of `mneme evaluate --record`, and printing an episode of it. Only arrays are read, never code.

Legend: B episodes in the file, L steps of an episode.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mneme.reporting.display import NOTHING
from mneme.rollout_workers import Fragment
from mneme.rollout_workers.recording import DESCRIPTION, cut

_MOST_NUMBERS = 6  # that a cell shows of a vector
_MOST_FLAGS = 24
_WIDTH = 160  # columns where the output is no terminal


class Recording:
    """The episodes of one file; each is read when it is asked for.

    Args:
        path: what `mneme evaluate --record` wrote.

    Raises:
        ValueError: it is something else, or damaged.
    """

    description: str  # one line: the task, the weights and how they were run
    returns: np.ndarray  # [B] float64, undiscounted
    lengths: np.ndarray  # [B] int64, L of each episode

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"there is no file {path}; name one that mneme evaluate --record wrote")
        self._path = path
        with self._reading():
            self._file = pq.ParquetFile(path)
            self.description = _printable((self._file.schema_arrow.metadata or {})[DESCRIPTION].decode())
            groups = [self._group(i, ["rewards", "valid"]) for i in range(self._file.num_row_groups)]
            rewards = np.concatenate([group.column("rewards").to_numpy_ndarray() for group in groups])
            valid = np.concatenate([group.column("valid").to_numpy_ndarray() for group in groups]).astype(np.bool_)
            self.returns, self.lengths = rewards.sum(1, dtype=np.float64, where=valid), valid.sum(1)
            self._rows = [(i, row) for i, group in enumerate(groups) for row in range(group.num_rows)]

    def episode(self, index: int) -> Fragment:
        """One episode as a fragment [1, L] with the carry of every step.

        Raises:
            ValueError: there is no such episode, or it is damaged.
        """
        if not 0 <= index < len(self._rows):
            raise ValueError(f"--episode is {index}, but {self._path} holds episodes 0 to {len(self._rows) - 1}")
        with self._reading():
            group, row = self._rows[index]
            fragment = Fragment.from_arrow(self._group(group).slice(row, 1))
            fragment.validate()
            return cut(fragment, 0, 0, int(self.lengths[index]))

    def _group(self, index: int, columns: list[str] | None = None) -> pa.RecordBatch:
        (batch,) = self._file.read_row_group(index, columns=columns).combine_chunks().to_batches()
        return batch

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self._path} is no recording, or a damaged one ({' '.join(str(error).split())}); "
                f"write one with: mneme evaluate RUN --record FILE"
            ) from None


def show(recording: Recording, index: int | None, console: Console | None = None) -> None:
    """Print the steps of one episode, or, where none is chosen, what the file holds.

    Raises:
        ValueError: there is no such episode, or it is damaged.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    title = Text(f"{len(recording.returns)} episodes: {recording.description}")
    if index is None:
        console.print(title)
        summaries = zip(recording.returns, recording.lengths, strict=True)
        console.print(Columns([Text(f"{i}: return {r:.4g}, {n:,} steps") for i, (r, n) in enumerate(summaries)]))
        return
    episode = recording.episode(index)
    console.print(title)
    console.print(Text(f"episode {index}, lane {episode.lane[0]}, return {recording.returns[index]:.4g}", style="bold"))
    console.print(episode_table(episode))


def episode_table(episode: Fragment) -> Table:
    """One row a step of an episode [1, L].

    A carry has two columns: the norm of what enters the step, and of its change since the step before.
    """
    discrete = episode.actions.dtype.kind != "f"
    likelihoods = np.exp(episode.log_probs[0]) if discrete else episode.log_probs[0]
    columns = [
        ("step", [str(t) for t in range(episode.length)]),
        *((_printable(name), _cells(part[0, :-1])) for name, part in episode.observations.items()),
        ("action", _cells(episode.actions[0])),
        ("reward", [f"{reward:.4g}" for reward in episode.rewards[0]]),
        ("value", [f"{value:.3f}" for value in episode.values[0, :-1]]),
        ("probability" if discrete else "log-density", [f"{p:.3f}" for p in likelihoods]),
    ]
    for name, carry in episode.carries.items():
        entries = carry[0].reshape(episode.length, -1).astype(np.float64)
        columns.append((f"|{_printable(name)}|", [f"{norm:.3f}" for norm in np.linalg.norm(entries, axis=1)]))
        changes = np.linalg.norm(np.diff(entries, axis=0), axis=1)
        columns.append((f"Δ{_printable(name)}", [NOTHING, *(f"{change:.3f}" for change in changes)]))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name, _ in columns:
        table.add_column(Text(name), justify="right")
    for row in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*map(Text, row))
    return table


def _cells(steps: np.ndarray) -> list[str]:
    """A few words for the array of each step, [L, ...]."""
    return [_cell(array) for array in steps]


def _cell(array: np.ndarray) -> str:
    if array.ndim == 3:
        return f"{'×'.join(map(str, array.shape))} mean {array.mean():.3g}"
    numbers = array.ravel()
    if numbers.dtype == np.bool_:
        flags = "".join(map(str, numbers[:_MOST_FLAGS].astype(int)))
        return flags if numbers.size <= _MOST_FLAGS else f"{flags}… of {numbers.size}"
    if numbers.dtype.kind == "f" and numbers.size > 1:
        if not numbers.any():
            return "zeros"
        if np.count_nonzero(numbers) == 1 and numbers.max() == 1:
            return f"one-hot {numbers.argmax()}"
    text = " ".join(f"{number:.4g}" for number in numbers[:_MOST_NUMBERS])
    return text if numbers.size <= _MOST_NUMBERS else f"{text} … of {numbers.size}"


def _printable(text: str) -> str:
    """Without what could steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
