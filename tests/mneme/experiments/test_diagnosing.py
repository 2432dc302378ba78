"""`mneme diagnose` says what a run's mode does to its gradient, and what would mend it."""

from pathlib import Path

import numpy as np
import pytest

from mneme.cli import main
from mneme.configuration.config import load_config
from mneme.experiments.diagnosing import Diagnosis, diagnose, distances
from mneme.learner.fidelity import Fidelity
from mneme.training import train

ALIKE = Fidelity(1.0, 1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    overrides = [
        f"checkpoint.root={root}", "name=cached", "env.kwargs.horizon=9", "rollout.num_envs=8",
        "policy.controller.hidden_size=8", "learner.mode=truncated", "learner.bptt_length=4",
        "learner.num_minibatches=2",
        "train.total_timesteps=80", "train.evaluation_episodes=8", "tracking.enabled=false",
    ]  # fmt: skip
    return train(load_config(None, overrides), local=True, progress=False).folder


def test_a_run_is_diagnosed_and_left_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["diagnose", str(run), "--plot", str(tmp_path / "reach.png")]) == 0
    said = capsys.readouterr().out
    assert "mode: truncated 4, fresh carries" in said
    assert "no gradient reaches further than 3 steps, the task remembers 9: raise learner.bptt_length above 9" in said
    assert (tmp_path / "reach.png").read_bytes().startswith(b"\x89PNG")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_same_seed_gives_the_same_figures(run: Path) -> None:
    first, second, other = (diagnose(run, seed=seed, num_envs=4) for seed in (1, 1, 2))
    assert first.fidelity == second.fidelity != other.fidelity
    np.testing.assert_array_equal(first.reach, second.reach)


@pytest.mark.parametrize(
    ("reach", "horizon", "bptt_length", "fidelity", "sentences"),
    [
        ([1.0, 0.5, 0.1], 3, 10, ALIKE, []),
        ([1.0, 0.5, np.nan], 3, 10, ALIKE, ["further than 2 steps, the task remembers 3: raise rollout.unroll_length"]),
        ([0.0, 0.0, 0.0], 2, 1, ALIKE, ["goes back through time, the task remembers 2: set learner.mode=truncated"]),
        ([0.0, 0.0, 0.0], 0, 1, ALIKE, []),
        ([1.0], None, 1, Fidelity(0.5, 1.0, 0.4, 1.0), ["(cosine 0.50, of the recurrent core 0.40)"]),
    ],
)
def test_what_is_out_of_range_is_said(
    reach: list[float], horizon: int | None, bptt_length: int, fidelity: Fidelity, sentences: list[str]
) -> None:
    found = list(Diagnosis("full", fidelity, np.array(reach), horizon, bptt_length).words())
    assert len(found) == len(sentences)
    assert all(sentence in said for sentence, said in zip(sentences, found, strict=True))


def test_distances_are_powers_of_two() -> None:
    assert [distances(length) for length in (1, 2, 9)] == [[0], [0, 1], [0, 1, 2, 4, 8]]
