"""`mneme suite horizons`: what it keeps of a run, and the table that it makes of it."""

import json
from pathlib import Path

import pytest

from mneme.cli import main
from mneme.experiments.suite import horizons


def test_every_run_is_evaluated_at_every_horizon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(horizons, "HORIZONS", (2, 30))
    monkeypatch.setattr(horizons, "_EPISODES", 8)
    words = [
        "suite", "horizons", "env.kwargs={horizon: 6, cues: 2}", "rollout.num_envs=8", "learner.num_threads=1",
        "policy.controller.hidden_size=8", "learner.num_minibatches=2", "train.total_timesteps=112",
        "train.evaluation_episodes=8", "--local", "--seeds", "2", "--controllers", "gru,mingru",
    ]  # fmt: skip
    assert main(words) == 0
    folder = Path("runs/suites/horizons")
    runs = json.loads((folder / "results.json").read_text())["runs"]
    assert [(run["controller"], run["seed"], run["trained_at"]) for run in runs] == [
        ("gru", 0, 6), ("mingru", 0, 6), ("gru", 1, 6), ("mingru", 1, 6),
    ]  # fmt: skip
    for run in runs:
        assert [point[0] for point in run["by_horizon"]] == [2, 30]
        assert all(low <= success <= high for _, success, low, high in run["by_horizon"])
    table = (folder / "table.md").read_text()
    assert table in capsys.readouterr().out
    headings, _, gru, mingru = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines())
    assert headings == ["task", "controller", "solved", "2", "30", "holds 0.99 up to"]
    assert (gru[1], mingru[1]) == ("gru", "mingru")
    assert gru[3] == ", ".join(f"{100 * run['by_horizon'][0][1]:.0f}" for run in runs[::2])
    assert (folder / "horizons.png").read_bytes().startswith(b"\x89PNG")
