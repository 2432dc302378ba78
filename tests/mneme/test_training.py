"""Whole runs in one process, without Ray: learning, resuming to the bit, and losing nothing when things go wrong."""

import json
import math
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from mneme import active_run
from mneme.configuration.config import Config, load_config
from mneme.distributed.config import ConfigError
from mneme.distributed.runners import LocalRunner, ServiceError
from mneme.envs import EnvironmentFailure
from mneme.envs.counting import Counting
from mneme.evaluation import evaluate_checkpoint
from mneme.storage.checkpoint import CheckpointError, list_checkpoints, load_checkpoint, save_checkpoint
from mneme.storage.run_folder import RunFolder
from mneme.training import Run, resume, train
from tests.last_arrays import assert_same_bits, last_arrays

pytestmark = pytest.mark.usefixtures("undrawn")


def small(tmp_path: Path, *overrides: str) -> Config:
    """Four updates of 112 steps, each with a checkpoint."""
    base = [
        f"checkpoint.root={tmp_path}", "name=run", "tracking.enabled=false", "rollout.num_envs=16",
        "env.kwargs.horizon=6", "policy.controller.hidden_size=16", "train.total_timesteps=448", "checkpoint.every=112",
        "checkpoint.keep=100", "train.evaluation_episodes=16", "learner.num_threads=2", "learner.num_epochs=2",
        "learner.num_minibatches=2",
    ]  # fmt: skip
    return load_config(None, [*base, *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small run that nothing happened to, for whoever leaves it as it is."""
    return train(small(tmp_path_factory.mktemp("finished")), local=True)


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Path:
    """A copy of its folder, to be changed."""
    return shutil.copytree(finished.folder, tmp_path / "run")


def counted(folder: Path) -> list[tuple[float, ...]]:
    """Step, episodes and their mean return of every update."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["episodes"], row.get("return", math.nan)) for row in rows if "kl" in row]


def short_delay(tmp_path: Path, *overrides: str) -> Config:
    return load_config(
        None,
        [f"checkpoint.root={tmp_path}", "name=run", "tracking.enabled=false", "env.kwargs.horizon=10",
         "env.kwargs.cues=4", "policy.controller.hidden_size=64", "learner.gae_lambda=0",
         "train.evaluation_episodes=512", *overrides],
    )  # fmt: skip


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The default controller, trained until it remembers."""
    root = tmp_path_factory.mktemp("learned")
    return train(short_delay(root, "train.total_timesteps=200000", "train.stop_success=0.99"), local=True)


def test_it_learns_a_short_delay_and_forgetting_undoes_it(learned: Run) -> None:
    assert learned.evaluation is not None
    assert learned.evaluation.success_rate is not None
    assert learned.evaluation.success_rate >= 0.99
    assert learned.steps < 200_000
    remembers = evaluate_checkpoint(learned.folder, episodes=256, num_envs=64, seed=5)
    assert remembers.success_rate is not None
    assert remembers.success_rate >= 0.97
    forgets = evaluate_checkpoint(learned.folder, episodes=512, num_envs=64, seed=5, reset_carry_at=5)
    assert forgets.success_rate is not None
    assert 0.18 < forgets.success_rate < 0.32  # 0.25 and its 99.9 % interval


def test_a_controller_without_memory_stays_at_chance_where_one_with_it_learns(tmp_path: Path, learned: Run) -> None:
    config = short_delay(tmp_path, "policy.controller.kind=mlp", f"train.total_timesteps={learned.steps}")
    evaluation = train(config, local=True).evaluation
    assert evaluation is not None
    assert evaluation.success_rate is not None
    assert 0.18 < evaluation.success_rate < 0.32


@pytest.mark.parametrize(
    ("mode", "env"),
    [*product(["cached", "truncated", "full"], ["DelayedCue", "Counting", "Counting, packed"]), ("traces", "Counting")],
)
def test_same_seed_same_bits_and_resume_equals_the_uninterrupted_run(tmp_path: Path, mode: str, env: str) -> None:
    overrides = [
        f"learner.mode={mode}",
        "learner.bptt_length=3",
        "learner.lr_schedule=linear",
        "rollout.unroll_length=8",
    ]
    if mode == "traces":
        overrides += ["policy.controller.kind=mingru"]
    if env != "DelayedCue":  # of several lengths: at the checkpoint some have ended that are not yet counted
        overrides += ["env.id=mneme/Counting-v0", "env.kwargs={}"]
        overrides += ["policy.normalize_observations=true", "learner.normalize_rewards=true"]
        overrides += ["spaces.previous_action=true", "spaces.previous_reward=true", "spaces.stack=3"]
        if "packed" in env:  # episodes wait, and some are longer than a row
            overrides += ["rollout.batching=episodes", "env.kwargs={shortest: 3, spread: 9}"]
            overrides += [f"learner.carry_source={'stored' if mode == 'truncated' else 'fresh'}"]
        elif mode == "truncated":  # what a lane has been through is part of its state
            overrides += ["learner.anchor=always", "rollout.warm_up=10"]
    straight = train(small(tmp_path / "a", *overrides), local=True)
    again = train(small(tmp_path / "b", *overrides), local=True)
    assert_same_bits(last_arrays(straight.folder), last_arrays(again.folder))

    checkpoints = list_checkpoints(again.folder / "checkpoints")
    assert len(checkpoints) == 4
    resumed = resume(checkpoints[1], local=True)
    assert resumed.folder == again.folder
    assert_same_bits(last_arrays(straight.folder), last_arrays(resumed.folder))
    # What was written after the checkpoint was forgotten, then written again, of the same episodes.
    assert counted(straight.folder) == counted(resumed.folder)


def test_another_seed_gives_other_bits(tmp_path: Path, finished: Run) -> None:
    other = train(small(tmp_path, "seed=1"), local=True)
    name = "learner/policy.policy_head.weight"
    assert not np.array_equal(last_arrays(finished.folder)[name], last_arrays(other.folder)[name])


def test_one_worker_and_two_give_the_same_batch_and_first_update(tmp_path: Path) -> None:
    first_rows = []
    for workers in (1, 2, 4):
        overrides = [f"rollout.num_workers={workers}", "train.total_timesteps=112"]
        folder = train(small(tmp_path / str(workers), *overrides), local=True).folder
        first_rows.append(json.loads((folder / "metrics.jsonl").read_text().splitlines()[0]))
    for name in ("return", "policy_loss", "value_loss", "entropy", "kl", "grad_norm", "value_mean"):
        assert first_rows[1][name] == pytest.approx(first_rows[0][name], rel=1e-3, abs=1e-6), name
        assert first_rows[2][name] == pytest.approx(first_rows[0][name], rel=1e-3, abs=1e-6), name


def test_resume_can_train_for_longer(tmp_path: Path, finished: Run) -> None:
    short = train(small(tmp_path, "train.total_timesteps=224"), local=True)
    longer = resume(short.folder, "train.total_timesteps=448", local=True)
    assert longer.steps == 448
    assert_same_bits(last_arrays(finished.folder), last_arrays(longer.folder))


def test_resume_falls_back_to_the_checkpoint_before_a_damaged_one(finished: Run, copied: Path, capsys: Any) -> None:
    newest = list_checkpoints(copied / "checkpoints")[-1]
    (newest / "learner.safetensors").write_bytes(b"garbage")
    resumed = resume(copied, local=True)
    assert "damaged" in capsys.readouterr().out
    assert_same_bits(last_arrays(finished.folder), last_arrays(resumed.folder))


def test_ctrl_c_leaves_a_checkpoint_and_a_resumable_run(
    tmp_path: Path, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, calls = LocalRunner.learn, iter(range(100))

    def interrupted(self: LocalRunner, fragments: Any) -> Any:
        if next(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return learn(self, fragments)

    monkeypatch.setattr(LocalRunner, "learn", interrupted)
    stopped = train(small(tmp_path, "checkpoint.every=1000"), local=True)
    assert stopped.interrupted
    assert stopped.evaluation is None
    assert stopped.steps == 224
    monkeypatch.undo()
    assert_same_bits(last_arrays(finished.folder), last_arrays(resume(stopped.folder, local=True).folder))


def test_a_full_disk_costs_a_checkpoint_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, calls = active_run.save_checkpoint, iter(range(100))

    def sometimes_full(*arguments: Any) -> Path:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        return save(*arguments)

    monkeypatch.setattr(active_run, "save_checkpoint", sometimes_full)
    result = train(small(tmp_path), local=True)
    assert result.steps == 448
    assert len(list_checkpoints(result.folder / "checkpoints")) == 3
    assert "No space left on device" in capsys.readouterr().out


class Faulty(Counting):
    """A counting environment that returns something wrong now and then."""

    def __init__(self, num_envs: int = 1, *, every: int = 40, what: str = "reward", **options: Any) -> None:
        super().__init__(num_envs, **options)
        self._every, self._what, self._steps = every, what, 0

    def step(self, actions: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(actions)
        self._steps += 1
        if self._steps % self._every == 0:
            if self._what == "reward":
                reward[0] = np.nan
            else:
                observation[0, 0] = np.inf
        return observation, reward, terminated, truncated, info


@pytest.fixture
def faulty() -> Iterator[str]:
    gym.register("Faulty-v0", vector_entry_point=Faulty)
    yield "Faulty-v0"
    del gym.registry["Faulty-v0"]


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_a_value_that_is_not_finite_costs_a_fragment_not_the_run(
    tmp_path: Path, faulty: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(
        small(tmp_path, f"env.id={faulty}", f"env.kwargs={{every: 20, what: {what}}}", "rollout.unroll_length=7"),
        local=True,
    )
    assert result.steps == 448
    out = capsys.readouterr().out
    assert f"a fragment was not used: column {what}" in out
    assert all(np.isfinite(a).all() for name, a in last_arrays(result.folder).items() if "policy." in name)


def test_an_environment_that_only_returns_nonsense_ends_the_run_with_a_sentence(tmp_path: Path, faulty: str) -> None:
    config = small(
        tmp_path, f"env.id={faulty}", "env.kwargs={every: 1}", "rollout.unroll_length=7", "service.max_restarts=2"
    )
    with pytest.raises(ServiceError, match="3 rounds in a row brought no fragment: .*rewards.* holds nan"):
        train(config, local=True)


def test_a_checkpoint_of_another_architecture_is_named(tmp_path: Path, finished: Run) -> None:
    saved = load_checkpoint(list_checkpoints(finished.folder / "checkpoints")[-1])
    saved.run["config"]["policy"]["controller"]["hidden_size"] = 24
    other = save_checkpoint(tmp_path / "other" / "checkpoints", 1, saved.run, saved.arrays, keep=1)
    with pytest.raises(CheckpointError, match="do not fit its configuration: .*float32 .* it must be float32"):
        evaluate_checkpoint(other, episodes=16, num_envs=16, seed=0)
    with pytest.raises(CheckpointError, match="do not fit its configuration: .*float32 .* it must be float32"):
        resume(other, "train.total_timesteps=2240", local=True)


def test_a_replay_too_small_for_one_update_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="service.replay_bytes is 1000, less than the 2 fragments of"):
        train(small(tmp_path, "service.replay_bytes=1000"), local=True)
    assert list(tmp_path.iterdir()) == []  # before anything started


def test_a_run_never_overwrites_another(copied: Path) -> None:
    with pytest.raises(ConfigError, match="exists already; choose another name"):
        train(small(copied.parent), local=True)


def test_a_run_that_failed_before_it_had_trained_begins_anew_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(LocalRunner, "start", lambda _: (_ for _ in ()).throw(EnvironmentFailure("it is out of order")))
        with pytest.raises(EnvironmentFailure):
            train(small(tmp_path), local=True, progress=False)
    run = tmp_path / "run"
    assert {"config.yaml", "log.jsonl", "state.json"} <= {path.name for path in run.iterdir()}
    with pytest.raises(CheckpointError, match=r"no usable checkpoint under .*choose another run, or train it anew"):
        resume(run, local=True, progress=False)
    assert train(small(tmp_path), local=True, progress=False).steps == 448
    assert f"{run} held a run that ended before its first checkpoint; it begins anew" in notes


def test_a_run_with_metrics_and_without_a_checkpoint_is_left_alone(copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(ConfigError, match=r"exists already; choose another name=\.\.\., or move it: it holds no check"):
        train(small(copied.parent), local=True, progress=False)
    assert (copied / "metrics.jsonl").exists()
    with closing(RunFolder(copied).lock()), pytest.raises(ConfigError, match="another process is training in"):
        train(small(copied.parent), local=True, progress=False)


def test_resuming_an_older_checkpoint_sets_the_abandoned_future_aside(copied: Path) -> None:
    root = copied / "checkpoints"
    future = root / "step-000000090000"
    list_checkpoints(root)[-1].rename(future)
    resumed = resume(list_checkpoints(root)[1], local=True)
    assert list_checkpoints(root)[-1].name == f"step-{resumed.steps:012d}"
    assert (root / f"abandoned-{future.name}").is_dir()


def test_one_folder_is_trained_in_by_one_process(finished: Run) -> None:
    with RunFolder(finished.folder).lock(), pytest.raises(ConfigError, match="another process is training in"):
        resume(finished.folder, "train.total_timesteps=2240", local=True)


def test_a_complete_run_is_not_resumed_by_accident(finished: Run) -> None:
    with pytest.raises(ConfigError, match="complete at step 448; .* train.total_timesteps=N"):
        resume(finished.folder, local=True)


def test_an_environment_without_a_state_resumes_with_new_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate of nothing the same seeds and noise would give the same returns again."""
    cart = [
        "env.id=CartPole-v1", "env.kwargs={}", "env.vectorization_mode=sync", "rollout.num_envs=4",
        "rollout.unroll_length=64", "learner.learning_rate=1e-12",
    ]  # fmt: skip
    run = train(small(tmp_path, *cart, "train.total_timesteps=256"), local=True)
    resume(run.folder, "train.total_timesteps=512", local=True)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    returns = {row["step"]: row["return"] for row in rows if "kl" in row}
    assert returns.keys() == {256, 512}
    assert returns[256] != returns[512]
    assert "resumes with new episodes" in capsys.readouterr().out


class Raising(Counting):
    """An environment with a bug."""

    def step(self, actions: Any) -> Any:
        raise RuntimeError("the physics exploded")


class Misshapen(Counting):
    """An environment that does not keep to its own observation space."""

    def step(self, actions: Any) -> Any:
        observation, *rest = super().step(actions)
        return observation[:, :2], *rest


@pytest.mark.parametrize(("kind", "sentence"), [(Raising, "the physics exploded"), (Misshapen, "it must be .8, 3.")])
def test_an_environment_that_fails_is_named(tmp_path: Path, kind: type[Counting], sentence: str) -> None:
    gym.register("Broken-v0", vector_entry_point=kind)
    try:
        with pytest.raises(EnvironmentFailure, match=f"the environment Broken-v0 failed at step 0 .*{sentence}"):
            train(small(tmp_path, "env.id=Broken-v0", "env.kwargs={}", "rollout.unroll_length=7"), local=True)
    finally:
        del gym.registry["Broken-v0"]


class Endless(gym.Env[Any, Any]):
    """An environment that never ends an episode."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)

    def reset(self, **_: Any) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_an_environment_that_never_ends_an_episode_is_said_and_not_waited_for(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_run, "_ENDLESS", 100)
    gym.register("Endless-v0", Endless)
    try:
        endless = [
            "env.id=Endless-v0", "env.kwargs={}", "rollout.num_envs=4", "rollout.unroll_length=32",
            "train.total_timesteps=640", "train.evaluation_episodes=4", "policy.controller.kind=mlp",
            "learner.num_epochs=1",
        ]  # fmt: skip
        result = train(small(tmp_path / "a", *endless), local=True)
        assert result.evaluation is None
        out = capsys.readouterr().out
        assert out.count("no episode has ended in 128 steps of each lane") == 1
        result = train(small(tmp_path / "b", *endless, "env.max_episode_steps=20"), local=True)
        assert result.evaluation is not None
        assert (result.evaluation.lengths == 20).all()
        assert "no episode has ended" not in capsys.readouterr().out
    finally:
        del gym.registry["Endless-v0"]


class OneLong(Endless):
    """Of every four of them one plays an episode of 110 steps, the others of two."""

    made = 0

    def __init__(self) -> None:
        OneLong.made += 1
        self.left = self.length = 2 if OneLong.made % 4 else 110

    def reset(self, **_: Any) -> Any:
        self.left = self.length
        return super().reset()

    def step(self, action: Any) -> Any:
        self.left -= 1
        observation, reward, *_ = super().step(action)
        return observation, reward, self.left == 0, False, {}


def test_episodes_that_wait_for_a_long_one_to_be_counted_have_ended(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_run, "_ENDLESS", 100)
    gym.register("OneLong-v0", OneLong)
    try:
        settings = [
            "env.id=OneLong-v0", "env.kwargs={}", "rollout.num_envs=4", "rollout.num_workers=1",
            "rollout.unroll_length=25", "train.total_timesteps=400", "train.evaluation_episodes=4",
            "policy.controller.kind=mlp", "learner.num_epochs=1",
        ]  # fmt: skip
        assert train(small(tmp_path, *settings), local=True).evaluation is not None
        assert "no episode has ended" not in capsys.readouterr().out
    finally:
        del gym.registry["OneLong-v0"]


def test_async_needs_ray(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="service.mode is async"):
        train(small(tmp_path, "service.mode=async"), local=True)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("policy.controller.backend=triton", "does not run on cpu here: it is made for CUDA devices"),
        ("learner.device=cpus", "learner.device is 'cpus'"),
    ],
)
def test_what_cannot_run_on_this_machine_is_refused_before_anything_starts(
    tmp_path: Path, override: str, sentence: str
) -> None:
    for local in (True, False):
        with pytest.raises(ConfigError, match=sentence):
            train(small(tmp_path, override), local=local)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("undrawn")
def test_a_run_says_what_its_precision_comes_to_on_this_machine(tmp_path: Path, notes: list[str]) -> None:
    train(small(tmp_path, "learner.precision=tf32", "learner.device=cpu"), local=True)
    assert "learner.precision is tf32, which NVIDIA's GPUs have; on cpu it is float32" in notes


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run at"):
        resume(tmp_path, local=True)


def test_a_local_run_exports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mneme.training.RayExport", lambda: pytest.fail("it was asked for"))
    train(small(tmp_path, "train.total_timesteps=64"), local=True)


def test_the_local_result_is_complete(finished: Run) -> None:
    assert {p.name for p in finished.folder.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.yaml",
        "curve.png",
        "log.jsonl",
        "metrics.jsonl",
        "state.json",
    }
    row = json.loads((finished.folder / "metrics.jsonl").read_text().splitlines()[-2])  # before the result's
    assert row["step"] == finished.steps == 448
    said = [json.loads(line) for line in (finished.folder / "log.jsonl").read_text().splitlines()]
    assert said[0]["message"].startswith("observed: ")
    assert said[-1]["message"].startswith("result at step 448: ") and said[-1]["step"] == 448
    parts = ("env", "inference", "transport", "windows", "forward", "backward")
    assert {f"seconds/{part}" for part in parts} <= row.keys()
