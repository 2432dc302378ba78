"""An update whose gradients were not finite, kept beside a run's checkpoints so that it can be seen again.

runs/<name>/nonfinite/step-000000500000/  the learner before it as in a checkpoint, and fragment-0.arrow, ...
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from mneme.learner import FailedUpdate
from mneme.storage.checkpoint import CheckpointError, list_checkpoints, save_checkpoint
from mneme.storage.paths import explained, locate

_FOLDER = "nonfinite"


def save_failed_update(folder: Path, step: int, run: Mapping[str, Any], update: FailedUpdate) -> Path:
    """Write an update into a run's folder, in the place of one from before; returns where it is.

    Args:
        folder: of the run.
        step: environment steps before the update.
        run: the record that checkpoints hold too.

    Raises:
        OSError: it cannot be written, and what helps.
    """
    root = folder / _FOLDER
    with explained(root):
        before = list_checkpoints(root)  # perhaps of a later step, as the run has gone on from an earlier checkpoint
        path = save_checkpoint(root, step, run, {"learner": update.state}, keep=len(before) + 1)
        try:
            for number, batch in enumerate(update.batches):
                file = pa.OSFile(str(path / f"fragment-{number}.arrow"), "wb")
                with file, pa.ipc.new_file(file, batch.schema) as writer:
                    writer.write_batch(batch)
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
            raise
    for old in before:
        if old != path:
            shutil.rmtree(old, ignore_errors=True)
    return path


def find_failed_update(given: Path) -> tuple[Path, tuple[pa.RecordBatch, ...]]:
    """The folder and the fragments of the newest update that a path means: a run's folder, or what lies in it.

    Raises:
        CheckpointError: there is none, or its fragments cannot be read.
    """
    run, path = locate(given)
    if path is None:
        assert run is not None
        kept = list_checkpoints(run / _FOLDER) or list_checkpoints(run)
        if not kept:
            raise CheckpointError(f"no update of {given} was kept, as none has ended it; give a run that says so")
        path = kept[-1]
    files = sorted(path.glob("fragment-*.arrow"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise CheckpointError(f"{path} holds no fragments; give a run that ended because its gradients were not finite")
    try:
        return path, tuple(pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0) for file in files)
    except (pa.ArrowException, OSError, IndexError) as error:
        sentence = " ".join(str(error).split())
        raise CheckpointError(f"the fragments in {path} are damaged: {sentence}") from None
