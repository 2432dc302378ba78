"""`mneme diagnose` says what a run's mode does to its gradient, and what would mend it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mneme.agent import load_policy
from mneme.cli import main
from mneme.configuration.config import load_config
from mneme.experiments.carries import Ageing, turnover
from mneme.experiments.diagnosing import Diagnosis, diagnose, distances
from mneme.learner import Learner
from mneme.learner.fidelity import Fidelity
from mneme.learner.staleness import Staleness
from mneme.rollout_workers import Fragment
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


def test_a_run_of_whole_episodes_is_diagnosed_on_whole_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [
        f"checkpoint.root={tmp_path}", "name=packed", "env.kwargs={horizon: 9, shortest_horizon: 2}",
        "rollout.num_envs=8", "rollout.batching=episodes", "rollout.unroll_length=24",
        "policy.controller.hidden_size=8", "learner.num_minibatches=2", "train.total_timesteps=384",
        "train.evaluation_episodes=8", "tracking.enabled=false",
    ]  # fmt: skip
    folder = train(load_config(None, overrides), local=True, progress=False).folder
    seen: list[Any] = []
    learn = Learner.diagnose

    def watched(self: Learner, batches: Any) -> Any:
        seen.extend(batches)
        return learn(self, batches)

    monkeypatch.setattr(Learner, "diagnose", watched)
    found = diagnose(folder)
    (fragment,) = map(Fragment.from_arrow, seen)
    assert fragment.resets[:, 24].all()  # no row ends in the middle of an episode
    assert found.fidelity.cosine == pytest.approx(1.0, abs=1e-5)
    assert len(found.ageing.by_epoch) == 4


def test_what_was_not_measured_is_a_dash() -> None:
    nothing = float("nan")
    found = Diagnosis(
        "full", Fidelity(1.0, 1.0, nothing, nothing), np.array([0.5, nothing]), None, 2, False,
        Ageing([Staleness(0, nothing, nothing, {}, {})], []), {}, {},
    )  # fmt: skip
    lines = list(found.lines())
    assert "nan" not in "\n".join(lines)
    assert "beside full, recurrent core: cosine –, norm – times" in lines
    assert "       1  –" in lines
    assert "staleness of stored carries, by epoch: 1: –" in lines


def test_the_same_seed_gives_the_same_figures(run: Path) -> None:
    first, second, other = (diagnose(run, seed=seed, num_envs=4) for seed in (1, 1, 2))
    assert first.fidelity == second.fidelity != other.fidelity
    np.testing.assert_array_equal(first.reach, second.reach)


@pytest.mark.parametrize(
    ("reach", "horizon", "bptt_length", "fidelity", "sentences"),
    [
        ([1.0, 0.5, 0.1], 3, 10, ALIKE, []),
        ([1.0, 0.5], 3, 2, ALIKE, ["further than 2 steps, the task remembers 3: raise rollout.unroll_length"]),
        ([1.0, 0.5, *[np.nan] * 8], 3, 10, ALIKE, []),  # long enough, but no episode was followed to its end
        ([0.0, 0.0, 0.0], 2, 1, ALIKE, ["goes back through time, the task remembers 2: set learner.mode=truncated"]),
        ([0.0, 0.0, 0.0], 0, 1, ALIKE, []),
        ([1.0], None, 1, Fidelity(0.5, 1.0, 0.4, 1.0), ["(cosine 0.50, of the recurrent core 0.40)"]),
    ],
)
def test_what_is_out_of_range_is_said(
    reach: list[float], horizon: int | None, bptt_length: int, fidelity: Fidelity, sentences: list[str]
) -> None:
    nothing = Ageing([], [])
    diagnosis = Diagnosis("full", fidelity, np.array(reach), horizon, bptt_length, False, nothing, {"h": 0.1}, {})
    found = list(diagnosis.words())
    assert len(found) == len(sentences)
    assert all(sentence in said for sentence, said in zip(sentences, found, strict=True))


@pytest.mark.parametrize(
    ("recent", "stored", "staleness", "sentences"),
    [
        ({"kl": 0.05, "clip_fraction": 0.2, "effective_sample_size": 0.95, "explained_variance": 0.5}, True, 0.2, []),
        ({"kl": 0.2}, False, 0.9, ["kl is 0.2 of late: an update changes the policy by much: lower learner.learning_"]),
        ({"explained_variance": -0.1}, False, 0.0, ["values say less than their mean"]),
        ({"effective_sample_size": 0.4}, False, 0.0, ["few steps of a batch decide"]),
        ({}, True, 0.4, ["stored carries are 0.40 of their size away from those of the weights: set learner.carry_s"]),
    ],
)
def test_what_training_measured_and_how_carries_age_are_judged(
    recent: dict[str, float], stored: bool, staleness: float, sentences: list[str]
) -> None:
    aged = Ageing([Staleness(1, staleness, 0.0, {}, {})], [])
    found = list(Diagnosis("full", ALIKE, np.array([1.0]), 0, 1, stored, aged, {}, recent).words())
    assert len(found) == len(sentences)
    assert all(sentence in said for sentence, said in zip(sentences, found, strict=True))


def test_carries_age_with_every_epoch_and_a_step_replaces_a_share_of_them(run: Path) -> None:
    found = diagnose(run, num_envs=4)
    epochs = [staleness.distance for staleness in found.ageing.by_epoch]
    assert len(epochs) == 4
    assert 0 < epochs[0] < epochs[-1] == found.ageing.by_lag[0].distance
    assert len(found.ageing.by_lag) == 1
    assert found.turnover.keys() == {"h"}
    assert 0 < found.turnover["h"] < 2
    assert {"kl", "explained_variance", "effective_sample_size"} <= found.recent.keys()


def test_the_turnover_of_a_counter_is_its_step(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A carry that is the number of steps so far: from n to n + 1 it changes by 1 / (n + 1), in the median."""
    loaded = load_policy(run)

    def scan(x: Any, reset: Any, carry: Any, cut: Any = None) -> Any:
        h = torch.where(reset[0].unsqueeze(1), 0.0, carry["h"]) + 1
        return h.unsqueeze(0), {"h": h}

    monkeypatch.setattr(loaded.policy.controller, "run", scan)
    monkeypatch.setattr(loaded.policy.controller, "fast_step", lambda x, c: (c["h"] + 1, {"h": c["h"] + 1}))
    monkeypatch.setattr(loaded.policy.controller, "stepper", lambda: loaded.policy.controller._reset_and_step)
    assert turnover(loaded, seed=0)["h"] == pytest.approx(np.median([1 / n for n in range(2, 10)]), abs=0.05)


def test_a_controller_that_carries_nothing_is_named() -> None:
    (said,) = Diagnosis("full", ALIKE, np.full(5, np.nan), 3, 5, False, Ageing([], []), {}, {}).words()
    assert said.startswith("the controller carries nothing, the task remembers 3: choose another")


def test_the_mode_is_that_in_which_the_run_is(tmp_path: Path) -> None:
    overrides = [
        f"checkpoint.root={tmp_path}", "env.kwargs.horizon=9", "rollout.num_envs=8", "learner.mode_schedule=steps",
        "policy.controller.hidden_size=8", "learner.num_minibatches=2", "learner.mode_switches=[0.1, 0.2]",
        "train.total_timesteps=400", "train.evaluation_episodes=8", "tracking.enabled=false",
    ]  # fmt: skip
    scheduled = train(load_config(None, overrides), local=True, progress=False).folder
    found = diagnose(scheduled, num_envs=4)
    assert (found.mode, found.bptt_length) == ("full", 10)
    assert found.fidelity.cosine == pytest.approx(1, abs=1e-4)


def test_distances_are_powers_of_two() -> None:
    assert [distances(length) for length in (1, 2, 9)] == [[0], [0, 1], [0, 1, 2, 4, 8]]
