"""Tracking: a round trip through a local store, resuming, and stores that fail."""

import logging
import math
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from distributed.tracking import PARAM_CHARACTERS, Tracker, TrackingSettings, flatten


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One SQLite store for the file, because creating its tables takes seconds."""
    return tmp_path_factory.mktemp("store") / "nested" / "mlflow.db"


def settings_of(store: Path, **changes: Any) -> TrackingSettings:
    return TrackingSettings(**{"uri": f"sqlite:///{store}", "system_metrics": False} | changes)


def client_of(store: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{store}")


def history(store: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client_of(store).get_metric_history(run_id, key)]


def test_round_trip(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "curve.png"
    picture.write_bytes(b"picture")
    checkpoint = tmp_path / "step-20"
    checkpoint.mkdir()
    (checkpoint / "weights").write_bytes(b"weights")
    tracker = Tracker(settings_of(store, run_name="first"), params={"learner": {"clip": 0.2, "mode": "full"}})
    tracker.log({"return": 0.5, "kl": math.nan, "entropy": math.inf}, step=10)
    tracker.log({"return": 0.75}, step=20)
    tracker.artifact(picture)
    tracker.artifact(checkpoint, "checkpoints")
    tracker.text("a: 1\n", "config.yaml")
    run_id = tracker.run_id()
    tracker.close("FINISHED", timeout=60)

    assert run_id is not None
    run = client_of(store).get_run(run_id)
    assert run.info.run_name == "first"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"learner.clip": "0.2", "learner.mode": "full"}
    assert set(run.data.metrics) == {"return"}, "values that are not finite are left out"
    assert history(store, run_id, "return") == [(10, 0.5), (20, 0.75)]
    artifacts = store.parent / "mlartifacts" / run_id / "artifacts"
    assert (artifacts / "curve.png").read_bytes() == b"picture"
    assert (artifacts / "checkpoints" / "step-20" / "weights").read_bytes() == b"weights"
    assert (artifacts / "config.yaml").read_text() == "a: 1\n"
    assert tracker.dropped == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "step-20"], "nothing lands in the cwd"


def test_resume_continues_the_same_run(store: Path) -> None:
    first = Tracker(settings_of(store), params={"seed": 1, "total_steps": 100})
    first.log({"return": 0.1}, step=100)
    run_id = first.run_id()
    first.close("KILLED", timeout=60)
    assert run_id is not None
    assert client_of(store).get_run(run_id).info.status == "KILLED"

    second = Tracker(settings_of(store), run_id=run_id, params={"seed": 1, "total_steps": 200, "new": True})
    second.log({"return": 0.2}, step=200)
    assert second.run_id() == run_id
    second.close("FINISHED", timeout=60)

    run = client_of(store).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert history(store, run_id, "return") == [(100, 0.1), (200, 0.2)]
    assert run.data.params == {"seed": "1", "total_steps": "100", "new": "True"}
    assert run.data.tags["resumed.total_steps"] == "200"


def test_resuming_an_unknown_run_starts_a_new_one(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    missing = "0" * 32
    with caplog.at_level(logging.WARNING, "mneme"):
        tracker = Tracker(settings_of(store), run_id=missing)
        run_id = tracker.run_id()
        tracker.close(timeout=60)
    assert run_id not in (None, missing)
    assert f"no run {missing}" in caplog.text


def test_more_updates_than_one_batch_holds(store: Path) -> None:
    tracker = Tracker(settings_of(store))
    for step in range(1200):
        tracker.log({"return": float(step)}, step)
    run_id = tracker.run_id()
    tracker.close(timeout=60)
    assert run_id is not None
    assert sorted(history(store, run_id, "return")) == [(step, float(step)) for step in range(1200)]


@pytest.mark.parametrize(
    "uri",
    ["http://127.0.0.1:9", "http://user:secret@127.0.0.1:9", "nonsense://store", "sqlite:////dev/null/x.db"],
)
def test_a_store_out_of_reach_costs_one_warning(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mneme"):
        tracker = Tracker(TrackingSettings(uri=uri))
        assert tracker.run_id(timeout=60) is None
        tracker.log({"return": 0.5, "kl": 0.1}, step=1)
        tracker.artifact(Path("missing.png"))
        tracker.close(timeout=60)
    warnings = [record.getMessage() for record in caplog.records if record.name == "mneme"]
    assert len(warnings) == 1
    assert warnings[0].endswith("training goes on, and what cannot be recorded is dropped.")
    assert "secret" not in warnings[0]
    assert tracker.dropped == 2


def test_a_failed_upload_does_not_stop_the_metrics(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(settings_of(store))
    with caplog.at_level(logging.WARNING, "mneme"):
        tracker.artifact(store.parent / "rotated-away")
        tracker.log({"return": 0.5}, step=1)
        run_id = tracker.run_id()
        tracker.close(timeout=60)
    assert "rotated-away" in caplog.text
    assert run_id is not None
    assert history(store, run_id, "return") == [(1, 0.5)]


def test_close_gives_up_on_a_silent_server(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, caplog.at_level(logging.WARNING, "mneme"):
        tracker = Tracker(TrackingSettings(uri=f"http://127.0.0.1:{server.getsockname()[1]}"))
        tracker.log({"return": 0.5}, step=1)
        tracker.close(timeout=0.2)
    assert "did not take everything within 0.2 s" in caplog.text


def test_disabled_does_nothing(tmp_path: Path) -> None:
    tracker = Tracker(settings_of(tmp_path / "mlflow.db", enabled=False))
    tracker.log({"return": 0.5}, step=1)
    tracker.close()
    assert tracker.run_id() is None
    assert tracker.dropped == 0
    assert list(tmp_path.iterdir()) == []


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, distributed.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_flatten_joins_keys_and_cuts_values() -> None:
    flat = flatten({"a": {"b": {"c": 1}, "d": None}, "e": [1, 2], "f": {}, "g": "x" * (PARAM_CHARACTERS + 1)})
    assert {key: flat[key] for key in ("a.b.c", "a.d", "e", "f")} == {
        "a.b.c": "1",
        "a.d": "None",
        "e": "[1, 2]",
        "f": "{}",
    }
    assert len(flat["g"]) == PARAM_CHARACTERS


@pytest.mark.parametrize(("changes", "message"), [({"uri": ""}, "tracking.uri"), ({"experiment": ""}, "experiment")])
def test_settings_name_what_is_wrong(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrackingSettings(**changes)  # type: ignore[arg-type]


def test_system_metrics_are_recorded(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distributed.tracking.SYSTEM_METRICS_SECONDS", 0.02)
    tracker = Tracker(settings_of(store, system_metrics=True))
    run_id = tracker.run_id()
    assert run_id is not None
    for _ in range(500):
        if any(key.startswith("system/") for key in client_of(store).get_run(run_id).data.metrics):
            break
        time.sleep(0.02)
    tracker.close(timeout=60)
    keys = client_of(store).get_run(run_id).data.metrics
    assert "system/cpu_utilization_percentage" in keys
