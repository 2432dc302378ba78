"""Runs of MLflow's that gather others: that of a sweep has its trials as children, and in the end its results.

Every function calls the store and may raise.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mneme.reporting.tracking import database
from mneme.reporting.tracking.client import client_of
from mneme.reporting.tracking.names import NAME_CHARACTERS, clean_name, clean_text
from mneme.reporting.tracking.settings import TrackingSettings, sqlite_file
from mneme.reporting.tracking.uploads import upload

CHILD_TAG = "mlflow.parentRunId"  # MLflow's own, of a child
_PARENT_TAG = "mneme.parent"  # the name under which a parent is found again


def parent_of(client: Any, experiment_id: str, name: str) -> str:
    """The identifier of the run of this name that gathers others; made, if there is none.

    In a SQLite file one process at a time looks for it. Of several that were made in another store at the same time all
    processes take the first, and each takes its own away.
    """
    file = sqlite_file(client.tracking_uri)
    with nullcontext() if file is None else database.one_at_a_time(file.with_name(f".{file.name}.lock")):
        return _found_or_made(client, experiment_id, name)


def _found_or_made(client: Any, experiment_id: str, name: str) -> str:
    found = _parents(client, experiment_id, name)
    own = None
    if not found:
        shown = clean_text(name, NAME_CHARACTERS)
        own = client.create_run(experiment_id, run_name=shown, tags={_PARENT_TAG: name}).info.run_id
        client.set_terminated(own, "FINISHED")  # nothing trains in it
        found = _parents(client, experiment_id, name)
    first = min((run.info.start_time, run.info.run_id) for run in found)[1]
    if own is not None and own != first:
        client.delete_run(own)
    return str(first)


def _parents(client: Any, experiment_id: str, name: str) -> Sequence[Any]:
    found: Sequence[Any] = client.search_runs([experiment_id], f"tags.`{_PARENT_TAG}` = '{name}'")
    return found


def add_to_parent(settings: TrackingSettings, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
    """Give the run that gathers others what they came to, once there is one of them.

    Args:
        settings: of the children.
        metrics: to be shown; those of an earlier time are replaced.
        files: to lie beside it.
    """
    if not settings.enabled or settings.parent is None:
        return
    client = client_of(settings.uri)
    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None or experiment.lifecycle_stage != "active":
        return
    parent = parent_of(client, experiment.experiment_id, settings.parent)
    for name, value in metrics.items():
        client.log_metric(parent, clean_name(name), value)
    for path in files:
        upload(client, parent, path, "")
