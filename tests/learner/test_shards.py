"""Processes find what threads find, to the bit, and the learner goes on without them."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import torch

from mneme.learner import Learner, LearnerSettings, shard_process
from mneme.learner import shards as shards_module
from mneme.learner.shards import Shards
from mneme.learner.shared_memory import AVAILABLE, SharedMemory
from mneme.rollout_workers import Collector

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="processes share memory that this system does not have")

SETTINGS = LearnerSettings(num_epochs=2, num_minibatches=2, num_threads=2)
STARTING = 60.0  # seconds


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes are worth it from the first minibatch on, and compute whatever they can."""
    monkeypatch.setattr(shards_module, "_WORTH_IT", 0.0)
    monkeypatch.setattr(Shards, "_way", lambda _, __, by_processes: "processes" if by_processes else "threads")
    yield
    gc.collect()


def shards_of(learner: Learner) -> Shards:
    return learner._optimizer._shards


def made(collector: Collector, settings: LearnerSettings, **options: Any) -> tuple[Learner, list[Any]]:
    """A learner of the collector's policy, and what it is to be trained on."""
    fragments = [collector.collect()[0].to_arrow()]
    return Learner(deepcopy(collector.policy), settings, seed=3, total_timesteps=10_000, **options), fragments


def trained(
    collector: Collector, settings: LearnerSettings, updates: int, look: Callable[[Learner], Any] = lambda _: None,
    told: list[str] | None = None, **options: Any,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The learner's state after some updates; `look` sees it before each, and `told` gets the warnings."""
    learner, fragments = made(collector, settings, **options)
    for _ in range(updates):
        look(learner)
        warnings = learner.update(fragments).warnings
        if told is not None:
            told += warnings
    return learner.state()


def until_processes(learner: Learner) -> None:
    """Let those who were asked answer before the next update, so that it is theirs."""
    shards, until = shards_of(learner), monotonic() + STARTING
    asked = shards._processes if shards._state == "starting" else shards._processes[: len(shards._expected)]
    while shards._state in ("starting", "trying") and not all(process.answered() for process in asked):
        assert monotonic() < until
        sleep(0.01)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert np.array_equal(array, other[name]), name


@pytest.mark.parametrize(
    ("kind", "settings", "options"),
    [
        ("gru", SETTINGS, {}),
        ("mamba2", replace(SETTINGS, mode="truncated", bptt_length=5, num_threads=3), {"asynchronous": True}),
        ("pseudo_mamba", replace(SETTINGS, normalize_advantages="minibatch", ent_schedule="linear"), {}),
        ("lru", replace(SETTINGS, mode="traces"), {}),
    ],
)
def test_processes_find_what_threads_find(
    counting_collector: Callable[..., Collector],
    at_once: None,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    settings: LearnerSettings,
    options: dict[str, Any],
) -> None:
    states: list[str] = []

    def look(learner: Learner) -> None:
        until_processes(learner)
        states.append(shards_of(learner)._state)

    found = trained(counting_collector(settings, kind=kind), settings, 5, look, **options)
    assert states[-1] == "trusted", states
    monkeypatch.setattr(shards_module, "_WORTH_IT", float("inf"))
    same(found, trained(counting_collector(settings, kind=kind), settings, 5, **options))


def test_without_a_process_that_has_ended_the_learner_goes_on(
    counting_collector: Callable[..., Collector],
    at_once: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed = []

    def look(learner: Learner) -> None:
        until_processes(learner)
        shards = shards_of(learner)
        if shards._state == "trusted" and not killed:
            killed.append(shards._processes[0]._process)
            killed[0].kill()

    told: list[str] = []
    found = trained(counting_collector(SETTINGS), SETTINGS, 6, look, told)
    assert killed and killed[0].poll() == -9 and len(told) == 1
    assert any("threads alone compute gradients" in note and "status -9" in note for note in told), told
    monkeypatch.setattr(shards_module, "_WORTH_IT", float("inf"))
    same(found, trained(counting_collector(SETTINGS), SETTINGS, 6))


def up_to(state: str, learner: Learner, fragments: list[Any]) -> None:
    """Update until the processes are that far, and answer at once."""
    while shards_of(learner)._state != state:
        until_processes(learner)
        learner.update(fragments)
    until_processes(learner)


@pytest.mark.parametrize("state", ["starting", "trusted"])
def test_an_interrupted_minibatch_leaves_no_answers_to_the_next(
    counting_collector: Callable[..., Collector], at_once: None, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    collector = counting_collector(SETTINGS)
    one, other = ([collector.collect()[0].to_arrow()] for _ in range(2))
    learner, alone = (Learner(deepcopy(collector.policy), SETTINGS, seed=3, total_timesteps=10_000) for _ in range(2))
    up_to(state, learner, one)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Shards, "_shard", interrupt)
        learner.update(one)
    assert not shards_of(learner)._processes
    alone.set_state(learner.state())
    learner.update(other)
    up_to("trusted", learner, other)
    learner.update(other)
    monkeypatch.setattr(shards_module, "_WORTH_IT", float("inf"))
    for _ in range(learner.version - alone.version):
        alone.update(other)
    same(learner.state(), alone.state())


def test_a_process_that_does_not_answer_is_not_waited_for(
    counting_collector: Callable[..., Collector],
    at_once: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards_module, "_PATIENCE", 0.5)
    stopped = []

    def look(learner: Learner) -> None:
        until_processes(learner)
        if shards_of(learner)._state == "trusted" and not stopped:
            stopped.append(shards_of(learner)._processes[0]._process)
            os.kill(stopped[0].pid, signal.SIGSTOP)

    told: list[str] = []
    found = trained(counting_collector(SETTINGS), SETTINGS, 5, look, told)
    assert stopped and stopped[0].poll() == -9
    assert any("it has not answered for" in note for note in told), told
    monkeypatch.setattr(shards_module, "_WORTH_IT", float("inf"))
    same(found, trained(counting_collector(SETTINGS), SETTINGS, 5))


def test_without_memory_for_the_batch_the_learner_goes_on(
    counting_collector: Callable[..., Collector],
    at_once: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    def look(learner: Learner) -> None:
        until_processes(learner)
        if shards_of(learner)._state == "trusted":
            monkeypatch.setattr(SharedMemory, "put", full)

    told: list[str] = []
    found = trained(counting_collector(SETTINGS), SETTINGS, 4, look, told)
    assert any("it cannot have the batch: OSError: no space left" in note for note in told), told
    monkeypatch.setattr(shards_module, "_WORTH_IT", float("inf"))
    same(found, trained(counting_collector(SETTINGS), SETTINGS, 4))


def test_a_gradient_that_is_not_finite_does_not_tell_against_processes(
    counting_collector: Callable[..., Collector], at_once: None
) -> None:
    learner, fragments = made(counting_collector(SETTINGS), SETTINGS)
    up_to("starting", learner, fragments)
    torch.nn.init.constant_(learner.policy.value_head.weight, torch.nan)
    assert learner.update(fragments).metrics["nonfinite_steps"] == 4
    until_processes(learner)
    learner.update(fragments)
    assert shards_of(learner)._state == "trusted"


def test_a_start_waits_for_nothing_however_large_the_policy(
    counting_collector: Callable[..., Collector], at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_process, "_SERVE", "import time; time.sleep(60) # {path}, {descriptors}")
    collector = counting_collector(SETTINGS)
    policy, began = deepcopy(collector.policy), monotonic()
    policy.register_buffer("large", torch.zeros(10**6), persistent=False)
    learner = Learner(policy, SETTINGS, seed=3, total_timesteps=10_000)
    learner.update([collector.collect()[0].to_arrow()])
    assert shards_of(learner)._state == "starting" and monotonic() - began < STARTING / 2


def test_one_thread_computes_gradients_where_its_caller_has_turned_them_off(
    counting_collector: Callable[..., Collector], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shards, "_way", lambda *_: "in turn")
    with torch.no_grad():
        found = trained(counting_collector(SETTINGS), SETTINGS, 1)
    monkeypatch.setattr(Shards, "_way", lambda *_: "threads")
    same(found, trained(counting_collector(SETTINGS), SETTINGS, 1))


def test_minibatches_of_one_share_say_nothing_of_the_ways(counting_collector: Callable[..., Collector]) -> None:
    trained(counting_collector(SETTINGS, lanes=1), SETTINGS, 3, lambda learner: _no_times(learner))


def _no_times(learner: Learner) -> None:
    assert not shards_of(learner)._took


def test_a_process_ends_with_its_learner(counting_collector: Callable[..., Collector], at_once: None) -> None:
    started = []

    def look(learner: Learner) -> None:
        started.extend(process._process for process in shards_of(learner)._processes if not started)

    trained(counting_collector(SETTINGS), SETTINGS, 2, look)
    gc.collect()
    assert started and started[0].poll() is not None


def test_a_policy_that_cannot_be_sent_is_trained_by_threads(
    counting_collector: Callable[..., Collector], at_once: None
) -> None:
    learner, fragments = made(counting_collector(SETTINGS), SETTINGS)
    learner.policy.unsendable = (x for x in "generators cannot be pickled")  # type: ignore[assignment]
    told = learner.update(fragments).warnings
    assert shards_of(learner)._state == "none" and learner.version == 1
    assert any("cannot be started" in note for note in told), told


def test_without_memory_for_a_process_none_is_started(
    counting_collector: Callable[..., Collector], at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "free_memory", lambda: 500 * 10**6)
    told: list[str] = []
    trained(counting_collector(SETTINGS), SETTINGS, 2, lambda learner: _no_process(learner), told)
    assert [note.rpartition("told: ")[2] for note in told] == ["it cannot be started: MemoryError: it takes 400 MB"]


def test_windows_with_stored_carries_are_left_to_threads(
    counting_collector: Callable[..., Collector], at_once: None
) -> None:
    settings = replace(SETTINGS, mode="cached", carry_source="stored")
    trained(counting_collector(settings), settings, 2, lambda learner: _no_process(learner))


def _no_process(learner: Learner) -> None:
    assert not shards_of(learner)._processes


def test_every_way_is_tried_and_the_fastest_is_gone_on_with(
    counting_collector: Callable[..., Collector], monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[str] = []
    choose = Shards._way

    def seen(shards: Shards, *arguments: Any) -> str:
        shards._took.update({way: {"in turn": 2.0, "threads": 1.0}[way] for way in shards._took})
        ways.append(choose(shards, *arguments))
        return ways[-1]

    monkeypatch.setattr(Shards, "_way", seen)
    trained(counting_collector(SETTINGS), SETTINGS, 10)
    anew = ["in turn", *["threads"] * 3]  # of the four minibatches of an update
    assert ways == [*anew * 2, *["threads"] * 24, *anew, *["threads"] * 4], ways


def test_what_one_thread_computes_needs_no_choice(
    counting_collector: Callable[..., Collector], at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    one = replace(SETTINGS, num_threads=1)
    trained(counting_collector(one), one, 2, lambda learner: _no_process(learner))
