"""What `mneme runs` and `mneme status` say of folders, whole and broken ones."""

import io
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mneme.cli import main
from mneme.distributed.ray_jobs import JobState
from mneme.reporting.run_status import run_status, runs_in
from mneme.reporting.runs import show_job, show_runs, show_status
from mneme.storage.holding import Holding

CONFIG = """
env: {id: mneme/DelayedCue-v0}
policy: {controller: {kind: gru}}
train: {total_timesteps: 4000}
"""


def a_run(path: Path, steps: int = 3000, *, state: str | None = "complete", seconds_ago: float = 0, **row: Any) -> Path:
    """A folder as a run leaves it, which was seen last so long ago; ten updates, then an evaluation."""
    checkpoint = path / "checkpoints" / f"step-{steps:012d}"
    checkpoint.mkdir(parents=True)
    (path / "config.yaml").write_text(CONFIG)
    then = time.time() - seconds_ago
    rows: list[dict[str, Any]] = [
        {"step": steps * i // 10, "time": then - 10 + i, "weights_version": i, "return": 0.1, "success": 0.25, **row}
        for i in range(1, 11)
    ]
    rows.append({"step": steps, "time": then, "evaluation/return": 0.9, "evaluation/success": 0.75})
    metrics = path / "metrics.jsonl"
    metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    os.utime(metrics, (then, then))
    if state is not None:
        held = {"state": state, "host": "here", "boot": "b", "pid": 7, "began": then - 20, "seen": then}
        (path / "state.json").write_text(json.dumps(held | ({"reason": "it broke"} if state == "failed" else {})))
    return path


def shown(show: Any, *arguments: Any) -> list[list[str]]:
    """The lines that are printed, in their cells."""
    out = io.StringIO()
    show(*arguments, Console(file=out, highlight=False))
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("state", "word"),
    [("complete", "complete"), ("stopped", "stopped"), ("failed", "failed"), ("training", "cut off"), (None, "–")],
)
def test_a_run_is_listed_with_how_it_ended(tmp_path: Path, state: str | None, word: str) -> None:
    a_run(tmp_path / "one", state=state, seconds_ago=200)
    assert shown(show_runs, tmp_path) == [
        ["name", "task", "controller", "step", "success", "state", "last seen"],
        ["one", "mneme/DelayedCue-v0", "gru", "3,000 / 4,000", "75.0 %", word, "3 min ago"],
    ]


def test_a_run_that_is_held_trains_and_has_a_rate(tmp_path: Path) -> None:
    a_run(tmp_path / "one", state=None)
    with Holding(tmp_path / "one"):
        assert run_status(tmp_path / "one").word == "training"
        assert run_status(tmp_path / "one").rate is None, "what was measured is of a process before"
        state = json.loads((tmp_path / "one" / "state.json").read_text())
        (tmp_path / "one" / "state.json").write_text(json.dumps(state | {"began": state["began"] - 60}))
        assert run_status(tmp_path / "one").rate == pytest.approx(300)
        lines = dict(line for line in shown(show_status, tmp_path / "one") if len(line) == 2)
    assert lines["steps/s"] == "300"
    assert lines["eta"] == "0:00:04"
    assert lines["state"].startswith(f"training, process {os.getpid()} on ")
    assert run_status(tmp_path / "one").rate is None, "it has ended"


def test_one_run_is_told_in_detail(tmp_path: Path) -> None:
    path = a_run(tmp_path / "one", state="failed", seconds_ago=86400 * 3)
    lines = dict(line for line in shown(show_status, path))
    newest = path / "checkpoints" / "step-000000003000"
    assert lines.pop("checkpoint").startswith(f"{newest}, ")
    assert lines == {
        "run": str(path),
        "task": "mneme/DelayedCue-v0",
        "controller": "gru",
        "state": "failed: it broke",
        "last seen": "3 d ago",
        "step": "3,000 / 4,000",
        "steps/s": "–",
        "eta": "–",
        "training": "return 0.100, success 25.0 % at step 3,000 (actions drawn)",
        "evaluation": "return 0.900, success 75.0 % at step 3,000 (greedy)",
    }


def test_runs_are_in_the_order_in_which_they_were_seen(tmp_path: Path) -> None:
    for name, ago in (("b", 10), ("a", 5), ("c", 1)):
        a_run(tmp_path / name, seconds_ago=ago)
    (tmp_path / "suites").mkdir()
    (tmp_path / "mlflow.db").touch()
    assert [run.path.name for run in runs_in(tmp_path)] == ["b", "a", "c"]


def test_success_that_is_of_drawn_actions_says_so(tmp_path: Path) -> None:
    path = a_run(tmp_path / "one")
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3300, "time": time.time(), "return": 0.2, "success": 0.5}) + "\n")
    assert shown(show_runs, tmp_path)[1][4] == "50.0 % drawn"


def test_what_gathers_runs_has_a_line_of_its_own(tmp_path: Path) -> None:
    a_run(tmp_path / "one")
    for number, state in enumerate(("complete", "complete", "failed")):
        a_run(tmp_path / "sweeps" / "rates" / f"00{number}-seed0", state=state, seconds_ago=300 - 60 * number)
    (tmp_path / "suites" / "empty").mkdir(parents=True)
    a_run(tmp_path / "mlartifacts" / "0123456789abcdef" / "artifacts")
    a_run(tmp_path / "mine" / "first", state=None, seconds_ago=300)
    lines = shown(show_runs, tmp_path)
    assert [line[0] for line in lines[:2]] == ["name", "one"]
    assert [" ".join(line) for line in lines[2:]] == [
        f"mine: 1 run, last seen 5 min ago; mneme runs {tmp_path / 'mine'}",
        f"sweeps/rates: 3 runs, 2 complete, 1 failed, last seen 3 min ago; mneme runs {tmp_path / 'sweeps' / 'rates'}",
    ]
    assert [line[0] for line in shown(show_runs, tmp_path / "sweeps" / "rates")] == [
        "name", "000-seed0", "001-seed0", "002-seed0",
    ]  # fmt: skip
    assert [line[0][:5] for line in shown(show_runs, tmp_path / "sweeps")] == ["rates"]


def test_what_is_broken_is_a_dash(tmp_path: Path) -> None:
    path = a_run(tmp_path / "one", state=None, seconds_ago=200)
    for text in ("[1]", "a: [", "env: 3", "!!python/object:os.system {}", "train: {total_timesteps: many}"):
        (path / "config.yaml").write_text(text)
        assert shown(show_runs, tmp_path)[1] == ["one", "–", "–", "3,000 / –", "75.0 %", "–", "3 min ago"]
    (path / "metrics.jsonl").write_text('{"step": "x", "time": 1}\n[1]\n{"step": 4}\ncut o')
    assert shown(show_runs, tmp_path)[1][3:5] == ["3,000 / –", "–"]


def test_only_the_end_of_long_metrics_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_run(tmp_path / "one")
    monkeypatch.setattr("mneme.reporting.run_status._TAIL", 300)
    assert 0 < len(run_status(path).rows) < 11
    assert run_status(path).step == 3000


def test_a_stranger_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = a_run(tmp_path / "one\x1b[31m\n\x9b")
    (path / "config.yaml").write_text('env: {id: "a\\e]0;b[red]"}')
    assert shown(show_runs, tmp_path)[1][:2] == ["one[31m", "a]0;b[red]"]
    assert shown(show_status, path)[0] == ["run", f"{tmp_path}/one[31m"]


@pytest.mark.parametrize("number", [10**400, 1e300, math.inf, math.nan, -1e18, -1, True])
@pytest.mark.parametrize("name", ["seen", "began", "pid"])
def test_a_state_that_cannot_be_is_none(tmp_path: Path, name: str, number: float) -> None:
    path = a_run(tmp_path / "one") / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: number}))
    assert shown(show_runs, tmp_path)[1][5] == "–"
    assert dict(line for line in shown(show_status, path.parent) if len(line) == 2)["state"] == "–"


@pytest.mark.parametrize("number", [10**400, 1e300, math.inf, math.nan])
def test_a_number_without_measure_is_none(tmp_path: Path, number: float) -> None:
    path = a_run(tmp_path / "one", state=None, success=number, steps_per_second=number)
    (path / "config.yaml").write_text(CONFIG.replace("4000", hex(10**5000)))
    with (path / "metrics.jsonl").open("a") as file:
        row = {"step": 3000, "time": time.time(), "evaluation/return": 1, "evaluation/success": number}
        file.write(f"{json.dumps(row)}\n{json.dumps({'step': 10**400, 'time': number})}\n{'[' * 100_000}\n")
    with Holding(path):
        assert shown(show_runs, tmp_path)[1][3:6] == ["3,000 / –", "75.0 %", "training"]
        lines = dict(line for line in shown(show_status, path) if len(line) == 2)
    assert lines["training"] == "return 0.100 at step 3,000 (actions drawn)"
    assert lines["evaluation"] == "return 1.000 at step 3,000 (greedy)"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["metrics.jsonl", "state.json", "config.yaml", ".lock"])
def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path: Path, name: str) -> None:
    path = a_run(tmp_path / "one") / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert shown(show_runs, tmp_path)[1][0] == "one"
    shown(show_status, path.parent)


def test_a_job_is_told_with_its_newest_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    log = [f"step  {i},000/9,000  {i}0 %" for i in (1, 2)] + ["a", "b", "c", "d", "e\x1b"]
    state = JobState("RUNNING", "it runs", "python -m mneme train", time.time(), None, log)
    monkeypatch.setattr("mneme.distributed.ray_jobs.job_state", lambda *_: state)
    lines = shown(show_job, "job-1", "http://127.0.0.1:8265")
    told = dict(line for line in lines if len(line) == 2)
    assert (told["state"], told["message"], told["ended"]) == ("RUNNING", "it runs", "–")
    assert ["progress", "step", "2,000/9,000", "20 %"] in lines
    assert [line[-1] for line in lines[-5:]] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["runs", "nowhere"], "there is no folder nowhere; name the one that holds your runs"),
        (["status", "nowhere"], "there is no run at nowhere; name a run's folder, or list those of a folder with"),
        (["status", "s3://x/y"], "s3://x/y is no folder of this machine"),
        (["status", "job", "--address", "head:8265"], "--address is head:8265, which is no job server; give one such"),
        (["status", "job", "--address", "os://x"], "--address is os://x, which is no job server"),
        (["status", "job", "--address", "http://127.0.0.1:1"], "nothing answers there (Connection refused)"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) != 0
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_the_command_line_lists_and_tells(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}; begin one with: mneme train\n"
    a_run(tmp_path / "one")
    assert main(["runs", str(tmp_path)]) == 0
    assert "3,000 / 4,000" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "one" / "checkpoints")]) == 0
    assert "complete" in capsys.readouterr().out
