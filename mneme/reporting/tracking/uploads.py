"""What of a run's files lies beside its record in an MLflow store, too. Called in the tracking thread."""

from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Any


def upload(client: Any, run_id: str, path: Path, folder: str) -> None:
    """Copy a file or a folder; under `folder`, what `path` no longer has beside it goes.

    A path that has gone meanwhile, or goes during the upload, is passed over: the store may have the only copy of
    what was beside it.
    """
    if not path.exists():
        return
    parts = [path]
    try:
        parts += path.rglob("*")
        if path.is_dir():
            client.log_artifacts(run_id, str(path), f"{folder}/{path.name}" if folder else path.name)
        else:
            client.log_artifact(run_id, str(path), folder or None)
        kept = {beside.name for beside in path.parent.iterdir()} if folder else set()
    except OSError:
        if all(part.exists() for part in parts):
            raise
        return
    if path.name in kept:
        _prune(client, run_id, kept, folder)


def _prune(client: Any, run_id: str, kept: Container[str], folder: str) -> None:
    artifacts = client._tracking_client._get_artifact_repo(run_id)
    for item in client.list_artifacts(run_id, folder):
        if Path(item.path).name not in kept:
            with suppress(NotImplementedError):  # a store that keeps everything
                artifacts.delete_artifacts(item.path)
