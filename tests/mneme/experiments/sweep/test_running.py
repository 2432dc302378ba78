"""`mneme sweep` on a Ray: stopped and gone on with, a search that learns, and what lies in its folder afterwards."""

import io
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import ray
from rich.console import Console

import mneme
from mneme.cli import main
from mneme.configuration.config import load_config
from mneme.distributed.ray_runner import start_ray
from mneme.distributed.settings import ServiceSettings
from mneme.envs.counting import CountingEnv
from mneme.experiments.sweep.results import SweepResults
from mneme.experiments.sweep.running import run_sweep, show_sweep

FILE = """
env: {id: mneme/Counting-v0}
rollout: {num_envs: 4, num_workers: 1, unroll_length: 10}
policy: {controller: {hidden_size: 4}}
learner: {num_minibatches: 1}
train: {total_timesteps: 120, evaluate_every: 40, evaluation_episodes: 4}
tracking: {enabled: false}
sweep:
  space:
    learner.learning_rate: [0.001, 0.003, 0.01]
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rates.yaml").write_text(FILE)


class Interrupting(io.StringIO):
    """Presses Ctrl-C once a line says that so much is done."""

    def write(self, text: str) -> int:
        if text.startswith("[1 of"):
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


@pytest.fixture(scope="module")
def a_ray() -> Iterator[None]:
    assert start_ray(ServiceSettings(), workers=2)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.usefixtures("a_ray")
def test_a_grid_that_is_interrupted_goes_on_and_ends_in_a_table_a_picture_and_a_preset() -> None:
    first = run_sweep("rates", ["sweep.max_concurrent=1"], console=Console(file=Interrupting(), highlight=False))
    assert first.interrupted
    assert first.trials().num_rows == 1
    done = first.folder / "000-seed0" / "metrics.jsonl"
    written = done.stat().st_mtime_ns
    out = io.StringIO()
    sweep = run_sweep("rates", [], console=Console(file=out, highlight=False))
    assert not sweep.interrupted
    assert "[3 of 3] " in out.getvalue()
    assert done.stat().st_mtime_ns == written  # what was done is not done again
    table = sweep.trials().to_pydict()
    assert sorted(table["learner.learning_rate"]) == [0.001, 0.003, 0.01]
    assert table["outcome"] == ["complete"] * 3
    assert table["steps"] == [120] * 3
    assert {path.name for path in sweep.folder.iterdir()} == {
        "000-seed0", "001-seed0", "002-seed0", "results.json", "table.md", "table.csv", "sweep.png", "best.yaml",
    }  # fmt: skip
    assert sweep.best is not None
    best = load_config(sweep.best)
    found = SweepResults(sweep.folder).best
    assert found is not None and best.learner.learning_rate == found.point["learner.learning_rate"]
    assert mneme.resume(sweep.folder / "000-seed0", total_timesteps=160, local=True, progress=False).steps == 160
    shown = io.StringIO()
    show_sweep("rates", console=Console(file=shown, highlight=False))
    assert shown.getvalue() in out.getvalue()


@pytest.mark.ray
@pytest.mark.usefixtures("a_ray")
def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint() -> None:
    killed: list[int] = []
    folder = Path("runs/sweeps/rates/000-seed0")

    def kill() -> None:
        while not list(folder.glob("checkpoints/step-*")):
            time.sleep(0.05)
        state = json.loads((folder / "state.json").read_text())
        killed.append(state["pid"])
        os.kill(state["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    longer = ["train.total_timesteps=40000", "train.evaluate_every=20000", "checkpoint.every=400"]
    sweep = run_sweep("rates", ["sweep.space={learner.gamma: [0.9]}", *longer], console=Console(quiet=True))
    killer.join()
    assert sweep.trials()["outcome"].to_pylist() == ["complete"]
    assert sweep.trials()["steps"].to_pylist() == [40000]
    told = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert any(line["message"].startswith("resuming ") for line in told)
    assert json.loads((folder / "state.json").read_text())["pid"] != killed[0]


@pytest.mark.ray
@pytest.mark.usefixtures("a_ray")
def test_a_task_that_only_this_process_has_is_sent_to_trials() -> None:
    gym.register("Sent-v0", entry_point=lambda: CountingEnv())
    try:
        sweep = mneme.sweep("rates", "env={id: Sent-v0}", space={"learner.gamma": [0.9]}, name="sent", progress=False)
    finally:
        del gym.registry["Sent-v0"]
    assert sweep.trials()["outcome"].to_pylist() == ["complete"]


@pytest.mark.ray
@pytest.mark.usefixtures("a_ray")
def test_a_search_that_learns_gives_up_the_worse_and_may_be_prolonged() -> None:
    pytest.importorskip("optuna")
    space = {"learner.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "learner.gamma": [0.5, 0.9]}
    options: dict[str, Any] = {"space": space, "search": "optuna", "early_stopping": "asha", "name": "searched"}
    first = mneme.sweep("rates", **options, trials=2, progress=False)
    assert sorted(first.trials()["number"].to_pylist()) == [0, 1]
    more = mneme.sweep("rates", **options, trials=4, progress=False)
    table = more.trials().to_pydict()
    assert sorted(table["number"]) == [0, 1, 2, 3]
    assert set(table["outcome"]) <= {"complete", "stopped early"}
    assert all(steps in (40, 80, 120) for steps in table["steps"])


def test_refusals_are_one_sentence_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "rates", "sweep.space={learner.gama: [0.9]}"]) == 2
    assert "unknown setting learner.gama (given 0.9); did you mean learner.gamma?" in capsys.readouterr().err
    assert main(["sweep", "nowhere"]) == 2
    assert "there is no file nowhere, and no sweep of that name; there are cached_tasks" in capsys.readouterr().err
    assert main(["sweep", "delayed_cue"]) == 2
    assert "there is no section sweep; give it a space" in capsys.readouterr().err
    assert main(["sweep", "rates", "--table"]) == 2
    assert "runs/sweeps/rates holds no results; run the sweep first" in capsys.readouterr().err
    assert main(["sweep", "rates", "--name", "a/b"]) == 2
    assert not Path("runs").exists()
