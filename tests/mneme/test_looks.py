"""What decides that a run is over, what it reports, and what an evaluation that fails costs."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from mneme.callbacks import Look
from mneme.configuration.config import Config, load_config
from mneme.distributed.runners import LocalRunner
from mneme.rollout_workers import Evaluation, EvaluationError
from mneme.storage.checkpoint import list_checkpoints
from mneme.storage.run_folder import RunFolder
from mneme.training import resume, train

pytestmark = pytest.mark.usefixtures("undrawn")


def config(tmp_path: Path, *overrides: str) -> Config:
    return load_config(
        None,
        [f"checkpoint.root={tmp_path}", "name=run", "tracking.enabled=false", "rollout.num_envs=16",
         "learner.num_threads=1",
         "env.kwargs={horizon: 6}", "policy.controller.hidden_size=8", "policy.controller.backend=torch",
         "train.total_timesteps=1120", "train.evaluate_every=112", "train.evaluation_episodes=512",
         "train.stop_success=0.99", "learner.num_epochs=1", "learner.num_minibatches=1", "rollout.unroll_length=7",
         "policy.controller.kind=mlp", "train.probe_episodes=null", *overrides],
    )  # fmt: skip


class Looks:
    """Stands in for evaluation: a policy of known success, and a record of what was asked."""

    def __init__(self, success: float) -> None:
        self.success = success
        self.seeds: list[int] = []
        self.seen: list[float] = []
        self.lucky: set[int] = set()

    def evaluate(self, runner: LocalRunner, episodes: int, seed: int) -> Evaluation:
        successes = np.random.default_rng(seed).random(episodes) < (1.0 if seed in self.lucky else self.success)
        self.seeds.append(seed)
        self.seen.append(float(successes.mean()))
        returns = successes.astype(np.float64)
        return Evaluation(returns, np.full(episodes, 7), successes, successes.astype(np.uint64))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Looks:
    made = Looks(request.param)
    monkeypatch.setattr(LocalRunner, "evaluate", lambda *arguments: made.evaluate(*arguments))
    return made


@pytest.mark.parametrize("looks", [1.0], indirect=True)
def test_a_success_is_confirmed_and_a_third_look_is_reported(tmp_path: Path, looks: Looks) -> None:
    result = train(config(tmp_path), local=True)
    assert result.steps == 112
    assert looks.seeds == [look.seed(0, 112) for look in (Look.EVALUATION, Look.CONFIRMATION, Look.RESULT)]
    assert len(set(looks.seeds)) == 3
    rows = RunFolder(result.folder).history()
    assert [key for row in rows for key in row if key.endswith("/success")] == [
        "evaluation/success", "confirmation/success", "evaluation/success",
    ]  # fmt: skip


@pytest.mark.parametrize("looks", [0.96], indirect=True)
def test_luck_neither_ends_a_run_nor_is_reported(tmp_path: Path, looks: Looks) -> None:
    """A policy of true success 0.96, two of whose looks are above the target of 0.99 here."""
    looks.lucky = {Look.EVALUATION.seed(0, 336), Look.CONFIRMATION.seed(0, 672)}
    result = train(config(tmp_path), local=True)
    assert result.steps == 1120
    assert Look.CONFIRMATION.seed(0, 336) in looks.seeds  # was asked, and was not lucky
    assert Look.CONFIRMATION.seed(0, 672) not in looks.seeds
    assert len(set(looks.seeds)) == len(looks.seeds) == 9 + 1 + 1  # every look has episodes of its own
    assert looks.seeds[-1] == Look.RESULT.seed(0, 1120)
    assert result.evaluation is not None
    assert result.evaluation.success_rate == looks.seen[-1] < 0.99


@pytest.mark.parametrize("looks", [0.5], indirect=True)
def test_without_success_there_is_no_confirmation(tmp_path: Path, looks: Looks) -> None:
    assert train(config(tmp_path), local=True).steps == 1120
    assert len(looks.seeds) == 9 + 1


def test_a_checkpoint_comes_before_the_first_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def checkpoints_first(*_: Any) -> Evaluation:
        assert list_checkpoints(tmp_path / "run" / "checkpoints")
        raise EvaluationError("the door stays shut")

    monkeypatch.setattr(LocalRunner, "evaluate", checkpoints_first)
    result = train(config(tmp_path), local=True)
    assert result.steps == 1120
    assert result.evaluation is None


PROBES = ("train.evaluate_every=null", "train.probe_episodes=4")  # of 7 steps each: one probe in 8 * 4 * 7 = 224 steps


@pytest.mark.parametrize("looks", [1.0], indirect=True)
def test_a_probe_that_succeeds_is_followed_by_full_looks(tmp_path: Path, looks: Looks) -> None:
    """Training's own success, by sampled actions, is that of an untrained policy."""
    result = train(config(tmp_path, *PROBES), local=True)
    assert looks.seeds == [look.seed(0, 224) for look in (Look.PROBE, Look.EVALUATION, Look.CONFIRMATION, Look.RESULT)]
    rows = RunFolder(result.folder).history()
    assert [(row["step"], row["probe/success"]) for row in rows if "probe/success" in row] == [(224, 1.0)]
    assert max(row["success"] for row in rows if "success" in row) < 0.9


@pytest.mark.parametrize("looks", [0.5], indirect=True)
def test_probes_come_at_the_same_steps_whether_a_run_is_resumed_or_not(tmp_path: Path, looks: Looks) -> None:
    first = train(config(tmp_path, *PROBES, "train.total_timesteps=336"), local=True)
    resume(first.folder, "train.total_timesteps=1120", local=True)
    at = range(224, 1120, 224)
    results = {Look.RESULT.seed(0, step) for step in (336, 1120)}
    assert [seed for seed in looks.seeds if seed not in results] == [Look.PROBE.seed(0, step) for step in (*at, 1120)]


@pytest.mark.parametrize("looks", [0.5], indirect=True)
@pytest.mark.parametrize("without", ["train.probe_episodes=null", "train.stop_success=null", "curriculum.start=2"])
def test_where_nothing_can_come_of_it_nothing_is_probed(tmp_path: Path, looks: Looks, without: str) -> None:
    train(config(tmp_path, *PROBES, without), local=True)
    assert looks.seeds == [Look.RESULT.seed(0, 1120)]


class Door(gym.Env[Any, Any]):
    """Action 1 opens it at a cost; nothing else ends an episode. A greedy policy that has learned to save never ends
    one, while a sampling one does."""

    observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)

    def reset(self, **_: Any) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), -float(action == 1), action == 1, False, {}


def test_a_greedy_policy_that_never_ends_its_episode_costs_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gym.register("Door-v0", Door)
    try:
        result = train(
            config(tmp_path, "env.id=Door-v0", "env.kwargs={}", "train.evaluation_max_steps=300",
                   "learner.num_epochs=4", "train.total_timesteps=6720", "train.evaluate_every=1120",
                   "train.stop_success=null"),
            local=True,
        )  # fmt: skip
    finally:
        del gym.registry["Door-v0"]
    assert result.steps >= 6720
    assert result.evaluation is None
    assert list_checkpoints(result.folder / "checkpoints")
    out = capsys.readouterr().out
    assert "evaluation at step 6,720 came to no result" not in out
    assert "result at step 6,720 came to no result: the environment did not finish 1 episode of a lane" in out


def test_an_environment_that_fails_in_evaluation_costs_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mneme.distributed import workers

    def no_second_one(*_: Any, **__: Any) -> Any:
        raise OSError("the licence is taken")

    monkeypatch.setattr(workers, "evaluate", no_second_one)
    result = train(config(tmp_path), local=True)
    assert result.steps == 1120
    assert "evaluation at step 112 came to no result: OSError: the licence is taken" in capsys.readouterr().out
