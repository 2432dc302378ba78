"""A run with learner.value_loss=two_hot, and all that is done with one."""

from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import mneme
from mneme.agent import load_policy
from mneme.cli import main
from mneme.experiments.diagnosing import diagnose

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = [
    "name=run", "tracking.enabled=false", "rollout.num_envs=16", "env.kwargs.horizon=6", "train.total_timesteps=448",
    "policy.controller.hidden_size=16", "policy.controller.backend=torch", "learner.num_threads=1",
    "learner.num_minibatches=2", "train.evaluation_episodes=16", "curriculum.stages=[{horizon: 3}]",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, undrawn: None) -> Any:
    root = tmp_path_factory.mktemp("runs")
    settings = [*SMALL, "learner.value_loss=two_hot", f"checkpoint.root={root}"]
    return mneme.train("delayed_cue", *settings, local=True, progress=False)


def test_it_trains_and_starts_with_values_of_zero(run: Any) -> None:
    losses = [loss for loss in run.history()["value_loss"].to_pylist() if loss is not None]
    assert np.isfinite(losses).all() and losses[0] == pytest.approx(np.log(255), abs=1)
    assert next(value for value in run.history()["value_mean"].to_pylist() if value is not None) == 0


def test_its_agent_is_loaded_and_acts_and_is_evaluated_on_changes_of_the_task(run: Any) -> None:
    agent, loaded = mneme.load(run.folder), load_policy(run.folder)
    assert loaded.policy.value_head.out_features == loaded.blueprint.spec.value_bins == 255
    np.testing.assert_array_equal(mneme.evaluate(agent, episodes=8).returns, mneme.evaluate(run, episodes=8).returns)
    assert mneme.evaluate(agent, "env.kwargs.horizon=9", episodes=8).episodes == 8
    with closing(gym.make("mneme/DelayedCue-v0", horizon=6)) as env:
        assert env.action_space.contains(agent.session().reset(*env.reset(seed=0)))


def test_it_is_diagnosed(run: Any) -> None:
    assert diagnose(run.folder, seed=1, num_envs=4).fidelity.cosine == pytest.approx(1, abs=1e-4)


def test_its_loss_cannot_change_when_it_is_resumed(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(run.folder), "--local", "learner.value_loss=mse"]) == 2
    assert "learner.value_loss=mse is given, but a run goes on with its own settings" in capsys.readouterr().err


def test_it_resumes_to_the_bits_of_the_uninterrupted_run(run: Any, tmp_path: Path) -> None:
    settings = [*SMALL, "learner.value_loss=two_hot", f"checkpoint.root={tmp_path}", "train.total_timesteps=224"]
    short = mneme.train("delayed_cue", *settings, local=True, progress=False)
    mneme.resume(short, total_timesteps=448, local=True, progress=False)
    for name, array in load_policy(run.folder).learner.items():
        np.testing.assert_array_equal(load_policy(short.folder).learner[name], array, err_msg=name)
