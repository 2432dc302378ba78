"""The service on a real Ray: equal to the local run, whole in every mode, and steady when actors die."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import ray
import torch

from mneme.callbacks import Callback, Progress
from mneme.configuration.config import Config, load_config
from mneme.distributed import ray_runner, stragglers
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.ray_runner import RayRunner
from mneme.distributed.replay import Replay
from mneme.distributed.runners import ServiceError
from mneme.distributed.service import asynchronous, synchronous
from mneme.envs import EnvironmentMisuse
from mneme.envs.counting import CountingEnv
from mneme.learner.batch import SequenceBatch
from mneme.learner.windows import cut
from mneme.rollout_workers import EvaluationError, Fragment
from mneme.storage.checkpoint import list_checkpoints, load_checkpoint
from mneme.training import resume, train

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


def rows(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "policy_loss" in line]


def last_arrays(folder: Path) -> dict[str, np.ndarray]:
    loaded = load_checkpoint(list_checkpoints(folder / "checkpoints")[-1])
    return {f"{part}/{name}": array for part, arrays in loaded.arrays.items() for name, array in arrays.items()}


@pytest.fixture
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RayRunner]:
    made = RayRunner(make_blueprint(config(tmp_path, *getattr(request, "param", ()))))
    made.start()
    yield made
    for actor in [*made.fleet._actors, *made.learner.actors]:
        ray.kill(actor)


@pytest.mark.parametrize(("mode", "kind"), [("cached", "gru"), ("truncated", "lstm"), ("full", "gru")])
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
    a, b = last_arrays(over_ray.folder), last_arrays(local.folder)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert over_ray.evaluation is not None
    assert local.evaluation is not None
    np.testing.assert_array_equal(over_ray.evaluation.returns, local.evaluation.returns)
    assert_first_ratios(over_ray.folder)


def assert_first_ratios(folder: Path) -> None:
    seen = rows(folder)
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
    a, b = last_arrays(over_ray.folder), last_arrays(local.folder)
    assert a.keys() == b.keys()
    assert any(name.endswith("waiting.piece.lane") for name in a)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert over_ray.steps == local.steps >= 920
    assert max(row["ratio_error"] for row in rows(over_ray.folder)) < 1e-5
    assert max(row["lag"] for row in rows(over_ray.folder)) > 0


def test_resuming_over_ray_equals_the_uninterrupted_run(tmp_path: Path) -> None:
    straight = train(config(tmp_path))
    a = last_arrays(straight.folder)
    resumed = resume(list_checkpoints(straight.folder / "checkpoints")[0])
    assert resumed.folder == straight.folder
    assert list((straight.folder / "checkpoints").glob("abandoned-*"))  # what is compared was written anew
    b = last_arrays(resumed.folder)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("service", [[f"learner.mode={mode}"] for mode in MODES], indirect=True, ids=MODES)
def test_the_counting_environment_arrives_in_order(service: RayRunner) -> None:
    """Worker, object store, replay, windows: every step is where its own number says."""
    plan = make_blueprint_of(service).config.learner.plan(23)
    replay: Replay[Any] = Replay(10**9, max_lag=0)
    for round_ in range(2):
        arrivals = service.collect()
        assert [a.delivery.worker for a in arrivals] == [0, 1]
        for arrival in arrivals:
            replay.add(arrival.fragment, arrival.delivery.nbytes, 0, arrival.delivery.version)
        fragments = [
            Fragment.from_arrow(batch) for batch in ray.get([held.ref for held in replay.sample(2, service.version)])
        ]
        for worker, fragment in enumerate(fragments):
            observation = fragment.observations["observation"]
            assert not observation.flags.writeable  # a view of the object store
            assert (fragment.worker == worker).all()
            np.testing.assert_array_equal(fragment.lane, worker * 5 + observation[:, 0, 1])
        batch = SequenceBatch.from_fragments(fragments, torch.device("cpu"))
        observations = cut(batch.observations["observation"][:, :23], plan.window)
        resets, mask = cut(batch.resets[:, :23], plan.window), cut(batch.valid, plan.window)
        rewards = cut(batch.rewards, plan.window)
        windows_per_sequence = mask.shape[1] // 10
        for w in range(mask.shape[1]):
            lane = (w // windows_per_sequence) % 5
            for k in range(plan.window):
                if mask[k, w]:
                    at = round_ * 23 + (w % windows_per_sequence) * plan.window + k
                    step, number, episode = observations[k, w].tolist()
                    assert (step, number, episode) == (at % (3 + lane), lane, at // (3 + lane))
                    assert bool(resets[k, w]) == (step == 0)
                    assert float(rewards[k, w]) == step


def test_the_actor_that_a_synchronous_update_waits_for_is_named(
    service: RayRunner, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service.collect()
    assert notes == []
    monkeypatch.setattr(stragglers, "SECONDS", 0.0)
    monkeypatch.setattr(stragglers, "RATIO", 0.0)
    slowest = max(service.collect(), key=lambda arrival: service.fleet._idle_since[arrival.delivery.worker])
    (note,) = notes
    assert note.startswith(f"the update waits for rollout actor {slowest.delivery.worker}: it delivered after ")


def make_blueprint_of(service: RayRunner) -> Any:
    return ray.get(service.fleet._blueprint)


def test_a_killed_actor_costs_what_it_had_in_flight(service: RayRunner, notes: list[str]) -> None:
    updates = synchronous(service, Replay(10**9, 0), patience=3)
    assert len(next(updates).deliveries) == 2
    for worker in service.fleet.idle:
        service.fleet.request(worker, service.learner.weights, 0)
    ray.kill(service.fleet._actors[0])
    update = next(updates)  # goes on with what arrived
    assert 1 <= len(update.deliveries) <= 2
    assert update.report.version == 2
    service.fleet.muster(all_of_them=True)
    update = next(updates)
    assert len(update.deliveries) == 2
    assert update.condition.restarts == 1
    assert any("rollout actor 0 was lost" in note for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize("service", [["service.collect_timeout=8"]], indirect=True)
def test_an_actor_that_is_stopped_is_replaced(service: RayRunner, notes: list[str]) -> None:
    pid = ray.get(service.fleet._actors[1].__ray_call__.remote(lambda _: psutil.Process().pid))
    service.collect()
    psutil.Process(pid).suspend()
    assert [arrival.delivery.worker for arrival in service.collect()] == [0]
    assert any("rollout actor 1 was lost (it did not deliver within 8 seconds)" in note for note in notes)
    service.fleet.muster(all_of_them=True)
    assert [arrival.delivery.worker for arrival in service.collect()] == [0, 1]


class KillsAnActor(Callback):
    """After the first update it kills a rollout actor's process, as the kernel or a colleague might."""

    killed: int | None = None

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        if self.killed is None:
            victims = [p for p in psutil.Process().children(recursive=True) if is_rollout_worker(p)]
            self.killed = victims[0].pid
            victims[0].kill()


def is_rollout_worker(process: psutil.Process) -> bool:
    try:
        return "RolloutWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_run_survives_a_process_killed_from_outside(
    tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(config(tmp_path, "train.total_timesteps=4600", f"service.mode={mode}"), callbacks=[KillsAnActor()])
    assert result.steps >= 4600
    assert result.evaluation is not None
    assert "was lost" in capsys.readouterr().out


@pytest.mark.parametrize("service", [["service.max_restarts=1"]], indirect=True)
def test_an_actor_that_keeps_dying_ends_the_run_with_a_sentence(service: RayRunner) -> None:
    with pytest.raises(ServiceError, match="rollout actor 1 failed 2 times in a row"):
        for _ in range(10):
            service.fleet.muster(all_of_them=True)  # one that never ran has not failed
            ray.kill(service.fleet._actors[1])
            service.collect()


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


@pytest.mark.parametrize("service", [["train.evaluation_timeout=1e-6", *ALONE]], indirect=True)
def test_an_evaluation_that_fails_for_certain_is_not_asked_for_again(service: RayRunner, notes: list[str]) -> None:
    with pytest.raises(EvaluationError, match="episodes were finished after"):
        service.evaluate(20, seed=0)
    assert service.fleet.restarts == 0
    assert notes == []
    assert len(service.collect()) == 1  # and the actor is at work again


@pytest.mark.parametrize("service", [ALONE], indirect=True)
def test_an_evaluation_may_take_longer_than_a_fragment(service: RayRunner) -> None:
    service.fleet._timeout = 0.0
    assert service.evaluate(20, seed=0).episodes == 20
    assert service.fleet.restarts == 0


def test_an_actor_lost_in_an_evaluation_is_replaced_and_asked_once_more(service: RayRunner, notes: list[str]) -> None:
    expected = service.evaluate(20, seed=0)
    ray.kill(service.fleet._actors[1])
    found = service.evaluate(20, seed=0)
    np.testing.assert_array_equal(found.returns, expected.returns)
    np.testing.assert_array_equal(found.digests, expected.digests)
    assert service.fleet.restarts == 1
    assert any("rollout actor 1 was lost" in note for note in notes)


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
    seen = rows(result.folder)
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
    seen = rows(result.folder)
    assert result.steps >= 4600
    assert max(row["ratio_error"] for row in seen) < 1e-5
    assert np.mean([row["padding"] for row in seen]) < 0.05


def test_asynchronous_service_survives_a_death(service: RayRunner, notes: list[str]) -> None:
    updates = asynchronous(service, Replay(10**9, max_lag=1))
    next(updates)
    ray.kill(service.fleet._actors[1])
    for _ in range(4):
        update = next(updates)
    assert service.fleet.restarts == 1
    assert any("rollout actor 1 was lost" in note for note in notes)
    assert update.report.version >= 5


def test_ray_listens_on_loopback_only() -> None:
    ours = {process.pid for process in psutil.Process().children(recursive=True)}
    connections = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.pid in ours]
    listening = {connection.laddr.ip for connection in connections}
    assert listening
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
