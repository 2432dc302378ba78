"""Runs on a real Ray: equal to the local run, whole in every mode, and steady when actors die."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest

from mneme.callbacks import Callback, Progress
from mneme.configuration.config import Config, load_config
from mneme.distributed import ray_runner
from mneme.distributed.runners import ServiceError
from mneme.envs import EnvironmentMisuse
from mneme.envs.counting import CountingEnv
from mneme.storage.checkpoint import list_checkpoints
from mneme.training import resume, train
from tests.distributed.runs import actors, updates
from tests.last_arrays import assert_same_bits, last_arrays

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("undrawn", "cluster")]

MODES = ["cached", "truncated", "full"]
ALONE = ["rollout.num_workers=1"]  # an actor takes seconds to start


def config(tmp_path: Path, *overrides: str) -> Config:
    base = [
        f"checkpoint.root={tmp_path}", "name=run", "tracking.enabled=false", "rollout.num_envs=10",
        "rollout.unroll_length=23",
        "env.id=mneme/Counting-v0", "policy.controller.hidden_size=16", "train.total_timesteps=920",
        "checkpoint.every=460", "learner.num_minibatches=2", "learner.bptt_length=5", "train.evaluation_episodes=20",
        "learner.num_threads=2",
    ]  # fmt: skip
    return load_config(None, [*base, *overrides])


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("cached", "gru"), ("truncated", "lstm"), pytest.param("full", "gru", marks=pytest.mark.slow)],
)
def test_the_ray_run_equals_the_local_run_to_the_bit_and_its_first_ratio_is_one(
    tmp_path: Path, mode: str, kind: str
) -> None:
    overrides = [f"learner.mode={mode}", f"policy.controller.kind={kind}"]
    if mode == "truncated":  # and with everything else that has a state
        overrides += ["curriculum.stages=[{shortest: 1}, {shortest: 2}]", "curriculum.episodes=64"]
        overrides += ["policy.normalize_observations=true", "learner.normalize_rewards=true"]
        overrides += ["spaces.previous_action=true", "spaces.previous_reward=true"]
    over_ray = train(config(tmp_path / "ray", *overrides))
    local = train(config(tmp_path / "local", *overrides), local=True)
    assert_same_bits(last_arrays(over_ray.folder), last_arrays(local.folder))
    assert over_ray.evaluation is not None
    assert local.evaluation is not None
    np.testing.assert_array_equal(over_ray.evaluation.returns, local.evaluation.returns)
    assert_first_ratios(over_ray.folder)


def assert_first_ratios(folder: Path) -> None:
    seen = updates(folder)
    assert len(seen) == 4
    assert max(row["ratio_error"] for row in seen) < 1e-5
    assert all(row["lag"] == 0 for row in seen)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["gru", "lstm", "mlp"])
def test_the_first_ratio_is_one_through_the_real_object_store(tmp_path: Path, mode: str, kind: str) -> None:
    overrides = [f"learner.mode={mode}", f"policy.controller.kind={kind}", "learner.num_epochs=2"]
    assert_first_ratios(train(config(tmp_path, *overrides)).folder)


def test_whole_episodes_over_ray_are_those_of_the_local_run(tmp_path: Path) -> None:
    """In the first rounds no episode has ended, and later some workers have no fragment."""
    packed = ["rollout.batching=episodes", "env.kwargs={shortest: 30, spread: 4}", "learner.normalize_rewards=true"]
    over_ray, local = (train(config(tmp_path / str(i), *packed), local=bool(i)) for i in (0, 1))
    found = last_arrays(over_ray.folder)
    assert_same_bits(found, last_arrays(local.folder))
    assert any(name.endswith("waiting.piece.lane") for name in found)
    assert over_ray.steps == local.steps >= 920
    assert max(row["ratio_error"] for row in updates(over_ray.folder)) < 1e-5
    assert max(row["lag"] for row in updates(over_ray.folder)) > 0


def test_resuming_over_ray_equals_the_uninterrupted_run(tmp_path: Path) -> None:
    straight = train(config(tmp_path), local=True)
    expected = last_arrays(straight.folder)
    resumed = resume(list_checkpoints(straight.folder / "checkpoints")[0])
    assert resumed.folder == straight.folder
    assert list((straight.folder / "checkpoints").glob("abandoned-*"))  # what is compared was written anew
    assert_same_bits(last_arrays(resumed.folder), expected)


class KillsAnActor(Callback):
    """After the first update it kills a rollout actor's process, as the kernel or a colleague might."""

    killed: int | None = None

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        if self.killed is None:
            victim, *_ = actors("RolloutWorker")
            self.killed = victim.pid
            victim.kill()


@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.slow)])
def test_a_run_survives_a_process_killed_from_outside(
    tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(config(tmp_path, "train.total_timesteps=4600", f"service.mode={mode}"), callbacks=[KillsAnActor()])
    assert result.steps >= 4600
    assert result.evaluation is not None
    assert "was lost" in capsys.readouterr().out


@pytest.fixture
def of_old() -> Iterator[None]:
    gym.register("OfOld-v0", OfOld)
    yield
    del gym.registry["OfOld-v0"]


class OfOld(CountingEnv):
    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


@pytest.mark.usefixtures("of_old")
def test_an_environment_of_an_older_interface_ends_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentMisuse, match=r"^the environment OfOld-v0 failed .* step\(\) returned 4 values"):
        train(config(tmp_path, "env.id=OfOld-v0", "service.max_restarts=1000", *ALONE))


def test_what_this_machine_will_never_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a run that has started its Ray itself, and stops it."""
    stopped = []
    monkeypatch.setattr(ray_runner, "start_ray", lambda *_: True)
    monkeypatch.setattr("ray.shutdown", lambda: stopped.append(True))
    with pytest.raises(ServiceError, match="the run asks for 64 GPU and Ray has [^;]*; lower service.learner_gpus"):
        train(config(tmp_path, "service.learner_gpus=64"))
    assert stopped
    assert list(tmp_path.iterdir()) == []  # refused before anything was made


@pytest.mark.parametrize("max_lag", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_asynchronous_service_overlaps_under_the_lag_bound(tmp_path: Path, max_lag: int) -> None:
    result = train(
        config(
            tmp_path,
            "service.mode=async",
            f"service.max_lag={max_lag}",
            "train.total_timesteps=9200",
            "learner.mode=full",
        )
    )
    seen = updates(result.folder)
    assert result.steps == 9200
    assert max(row["lag_max"] for row in seen) <= max_lag
    assert max(row["lag"] for row in seen) >= 0.5  # it did overlap
    assert max(row["ratio_error"] for row in seen) < 1e-5  # anchored
    assert max(row["staleness"] for row in seen) > 1e-6
    assert all(row["staleness_kl"] >= 0 for row in seen)


@pytest.mark.slow
def test_asynchronous_service_of_whole_episodes(tmp_path: Path) -> None:
    overrides = ["service.mode=async", "rollout.batching=episodes", "train.total_timesteps=4600"]
    result = train(config(tmp_path, *overrides, "env.kwargs={shortest: 20, spread: 9}"))
    seen = updates(result.folder)
    assert result.steps >= 4600
    assert max(row["ratio_error"] for row in seen) < 1e-5
    assert np.mean([row["padding"] for row in seen]) < 0.05


def test_ray_listens_on_loopback_only() -> None:
    ours = {process.pid for process in psutil.Process().children(recursive=True)}
    connections = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.pid in ours]
    listening = {connection.laddr.ip for connection in connections}
    assert listening
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
