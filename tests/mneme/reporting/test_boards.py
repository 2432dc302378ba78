"""What TensorBoard and Weights & Biases are told of a run, and what their failures cost."""

import importlib.machinery
import json
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mneme
from mneme.configuration.config import load_config
from mneme.distributed.config import ConfigError
from mneme.reporting.boards import TensorBoard, Wandb

pytestmark = pytest.mark.usefixtures("undrawn")


def short(root: Path, *overrides: str, **options: Any) -> mneme.Run:
    """Two updates, each with a checkpoint, and the result."""
    given = [
        f"checkpoint.root={root}", "name=run", "rollout.num_envs=8", "rollout.num_workers=1",
        "rollout.unroll_length=10", "train.total_timesteps=160", "checkpoint.every=80", "train.evaluation_episodes=8",
        "learner.num_minibatches=1", "learner.num_threads=1", "policy.controller.hidden_size=8",
        "tracking.enabled=false", *overrides,
    ]  # fmt: skip
    return mneme.train(*given, env="mneme/Counting-v0", local=True, progress=False, **options)


def events(folder: Path) -> list[Any]:
    """All of TensorBoard's events below a folder, in the order of its files: each a length, a checksum, and so many
    bytes of a message with their own checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for file in sorted(folder.glob("events.*"), key=lambda file: file.stat().st_mtime_ns):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric as TensorBoard shows them: a session's first event may purge earlier ones."""
    shown: list[tuple[int, float]] = []
    for event in events(folder):
        if event.session_log.status == 1:  # START
            shown = [(step, value) for step, value in shown if step < event.step]
        shown += [(event.step, value.simple_value) for value in event.summary.value if value.tag == name]
    return shown


def recorded(run: mneme.Run, name: str) -> list[tuple[int, float]]:
    rows = run.history().to_pylist()
    return [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if row.get(name) is not None]


def test_tensorboard_has_every_metric_of_a_run_and_of_the_one_that_goes_on(tmp_path: Path) -> None:
    run = short(tmp_path, "tracking.also=[tensorboard]")
    folder = run.folder / "tensorboard"
    rows = run.history().to_pylist()
    names = {name for row in rows for name, value in row.items() if value is not None} - {"step", "time"}
    for name in names:
        assert scalars(folder, name) == recorded(run, name), name
    assert {"kl", "evaluation/return", "steps_per_second"} <= names
    first = run.folder / "checkpoints" / "step-000000000080"
    again = mneme.resume(first, local=True, progress=False)
    assert scalars(folder, "kl") == recorded(again, "kl")
    assert len(scalars(folder, "kl")) == 2
    texts = [value for event in events(folder) for value in event.summary.value if value.tag.startswith("config")]
    assert b"unroll_length: 10" in texts[0].tensor.string_val[0]


def test_several_runs_share_a_folder_that_is_given(tmp_path: Path) -> None:
    run = short(tmp_path / "runs", callbacks=[TensorBoard(tmp_path / "board")])
    assert scalars(tmp_path / "board" / "run", "kl") == recorded(run, "kl")
    assert not (run.folder / "tensorboard").exists()


class StandIn(ModuleType):
    """As much of the package wandb as is used, which keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.begun: list[dict[str, Any]] = []
        self.logged: list[dict[str, float]] = []
        self.defined: list[tuple[str, str]] = []
        self.ended: list[int] = []
        self.fault: Exception | None = None

    def init(self, **given: Any) -> "StandIn":
        json.dumps(given)  # as it travels
        self.begun.append(given)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.defined.append((name, step_metric))

    def log(self, row: dict[str, float]) -> None:
        if self.fault is not None:
            raise self.fault
        self.logged.append(row)

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_has_every_metric_and_a_resumed_run_goes_on_there(tmp_path: Path, wandb: StandIn) -> None:
    store = "tracking.uri=http://me:secret@host:5000"  # which is not opened, as tracking.enabled is false
    run = short(tmp_path, "tracking.also=[wandb]", "tracking.experiment=mine", store)
    begun = wandb.begun[0]
    assert begun["config"]["tracking"]["uri"] == "http://me@host:5000"
    assert (begun["project"], begun["name"], begun["resume"], begun["dir"]) == ("mine", "run", "allow", str(run.folder))
    assert begun["config"]["rollout"]["unroll_length"] == 10
    assert wandb.defined == [("*", "env_steps")]
    rows = [
        {name: value for name, value in row.items() if value is not None and name != "time"}
        for row in run.history().to_pylist()
    ]
    assert wandb.logged == [{"env_steps": row.pop("step"), **row} for row in rows]
    assert wandb.ended == [0]
    mneme.resume(run.folder, total_timesteps=240, local=True, progress=False)
    assert wandb.begun[1]["id"] == begun["id"]
    assert wandb.logged[len(rows)]["env_steps"] == 240


def test_wandb_takes_further_arguments(tmp_path: Path, wandb: StandIn) -> None:
    short(tmp_path, callbacks=[Wandb(project="other", entity="us", tags=["a"])])
    assert {name: wandb.begun[0][name] for name in ("project", "entity", "tags")} == {
        "project": "other", "entity": "us", "tags": ["a"],
    }  # fmt: skip


def test_a_board_that_fails_costs_itself_and_not_the_run(
    tmp_path: Path, wandb: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.fault = OSError("no network")
    run = short(tmp_path, "tracking.also=[wandb]")
    assert run.steps == 160
    assert wandb.ended == [0], "left open it would take what the next run shows"
    assert [record.message for record in caplog.records if "wandb" in record.message] == [
        "wandb failed (OSError: no network): training goes on without it"
    ]


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("tensorboard", "tensorboardX")])
def test_a_package_that_is_missing_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"{name} needs the package {package}, .*: pip install {package}, or leave"):
        short(tmp_path, f"tracking.also=[{name}]")
    assert not (tmp_path / "run").exists()


def test_boards_that_are_not_known_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tracking.also\S* is .*"):
        load_config(None, ["tracking.also=[comet]"])
