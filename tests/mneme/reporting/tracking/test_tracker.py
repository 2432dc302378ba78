"""Tracking: a round trip through a local store, resuming, and stores that fail."""

import json
import logging
import math
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mneme.reporting.tracking import store_run, tracker
from mneme.reporting.tracking.groups import stored_name
from mneme.reporting.tracking.metrics_file import MetricsFile
from mneme.reporting.tracking.settings import TrackingSettings
from mneme.reporting.tracking.store_run import Identity
from mneme.reporting.tracking.tracker import Tracker
from mneme.storage.run_folder import RunFolder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One SQLite store for the file, because creating its tables takes seconds."""
    return tmp_path_factory.mktemp("store") / "nested" / "mlflow.db"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """The folder of one run."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def settings_of(store: Path, **changes: Any) -> TrackingSettings:
    return TrackingSettings(**{"uri": f"sqlite:///{store}", "system_metrics": False} | changes)


def client_of(store: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{store}")


def history(store: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client_of(store).get_metric_history(run_id, stored_name(key)))


def identity_of(folder: RunFolder, resumed: bool = False, key: str | None = None) -> Identity:
    return Identity(key or folder.path.parent.name, folder.path, resumed)


def record(
    store: Path, folder: RunFolder, rows: Mapping[int, float], *, resumed_at: int | None = None,
    params: Mapping[str, Any] | None = None, key: str | None = None, **changes: Any,
) -> str:  # fmt: skip
    """A run that writes and tracks these returns; its identifier in MLflow."""
    tracker = Tracker(
        settings_of(store, **changes), identity_of(folder, resumed_at is not None, key), params=params or {}
    )
    if resumed_at is not None:
        folder.rewind(resumed_at)
    tracker.follow(folder.metrics, resumed_at)
    for step, value in rows.items():
        folder.append(step, {"return": value})
    run_id = tracker.run_id(timeout=60)
    tracker.close("FINISHED", timeout=60)
    assert run_id is not None
    return run_id


def test_round_trip(store: Path, folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder.curve.write_bytes(b"picture")
    tracker = Tracker(
        settings_of(store, run_name="first"), identity_of(folder), params={"learner": {"clip_range": 0.2}}
    )
    tracker.follow(folder.metrics)
    folder.append(10, {"return": 0.5, "kl": math.nan, "entropy": math.inf})
    folder.append(20, {"return": 0.75})
    tracker.log({"return": 0.875, "kl": math.nan}, step=30)  # what the disk did not take
    tracker.artifact(folder.curve)
    run_id = tracker.run_id(timeout=60)
    tracker.close("FINISHED", timeout=60)

    assert run_id is not None
    run = client_of(store).get_run(run_id)
    assert (run.info.run_name, run.info.status, run.data.params) == ("first", "FINISHED", {"learner.clip_range": "0.2"})
    assert set(run.data.metrics) == {"agent/return"}, "values that are not finite are left out"
    assert history(store, run_id, "return") == [(10, 0.5), (20, 0.75), (30, 0.875)]
    times = sorted(point.timestamp / 1000 for point in client_of(store).get_metric_history(run_id, "agent/return"))
    assert times[:2] == [json.loads(line)["time"] for line in folder.metrics.read_text().splitlines()]
    assert (store.parent / "mlartifacts" / run_id / "artifacts" / "curve.png").read_bytes() == b"picture"
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nothing lands in the cwd"


def test_checkpoints_in_the_store_are_those_of_the_folder(store: Path, folder: RunFolder) -> None:
    tracker = Tracker(settings_of(store), identity_of(folder))
    tracker.follow(folder.metrics)
    run_id = tracker.run_id(timeout=60)
    uploaded = store.parent / "mlartifacts" / str(run_id) / "artifacts" / "checkpoints"
    for step in (1, 2, 3):
        path = folder.checkpoints / f"step-{step}"
        path.mkdir(parents=True)
        (path / "weights").write_text(str(step))
        tracker.artifact(path, "checkpoints")
        while not (uploaded / path.name / "weights").exists():
            time.sleep(0.01)
        if step == 2:
            (folder.checkpoints / "step-1" / "weights").unlink()
            (folder.checkpoints / "step-1").rmdir()
    while (uploaded / "step-1").exists():
        time.sleep(0.01)
    shutil.rmtree(folder.checkpoints)  # with one that waits to be uploaded: what the store has may be all there is
    tracker.artifact(folder.checkpoints / "step-4", "checkpoints")
    tracker.close(timeout=60)
    assert sorted(path.name for path in uploaded.iterdir()) == ["step-2", "step-3"]
    assert (uploaded / "step-3" / "weights").read_text() == "3"


def test_resume_continues_the_same_run(store: Path, folder: RunFolder) -> None:
    first = record(store, folder, {100: 0.1}, params={"seed": 1, "total_timesteps": 100})
    second = record(
        store, folder, {200: 0.2}, resumed_at=100, params={"seed": 1, "total_timesteps": 200, "new": True}
    )  # fmt: skip
    assert first == second
    run = client_of(store).get_run(first)
    assert run.info.status == "FINISHED"
    assert history(store, first, "return") == [(100, 0.1), (200, 0.2)]
    assert run.data.params == {"seed": "1", "total_timesteps": "100", "new": "True"}
    assert run.data.tags["resumed.total_timesteps"] == "200"


def test_a_resumed_run_has_the_rows_of_its_file_and_none_of_an_abandoned_future(store: Path, folder: RunFolder) -> None:
    run_id = record(store, folder, {10: 0.1, 20: 0.2, 30: 0.3})
    client_of(store).log_metric(run_id, "system/cpu", 0.5, step=1000)
    folder.append(15, {"entropy": 1.5})  # what a killed process did not send
    folder.append(20, {"return": 0.25})  # another evaluation at the same step
    assert record(store, folder, {30: 0.35, 40: 0.4}, resumed_at=20) == run_id
    expected = [(10, 0.1), (20, 0.2), (20, 0.25), (30, 0.35), (40, 0.4)]
    assert history(store, run_id, "return") == expected
    assert history(store, run_id, "entropy") == [(15, 1.5)]
    latest = client_of(store).get_run(run_id).data.metrics
    assert latest == {"agent/return": 0.4, "learning/entropy": 1.5, "system/cpu": 0.5}
    record(store, folder, {}, resumed_at=20)
    assert history(store, run_id, "return") == expected[:3]
    assert client_of(store).get_run(run_id).data.metrics["agent/return"] == 0.25


def test_a_store_without_the_run_is_filled_in(
    store: Path, folder: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.append(10, {"return": 0.1})
    with caplog.at_level(logging.WARNING, "mneme"):
        run_id = record(store, folder, {20: 0.2}, resumed_at=10)
    assert "does not have this run: a new one is begun, and filled in from metrics.jsonl" in caplog.text
    assert history(store, run_id, "return") == [(10, 0.1), (20, 0.2)]


def test_a_moved_run_is_found_again_and_a_copied_one_is_another(store: Path, folder: RunFolder) -> None:
    key = folder.path.parent.name
    first = record(store, folder, {10: 0.1})
    moved = RunFolder(folder.path.rename(folder.path.with_name("moved")))
    assert record(store, moved, {20: 0.2}, resumed_at=10, key=key) == first
    copied = RunFolder(folder.path.with_name("copied"))
    copied.create()
    copied.metrics.write_bytes(moved.metrics.read_bytes())
    second = record(store, copied, {20: 0.25}, resumed_at=10, key=key)
    assert second != first
    assert record(store, copied, {}, resumed_at=20, key=key) == second
    assert history(store, first, "return") == [(10, 0.1), (20, 0.2)]
    assert history(store, second, "return") == [(10, 0.1), (20, 0.25)]


def test_a_run_of_an_earlier_release_is_found_by_mlflows_own_identifier(store: Path, folder: RunFolder) -> None:
    client = client_of(store)
    run_id = client.create_run("0").info.run_id
    folder.metrics.write_text('{"step": 10, "return": 0.1}\n')
    assert record(store, folder, {20: 0.2}, resumed_at=10, key=run_id) == run_id
    assert history(store, run_id, "return") == [(10, 0.1), (20, 0.2)]


def test_a_store_that_removes_nothing_gets_a_new_run_in_place_of_one_with_an_abandoned_future(
    store: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = record(store, folder, {10: 0.1, 20: 0.2}, params={"seed": 1})
    monkeypatch.setattr(store_run, "database_of", lambda client: None)  # as of a server
    assert record(store, folder, {}, resumed_at=20) == first, "nothing is abandoned"
    record(store, folder, {20: 0.3}, resumed_at=10, params={"seed": 1})
    old = client_of(store).get_run(first)
    assert (old.info.lifecycle_stage, old.info.status) == ("deleted", "KILLED")
    (new,) = client_of(store).search_runs(["1"], f"tags.`mneme.run` = '{folder.path.parent.name}'")
    assert history(store, new.info.run_id, "return") == [(10, 0.1), (20, 0.3)]
    assert (new.info.status, new.data.params) == ("FINISHED", {"seed": "1"})


@pytest.mark.parametrize("call", ["set_terminated", "delete_run", "create_run", "log_batch"])
def test_a_run_begun_anew_has_everything_whichever_call_of_the_store_fails_once(
    store: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    record(store, folder, {10: 0.1, 20: 0.2}, params={"seed": 1})
    folder.metrics.write_text('{"step": 10, "return": 0.1}\n')
    monkeypatch.setattr(store_run, "database_of", lambda client: None)  # as of a server
    run = store_run.StoreRun(settings_of(store), identity_of(folder, resumed=True))
    run.describe({"seed": "1"})
    points, _ = MetricsFile(folder.metrics).read()
    with monkeypatch.context() as outage:

        def fail(*_: Any, **__: Any) -> None:
            raise ConnectionError

        outage.setattr(run._client, call, fail)
        with pytest.raises(ConnectionError):
            run.fill_in(points, 10)
    run.fill_in(points, 10)
    (new,) = client_of(store).search_runs(["1"], f"tags.`mneme.run` = '{folder.path.parent.name}'")
    assert (new.info.run_id, new.data.params) == (run.id, {"seed": "1"})
    assert history(store, run.id, "return") == [(10, 0.1)]
    run.close("FINISHED")


@pytest.mark.parametrize("left", [[], ["b"]])
def test_a_checkpoint_that_is_removed_during_its_upload_is_passed_over_and_no_other_failure_is(
    store: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, left: list[str]
) -> None:
    run = store_run.StoreRun(settings_of(store), identity_of(folder))
    path = folder.checkpoints / "step-1"
    path.mkdir(parents=True)
    for name in ("a", "b"):
        (path / name).write_text(name)

    def fail(*_: Any) -> None:
        raise FileNotFoundError

    def pruned(*_: Any) -> None:
        for name in {"a", "b"} - set(left):
            (path / name).unlink()
        if not left:
            path.rmdir()
        raise FileNotFoundError

    monkeypatch.setattr(run._client, "log_artifacts", fail)
    with pytest.raises(FileNotFoundError):
        run.upload(path, "checkpoints")
    monkeypatch.setattr(run._client, "log_artifacts", pruned)
    run.upload(path, "checkpoints")
    run.close("FINISHED")


def test_a_deleted_experiment_gives_its_name_to_a_new_one(
    store: Path, folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    client, first = client_of(store), record(store, folder, {10: 0.1}, experiment="tidied")
    old = client.get_experiment_by_name("tidied")
    client.delete_experiment(old.experiment_id)
    with caplog.at_level(logging.WARNING, "mneme"):
        second = record(store, folder, {20: 0.2}, experiment="tidied", resumed_at=10)
    assert "MLflow's experiment tidied was deleted" in caplog.text
    assert client.get_run(first).info.lifecycle_stage == "deleted"
    assert client.get_experiment(old.experiment_id).lifecycle_stage == "deleted"
    assert client.get_experiment_by_name("tidied").experiment_id == client.get_run(second).info.experiment_id
    assert history(store, second, "return") == [(10, 0.1), (20, 0.2)]


def test_odd_names_and_values_cost_nothing(store: Path, folder: RunFolder) -> None:
    names = ["speed [m/s]", "load %", "a,b", "", "..", "/x", "x" * 300, "plain"]
    tracker = Tracker(
        settings_of(store, run_name="ünï 100% #1 [x]?\n"),
        identity_of(folder),
        params={"parts": dict.fromkeys(names, "long\n" * 9000)},
    )
    tracker.follow(folder.metrics)
    folder.append(10, dict.fromkeys(names, 1.0))
    run_id = tracker.run_id(timeout=60)
    tracker.close(timeout=60)
    data = client_of(store).get_run(str(run_id)).data
    assert len(data.metrics) == len(data.params) == len(names)
    assert "load _x25_" in data.metrics


def test_what_a_store_refuses_is_left_out_and_costs_nothing_else(
    store: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_run, "stored_name", lambda name: name)
    tracker = Tracker(settings_of(store), identity_of(folder))
    tracker.follow(folder.metrics)
    folder.append(10, {"a": 1.0, "load %": 2.0, "b": 3.0, "speed [m/s]": 4.0, "c": 5.0})
    with caplog.at_level(logging.WARNING, "mneme"):
        run_id = tracker.run_id(timeout=60)
        tracker.close(timeout=60)
    assert set(client_of(store).get_run(str(run_id)).data.metrics) == {"a", "b", "c"}
    assert caplog.text.count("MLflow refuses") == 2


def test_more_updates_than_one_batch_holds(store: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "_BYTES_PER_READ", 1000)
    rows = {step: float(step) for step in range(1200)}
    assert history(store, record(store, folder, rows), "return") == list(rows.items())


def test_what_a_store_missed_while_it_was_away_is_filled_in(
    store: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracker, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(tracker, "POLL_SECONDS", 0.01)
    log, away = store_run.StoreRun.log, [True] * 3
    monkeypatch.setattr(
        store_run.StoreRun, "log", lambda self, points: away.pop() and 1 / 0 if away else log(self, points)
    )
    tracked = Tracker(settings_of(store), identity_of(folder))
    tracked.follow(folder.metrics)
    with caplog.at_level(logging.WARNING, "mneme"):
        for step in range(100):
            folder.append(step, {"return": float(step)})
        while away:
            time.sleep(0.01)
        tracked.close(timeout=60)
    assert history(store, str(tracked.run_id()), "return") == [(step, float(step)) for step in range(100)]
    assert caplog.text.count("training goes on, and what is missing there is filled in later.") == 1


@pytest.mark.parametrize(
    "uri",
    ["http://127.0.0.1:9", "http://user:secret@127.0.0.1:9", "nonsense://store", "sqlite:////dev/null/x.db"],
)
def test_a_store_out_of_reach_costs_one_warning(uri: str, folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mneme"):
        tracker = Tracker(TrackingSettings(uri=uri), identity_of(folder))
        assert tracker.run_id(timeout=60) is None
        folder.append(1, {"return": 0.5, "kl": 0.1})
        tracker.follow(folder.metrics)
        tracker.artifact(Path("missing.png"))
        tracker.close(timeout=60)
    warnings = [record.getMessage() for record in caplog.records if record.name == "mneme"]
    assert len(warnings) == 1
    assert warnings[0].endswith("training goes on, and what is missing there is filled in later.")
    assert "secret" not in warnings[0]


def test_a_failed_upload_does_not_stop_the_metrics_nor_the_other_uploads(
    store: Path, folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    folder.curve.write_bytes(b"picture")
    tracker = Tracker(settings_of(store), identity_of(folder))
    with caplog.at_level(logging.WARNING, "mneme"):
        tracker.artifact(folder.curve, "..")  # no folder that MLflow takes
        tracker.artifact(folder.curve)
        tracker.follow(folder.metrics)
        folder.append(1, {"return": 0.5})
        run_id = tracker.run_id(timeout=60)
        tracker.close(timeout=60)
    assert caplog.text.count("MLflow at") == 1
    assert history(store, str(run_id), "return") == [(1, 0.5)]
    assert (store.parent / "mlartifacts" / str(run_id) / "artifacts" / "curve.png").exists()


def test_close_gives_up_on_a_silent_server(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, caplog.at_level(logging.WARNING, "mneme"):
        tracker = Tracker(TrackingSettings(uri=f"http://127.0.0.1:{server.getsockname()[1]}"), identity_of(folder))
        tracker.close(timeout=0.2)
    assert "did not take everything within 0.2 s" in caplog.text


def test_disabled_does_nothing(tmp_path: Path, folder: RunFolder) -> None:
    tracker = Tracker(settings_of(tmp_path / "mlflow.db", enabled=False), identity_of(folder))
    tracker.follow(folder.metrics)
    tracker.artifact(folder.curve)
    tracker.close()
    assert tracker.run_id() is None
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_importing_the_package_does_not_import_mlflow() -> None:
    code = "import sys, mneme.reporting.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_system_metrics_are_recorded(store: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_run, "SYSTEM_METRICS_SECONDS", 0.02)
    tracker = Tracker(settings_of(store, system_metrics=True), identity_of(folder))
    run_id = tracker.run_id(timeout=60)
    assert run_id is not None
    for _ in range(500):
        if any(key.startswith("system/") for key in client_of(store).get_run(run_id).data.metrics):
            break
        time.sleep(0.02)
    tracker.close(timeout=60)
    keys = client_of(store).get_run(run_id).data.metrics
    assert "system/cpu_utilization_percentage" in keys


def test_experiments_are_of_model_training_unless_somebody_says_otherwise(store: Path, folder: RunFolder) -> None:
    client, kind = client_of(store), "mlflow.experimentKind"
    for name, tags in {"plain": {}, "theirs": {kind: "genai_development"}}.items():
        client.create_experiment(name, tags=tags)
    for name in ("fresh", "plain", "theirs"):
        record(store, folder, {}, experiment=name)
    found = {name: client.get_experiment_by_name(name).tags[kind] for name in ("fresh", "plain", "theirs")}
    training = "custom_model_development"
    assert found == {"fresh": training, "plain": training, "theirs": "genai_development"}
