"""Runs that gather others: children find one parent by its name, and it takes what they came to."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mneme.reporting.tracking.database import prepare
from mneme.reporting.tracking.parents import CHILD_TAG, add_to_parent, parent_of
from mneme.reporting.tracking.settings import TrackingSettings
from mneme.reporting.tracking.store_run import Identity, StoreRun


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for the file, because making it takes seconds."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    prepare(file)
    return file


def settings_of(store: Path, parent: str | None, **changes: Any) -> TrackingSettings:
    return TrackingSettings(**{"uri": f"sqlite:///{store}", "system_metrics": False, "parent": parent} | changes)


def child(store: Path, name: str, parent: str | None) -> Any:
    run = StoreRun(settings_of(store, parent), Identity(name, store.parent / name, resumed=False))
    return run._client.get_run(run.id)


def test_children_have_the_parent_of_the_name_that_they_give(store: Path, tmp_path: Path) -> None:
    one, two, other, alone = (
        child(store, name, parent) for name, parent in (("a", "s"), ("b", "s"), ("c", "t"), ("d", None))
    )
    assert one.data.tags[CHILD_TAG] == two.data.tags[CHILD_TAG] != other.data.tags[CHILD_TAG]
    assert CHILD_TAG not in alone.data.tags
    picture = tmp_path / "sweep.png"
    picture.write_bytes(b"picture")
    add_to_parent(settings_of(store, "s"), {"evaluation/success": 0.75}, [picture])
    run = StoreRun(settings_of(store, None), Identity("e", store.parent / "e", resumed=False))
    parent = run._client.get_run(one.data.tags[CHILD_TAG])
    assert (parent.info.run_name, parent.info.status) == ("s", "FINISHED")
    assert parent.data.metrics == {"evaluation/success": 0.75}
    assert (store.parent / "mlartifacts" / parent.info.run_id / "artifacts" / "sweep.png").read_bytes() == b"picture"


def test_children_that_begin_at_once_agree_on_one_parent(store: Path) -> None:
    client = StoreRun(settings_of(store, None), Identity("f", store.parent / "f", resumed=False))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: parent_of(client._client, client._experiment_id, "at once"), range(4)))
    assert parent_of(client._client, client._experiment_id, "at once") in found
    left = client._client.search_runs([client._experiment_id], "tags.`mneme.parent` = 'at once'")
    assert len(left) == 1


def test_nothing_is_recorded_where_nothing_is_tracked(tmp_path: Path) -> None:
    add_to_parent(settings_of(tmp_path / "none.db", "s", enabled=False), {"x": 1.0}, [])
    add_to_parent(settings_of(tmp_path / "none.db", None), {"x": 1.0}, [])
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("parent", ["", "it's", 'a"b'])
def test_a_name_that_no_query_takes_is_refused(parent: str) -> None:
    with pytest.raises(ValueError, match="^tracking.parent is .*; give a name without quotes and backslashes"):
        TrackingSettings(parent=parent)
