"""Several learner actors on a real Ray: one learner to the rest of the run, and none waits for another for ever."""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from mneme.cli import main
from mneme.configuration.config import Config, load_config
from mneme.distributed.config import ConfigError
from mneme.distributed.learners import _share_of
from mneme.distributed.ray_runner import RayRunner
from mneme.distributed.replay import Replay
from mneme.distributed.runners import FRAGMENTS_LOST, FragmentsLost, ServiceError
from mneme.distributed.service import asynchronous
from mneme.distributed.workers import LearnerWorker
from mneme.learner import NonfiniteGradient, default_num_threads
from mneme.rollout_workers import Fragment
from mneme.storage.checkpoint import list_checkpoints
from mneme.training import train
from tests.distributed.runs import started, updates
from tests.last_arrays import assert_same_bits, last_arrays

pytestmark = pytest.mark.usefixtures("undrawn")
over_ray = pytest.mark.ray
TOLERANCE = 2e-3  # of Adam's steps, which multiply the rounding of a small gradient


def config(tmp_path: Path, *overrides: str) -> Config:
    base = [
        f"checkpoint.root={tmp_path}", "name=run", "tracking.enabled=false", "rollout.num_envs=10",
        "rollout.unroll_length=23", "env.id=mneme/Counting-v0", "policy.controller.hidden_size=16",
        "train.total_timesteps=690", "checkpoint.every=230", "learner.num_minibatches=2", "learner.num_epochs=2",
        "train.evaluation_episodes=10", "learner.num_threads=1", "learner.learning_rate=0.0003",
    ]  # fmt: skip
    return load_config(None, [*base, *overrides])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> Iterator[RayRunner]:
    """Two replicas, which the tests use one after the other, the last to their ends."""
    overrides = ["learner.replicas=2", "learner.max_nonfinite=0", "learner.normalize_advantages=none"]
    with started(config(tmp_path_factory.mktemp("service"), *overrides)) as runner:
        yield runner


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {name: array for name, array in last_arrays(folder).items() if name.startswith("learner/policy.")}


def assert_alike(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=TOLERANCE, err_msg=name)


@over_ray
@pytest.mark.usefixtures("cluster")
def test_two_replicas_learn_what_one_does_and_a_run_goes_from_one_to_two_and_back(tmp_path: Path) -> None:
    two = train(config(tmp_path / "two", "learner.replicas=2", "service.learner_placement=spread"))
    one = train(config(tmp_path / "one"), local=True)
    assert_alike(weights(two.folder), weights(one.folder))
    for a, b in zip(updates(two.folder), updates(one.folder), strict=True):
        assert a["step"] == b["step"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-2)
        assert a["seconds/synchronize"] > 0
    straight = weights(one.folder)
    for run, replicas in ((two, 1), (one, 2)):
        words = ["--resume", str(list_checkpoints(run.folder / "checkpoints")[0]), f"learner.replicas={replicas}"]
        assert main(["train", *words, *(["--local"] if replicas == 1 else [])]) == 0
        assert load_config(run.folder / "config.yaml").learner.replicas == replicas
        assert_alike(weights(run.folder), straight)


@over_ray
def test_each_replica_reads_its_share_and_all_hear_of_a_refusal(service: RayRunner) -> None:
    fragments = [arrival.fragment for arrival in service.collect()]
    good = ray.get(fragments[0])
    bad = ray.put(good.slice(0, 0))
    report = service.learn([fragments[0], bad])
    assert report.steps == 5 * 23
    assert len(report.refused) == 1
    assert service.learn([arrival.fragment for arrival in service.collect()]).steps == 10 * 23
    with pytest.raises(ValueError, match="the actions of a fragment"):
        service.learn([bad, bad])
    assert service.learn(fragments[:1]).steps == 5 * 23  # fewer than there are replicas
    states = ray.get([actor.state.remote() for actor in service.learner.actors])
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


@over_ray
def test_what_replicas_listen_on_is_loopback(service: RayRunner) -> None:
    service.learn([arrival.fragment for arrival in service.collect()])
    pids = ray.get([actor.__ray_call__.remote(lambda _: psutil.Process().pid) for actor in service.learner.actors])
    connections = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.pid in pids]
    assert len(connections) >= len(pids)
    assert {connection.laddr.ip for connection in connections} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def differ(replica: Any) -> None:
    next(replica._worker._learner.policy.parameters()).data.view(-1)[0] += 1e-6


@over_ray
def test_weights_that_differ_end_the_run_with_a_sentence(service: RayRunner) -> None:
    fragments, before = [arrival.fragment for arrival in service.collect()], service.state()
    ray.get(service.learner.actors[1].__ray_call__.remote(differ))
    with pytest.raises(ServiceError, match=r"the weights of learner replica 1 differ .* at version \d+ .*--resume"):
        service.learn(fragments)
    service.set_state(before)
    assert service.learn(fragments).steps == 10 * 23


@over_ray
def test_fragments_that_are_gone_cost_their_replica_alone(service: RayRunner, notes: list[str]) -> None:
    fragments = [arrival.fragment for arrival in service.collect()]

    def lose(replica: Any) -> None:
        import mneme.distributed.learner_replica as learners

        learners._fetched = lambda given: ([], [learners.FRAGMENTS_LOST for _ in given])

    def find(replica: Any) -> None:
        import mneme.distributed.learner_replica as learners

        learners._fetched = lambda given: (ray.get(given), [])

    first, second = service.learner.actors
    ray.get(second.__ray_call__.remote(lose))
    report = service.learn(fragments)
    assert report.steps == 5 * 23
    assert report.refused == (FRAGMENTS_LOST,)
    ray.get(first.__ray_call__.remote(lose))
    with pytest.raises(FragmentsLost):
        service.learn(fragments)
    assert any("lost with their node" in note for note in notes)
    ray.get([actor.__ray_call__.remote(find) for actor in (first, second)])


@over_ray
def test_an_update_that_failed_on_two_replicas_is_known_whole(service: RayRunner) -> None:
    """And one learner fails in it in the same words."""
    before = service.state()
    fragments = [Fragment.from_arrow(ray.get(arrival.fragment)) for arrival in service.collect()]
    bad = [replace(f, rewards=np.full_like(f.rewards, 3e38)).to_arrow() for f in fragments]
    with pytest.raises(NonfiniteGradient, match="rewards reach 3e.38") as caught:
        service.learn([ray.put(batch) for batch in bad])
    update = caught.value.update
    assert update is not None
    assert [batch.equals(own) for batch, own in zip(update.batches, bad, strict=True)] == [True, True]
    alone = LearnerWorker(ray.get(service.fleet._blueprint))
    alone.set_state(update.state)
    with pytest.raises(NonfiniteGradient, match=re.escape(str(caught.value))):
        alone.update(*update.batches)
    service.set_state(before)


@over_ray
def test_replicas_learn_while_fragments_are_collected(service: RayRunner) -> None:
    updates = asynchronous(service, Replay(10**9, max_lag=1))
    versions = [next(updates).report.version for _ in range(3)]
    assert versions == list(range(versions[0], versions[0] + 3))


@over_ray
def test_replicas_begin_anew_when_one_died(service: RayRunner, notes: list[str]) -> None:
    fragments, before = [arrival.fragment for arrival in service.collect()], service.state()
    service.learn(fragments)
    expected = service.state()
    service.set_state(before)
    ray.kill(service.learner.actors[1])
    service.learn(fragments)
    found = service.state()
    assert service.condition().learner_restarts == 1
    assert any(re.match(r"the learner actor was lost \(.*\); it begins anew from its last state", n) for n in notes)
    assert_same_bits(found.learner, expected.learner)


@over_ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_replica_that_hangs_is_replaced(tmp_path: Path) -> None:
    with started(config(tmp_path, "learner.replicas=2", "service.learner_timeout=5")) as runner:
        fragments = [arrival.fragment for arrival in runner.collect()]
        runner.learner.actors[1].__ray_call__.remote(lambda _: time.sleep(60))
        assert runner.learn(fragments).version == 1
        assert runner.condition().learner_restarts >= 1


@pytest.mark.parametrize("local", [True, False])
def test_replicas_that_cannot_be_are_refused_before_anything_starts(tmp_path: Path, local: bool) -> None:
    given = config(tmp_path, f"learner.replicas={2 if local else 3}")
    sentence = "set learner.replicas=1" if local else "lower learner.replicas or raise rollout.num_workers"
    with pytest.raises(ConfigError, match=sentence):
        train(given, local=local)
    assert list(tmp_path.iterdir()) == []


def test_replicas_share_the_cores_and_gpus_of_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert [default_num_threads(sharing) for sharing in (1, 2, 3, 8)] == [4, 3, 2, 1]
    assert [_share_of(gpus, size) for gpus, size in ((0, 2), (1, 1), (4, 2), (1, 2), (2, 3))] == [0, 1, 1, 0.5, 0.5]
