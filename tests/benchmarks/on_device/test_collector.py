"""Collecting on the device gives what the collector on the host gives, and nothing of it waits or changes device."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.on_device.collector import DeviceCollector
from benchmarks.on_device.tasks import DeviceCopyMemory, DeviceDelayedCue
from mneme.controllers import ControllerSettings, Policy, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import Learner, LearnerSettings
from mneme.learner.batch import SequenceBatch
from mneme.rollout_workers import Collector, policy_spec

CPU = torch.device("cpu")
LENGTH, LANES = 11, 32
TASKS = {
    "DelayedCue": (DeviceDelayedCue, {"cues": 3, "horizon": 7}),
    "CopyMemory": (DeviceCopyMemory, {"symbols": 3, "length": 2, "delay": 2}),
}


def parts(kind: str = "gru", task: str = "DelayedCue", **options: Any) -> tuple[Collector, Policy]:
    env = make_vector_env(EnvSettings(id=f"mneme/{task}-v0", kwargs=TASKS[task][1]), LANES)
    controller = ControllerSettings(kind=kind, hidden_size=16, backend="torch", initial_carry="learned")
    policy = build_policy(policy_spec(env), PolicySettings(controller=controller), 7, seed=0)
    return Collector(env, policy, LENGTH, LENGTH, seed=3, **options), policy


def on_device(collector: Collector, policy: Policy, task: str = "DelayedCue") -> DeviceCollector:
    form, kwargs = TASKS[task]
    return DeviceCollector(collector, form(collector.env.unwrapped, CPU, **kwargs), policy)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize(
    ("kind", "task"), [("gru", "DelayedCue"), ("lstm", "CopyMemory"), ("mamba2", "DelayedCue"), ("lru", "CopyMemory")]
)
def test_fragments_are_those_of_the_collector(kind: str, task: str, greedy: bool) -> None:
    collector, policy = parts(kind, task, greedy=greedy)
    collector.collect()
    device = on_device(collector, policy, task)
    for _ in range(3):
        fragment, stats = collector.collect()
        expected = SequenceBatch.from_fragments([fragment], CPU)
        batch, success = device.collect()
        assert success == pytest.approx(stats.successes.mean(), abs=1e-6)
        for field in fields(SequenceBatch):
            actual, wanted = getattr(batch, field.name), getattr(expected, field.name)
            if field.name == "stored":
                actual, wanted = batch.carries, expected.carries
            if field.name != "final_index":  # without meaning where nothing was cut short
                torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-5)


def test_what_was_collected_there_trains_as_a_fragment_does() -> None:
    trained = []
    for where in ("host", "device"):
        collector, policy = parts()
        device = on_device(collector, policy)
        settings = LearnerSettings(num_minibatches=2, num_epochs=2, num_threads=1)
        learner = Learner(policy, settings, seed=1, total_timesteps=10_000)
        if where == "host":
            report = learner.update([collector.collect()[0].to_arrow()])
        else:
            report = learner.train_on(device.collect()[0])
        assert report.steps == LENGTH * LANES and learner.version == 1
        trained.append(learner.weights().arrays)
    for name, weights in trained[0].items():
        np.testing.assert_allclose(trained[1][name], weights, rtol=0, atol=1e-5)


def test_no_step_waits_for_the_device_or_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without values: what reads one, or meets a tensor of the host, fails."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # which knows no such device
    collector, policy = parts()
    there = on_device(collector, policy)
    nowhere = torch.device("meta")
    for thing in (there, there._task):
        vars(thing).update({name: moved(value, nowhere) for name, value in vars(thing).items()})
    policy.to(nowhere)
    there._task.device = nowhere
    there._task.prepare(LENGTH)
    with torch.no_grad():
        there._steps()
    assert there._values.device == nowhere
    there._reset_B = torch.zeros(LANES, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="device"):  # so that the rest means something
        there._steps()


def moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: moved(x, device) for name, x in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value
