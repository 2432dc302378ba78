"""`mneme horizons` evaluates an agent at other horizons than its own."""

import json
import shutil
from pathlib import Path

import pytest

from mneme.cli import main
from mneme.configuration.config import load_config
from mneme.experiments.horizons import horizons_of, keep_horizons, kept_horizons
from mneme.experiments.report.records import read_records
from mneme.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    overrides = [
        f"checkpoint.root={root}", "name=short", "env.kwargs={horizon: 9, cues: 2}", "rollout.num_envs=8",
        "policy.controller.hidden_size=8", "learner.num_minibatches=2",
        "train.total_timesteps=80", "train.evaluation_episodes=8", "tracking.enabled=false",
        "train.evaluation_max_steps=20",  # which ends no episode that is as long as its task says
    ]  # fmt: skip
    return train(load_config(None, overrides), local=True, progress=False).folder


def test_every_horizon_has_its_line_and_its_point(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "horizons.png"
    words = ["horizons", str(run), "--horizons", "40,3", "--episodes", "16", "--plot", str(picture)]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["3", "40", "drawn"]
    assert all("success" in line and "%" in line for line in lines[:2])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["setting"] == "env.kwargs.horizon" and found["trained"] == 9
    assert [point["horizon"] for point in found["points"]] == [3, 40]
    assert [point["mean_length"] for point in found["points"]] == [4, 41]
    for line, point in zip(lines, found["points"], strict=False):
        assert f"{point['success']:.1%}" in line
    (record,) = read_records([run])
    assert list(record.horizons) == [(point["horizon"], point["success"]) for point in found["points"]]


def test_what_cannot_be_kept_is_told_and_what_is_damaged_is_nothing(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = horizons_of(run, (3,), episodes=8)
    own = tmp_path / "own"
    shutil.copytree(run, own)
    (own / "horizons.json").unlink(missing_ok=True)
    (own / "horizons.json").mkdir()
    keep_horizons(found, own)
    assert "is not kept for mneme report" in caplog.text
    assert kept_horizons(own) == []
    (alone,) = (run / "checkpoints").glob("step-*")
    shutil.copytree(alone, tmp_path / "alone")
    keep_horizons(found, tmp_path / "alone")
    assert not (tmp_path / "horizons.json").exists()


@pytest.mark.parametrize("given", ["", "0", "64,", "a", "64,-1", "1000000001"])
def test_what_is_no_horizon_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["horizons", "runs/any", "--horizons", given])
    assert "are no horizons; give numbers from 1 to" in capsys.readouterr().err


def test_a_task_without_one_is_told_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [
        f"checkpoint.root={tmp_path}", "name=pole", "env.id=CartPole-v1", "env.success_return=100", "env.kwargs={}",
        "rollout.num_envs=2", "rollout.unroll_length=8", "policy.controller.hidden_size=4",
        "learner.num_minibatches=1", "train.total_timesteps=16", "train.evaluation_episodes=1",
        "tracking.enabled=false",
    ]  # fmt: skip
    folder = train(load_config(None, overrides), local=True, progress=False).folder
    assert main(["horizons", str(folder)]) == 2
    assert "CartPole-v1 does not say which of its settings is the horizon" in capsys.readouterr().err
