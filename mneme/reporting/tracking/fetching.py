"""Agents that are named by MLflow's URIs: models:/NAME/VERSION, models:/NAME@ALIAS, models:/ID, runs:/RUN/NAME.

Nothing of what is fetched is run: an agent is a checkpoint, and is loaded as any other.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mneme.configuration.passwords import without_password
from mneme.reporting.tracking.client import client_of, hush
from mneme.reporting.tracking.settings import TrackingSettings, absolute_uri, sqlite_file
from mneme.storage.checkpoint import CheckpointError, list_checkpoints, step_of
from mneme.storage.paths import MANIFEST

_URI = re.compile(r"(?P<kind>models|runs):/+(?P<rest>.+)")

_ARTIFACTS = "artifacts"  # folder of an MLflow model
_fetched: list[TemporaryDirectory[str]] = []  # as long as this process lives, as agents say where they are from


def fetched_from_mlflow(given: Path) -> Path:
    """A path that is used as it is, or the checkpoint that one of MLflow's URIs names, in a folder of this machine.

    The store is the one that MLflow is set to, by `MLFLOW_TRACKING_URI` or `mlflow.set_tracking_uri`, or else the one
    that runs are recorded in here.

    Raises:
        CheckpointError: the store has no such thing, or it is no agent; one sentence.
    """
    found = None if given.exists() else _URI.fullmatch(str(given))
    if found is None:
        return given
    uri = f"{found['kind']}:/{found['rest']}"
    folder = TemporaryDirectory(prefix="mneme-")
    store = _store()
    try:
        place = _fetch(client_of(store), found["kind"], found["rest"].rstrip("/"), store, folder.name)
    except ImportError:
        raise
    except Exception as error:  # of the store's, of its database's, of its network's
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{uri} cannot be had from {without_password(store)} ({reason})") from None
    _fetched.append(folder)
    if (place / MANIFEST).is_file():
        return place
    checkpoints = [path for parent in (place / _ARTIFACTS, place) for path in list_checkpoints(parent)]
    if not checkpoints:
        raise CheckpointError(
            f"{uri} in {without_password(store)} is no agent of Mneme; give a model that a run has logged"
        )
    return max(checkpoints, key=step_of)


def _store() -> str:
    """The URI of the store.

    Raises:
        CheckpointError: it is a file that is not there.
    """
    hush()
    from mlflow import get_tracking_uri
    from mlflow.tracking import is_tracking_uri_set

    uri = str(get_tracking_uri()) if is_tracking_uri_set() else absolute_uri(TrackingSettings.uri)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise CheckpointError(f"there is no MLflow store at {file}; name yours by MLFLOW_TRACKING_URI")
    return uri


def _fetch(client: Any, kind: str, rest: str, store: str, folder: str) -> Path:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    if kind == "models":
        named = get_model_name_and_version(client, f"models:/{rest}")
        registered = len(named) > 1
        place = (
            client.get_model_version_download_uri(*named)
            if registered
            else client.get_logged_model(*named).artifact_location
        )
    else:
        run_id, _, name = rest.partition("/")
        experiments, of_run = [client.get_run(run_id).info.experiment_id], f"source_run_id = '{run_id}'"
        models = client.search_logged_models(experiments, f"name = '{name}' AND {of_run}", max_results=1)
        if not models:
            return Path(client.download_artifacts(run_id, name, folder))
        place = models[0].artifact_location
    return Path(get_artifact_repository(place, tracking_uri=store).download_artifacts("", folder))
