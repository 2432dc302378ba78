"""The learner dies, and the run goes on with the bits that it would have had."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from mneme.callbacks import Callback, Progress
from mneme.configuration.config import Config, load_config
from mneme.distributed.lasting_learner import LastingLearner
from mneme.distributed.learners import Learners
from mneme.distributed.ray_runner import RayRunner
from mneme.distributed.replay import Replay
from mneme.distributed.runners import FRAGMENTS_LOST, FragmentsLost, ServiceLost
from mneme.distributed.service import asynchronous, synchronous
from mneme.training import train
from tests.distributed.runs import actors, assert_accounted, started
from tests.last_arrays import assert_same_bits, last_arrays

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("undrawn", "cluster")]


def config(tmp_path: Path, *overrides: str) -> Config:
    base = [
        f"checkpoint.root={tmp_path}", "name=run", "tracking.enabled=false", "rollout.num_envs=10",
        "rollout.unroll_length=23", "env.id=mneme/Counting-v0", "policy.controller.hidden_size=16",
        "train.total_timesteps=1380", "checkpoint.every=690", "learner.num_minibatches=2", "learner.bptt_length=5",
        "train.evaluation_episodes=10", "learner.num_threads=1",
        "learner.mode=truncated", "learner.mode_schedule=plateau", "learner.mode_patience=1",
    ]  # fmt: skip
    return load_config(None, [*base, *overrides])


class Kills(Callback):
    """Kills the learner's process after some updates, as the kernel or a colleague might."""

    def __init__(self, *updates: int) -> None:
        self._left = set(updates)
        self.rows: list[Mapping[str, float]] = []

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        self.rows.append(metrics)
        if progress.update in self._left:
            self._left.remove(progress.update)
            (victim,) = actors("LearnerReplica")
            victim.kill()


def test_a_run_whose_learner_is_killed_has_the_bits_of_one_that_is_left_alone(tmp_path: Path) -> None:
    """Right after a snapshot and between two, and with a change of the mode since; in the last update, too."""
    straight = last_arrays(train(config(tmp_path / "straight"), local=True).folder)
    kills = Kills(2, 4, 5)
    run = train(config(tmp_path / "killed", "service.learner_snapshot_every=3"), callbacks=[kills])
    assert [row["learner_restarts"] for row in kills.rows] == [0, 0, 1, 1, 2, 3]
    modes = {row["bptt_length"] for row in kills.rows}
    assert len(modes) > 1
    assert_same_bits(last_arrays(run.folder), straight)


def test_asynchronous_service_survives_its_learner(tmp_path: Path) -> None:
    kills = Kills(2)
    async_ = ["service.mode=async", "learner.mode_schedule=constant", "train.total_timesteps=2300"]
    run = train(config(tmp_path, *async_), callbacks=[kills])
    assert run.steps >= 2300
    assert kills.rows[-1]["learner_restarts"] == 1
    assert [row["weights_version"] for row in kills.rows] == list(range(1, len(kills.rows) + 1))
    last = kills.rows[-1]
    assert last["steps/trained"] == run.steps
    for row in kills.rows:
        assert_accounted(row)
        assert row["workers"] == 2
        assert all(row[f"wait/{who}"] >= 0 for who in ("workers", "driver_for_workers", "driver_for_learner"))
    assert any(row["wait/learner"] > 0 for row in kills.rows)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> Iterator[RayRunner]:
    """What the tests below use one after the other, the last to its end."""
    overrides = ["service.mode=async", "learner.mode_schedule=constant", "service.max_restarts=1"]
    overrides += ["service.learner_snapshot_every=2"]
    with started(config(tmp_path_factory.mktemp("service"), *overrides)) as runner:
        yield runner


def test_a_small_replay_throws_nothing_away(service: RayRunner) -> None:
    """Workers are asked for no more than there is room for."""
    nbytes = max(arrival.delivery.nbytes for arrival in service.collect())
    replay: Replay[Any] = Replay(2 * nbytes + nbytes // 2, max_lag=4)
    updates = asynchronous(service, replay)
    for _ in range(8):
        update = next(updates)
        assert replay.nbytes <= replay.max_bytes
    assert update.fragments.dropped_full == 0
    assert update.steps.dropped_stale == 0
    while service.fleet.busy:
        service.fleet.wait()


def test_an_update_whose_fragments_are_gone_too_is_left_out(
    service: RayRunner, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    """And a state that is asked for while the learner is away is that of the learner that comes."""
    first, second = ([arrival.fragment for arrival in service.collect()] for _ in range(2))
    service.learn(first)
    ray.kill(service.learner.actors[0])
    version = service.version
    assert int(service.state().learner["version"]) == version
    pending = service.learn_begin(second)
    ray.kill(service.learner.actors[0])
    begin = Learners.begin

    def lost(self: Learners, fragments: list[Any]) -> Any:
        if list(fragments) == second:
            raise FragmentsLost(FRAGMENTS_LOST)
        return begin(self, fragments)

    monkeypatch.setattr(Learners, "begin", lost)
    with pytest.raises(FragmentsLost):
        service.learn_end(pending)
    assert notes[-1] == f"{FRAGMENTS_LOST}; training goes on"
    assert service.version == version
    assert service.learn([arrival.fragment for arrival in service.collect()]).version == version + 1


def test_an_update_that_is_lost_after_it_was_counted_is_counted_as_refused(
    service: RayRunner, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    """Fragments that were collected under its weights are as good as before."""
    service.state()  # from which a learner begins anew
    begin, asked = Learners.begin, list[Any]()

    def gone_when_asked_again(self: Learners, fragments: list[Any]) -> Any:
        asked.append(tuple(fragments))
        if asked[0] in asked[1:] and asked[-1] == asked[0]:
            raise FragmentsLost(FRAGMENTS_LOST)
        return begin(self, fragments)

    monkeypatch.setattr(Learners, "begin", gone_when_asked_again)
    updates = synchronous(service, Replay(10**9, max_lag=0), patience=0)
    first = next(updates)
    ray.kill(service.learner.actors[0])
    second = next(updates)
    assert second.report.version == first.report.version + 1
    assert (first.steps.trained, first.steps.refused) == (230, 0)
    assert (second.steps.trained, second.steps.refused) == (230, 230)
    assert second.steps.collected == sum(second.steps[1:]) == 460
    assert notes.count(f"{FRAGMENTS_LOST}; training goes on") == 1
    assert next(updates).steps.trained == 460


def test_a_learner_that_keeps_dying_ends_the_run_with_a_sentence(
    service: RayRunner, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    fragments = [arrival.fragment for arrival in service.collect()]
    take_up = LastingLearner._take_up

    def dies_again(self: LastingLearner, state: Any) -> None:
        ray.kill(self.actors[0])
        take_up(self, state)

    monkeypatch.setattr(LastingLearner, "_take_up", dies_again)
    ray.kill(service.learner.actors[0])
    with pytest.raises(ServiceLost, match=r"the learner was lost 2 times in a row: .*last checkpoint.*--resume"):
        service.learn(fragments)
    assert sum("it begins anew from its last state" in note for note in notes) == 1
