"""docs/metrics.md: every key that a run writes is on the page, and the page names none that no run writes."""

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from mneme.configuration.config import load_config
from mneme.storage.run_folder import Row, RunFolder
from mneme.training import train

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()

SMALL = [
    "name=run", "rollout.num_envs=8", "rollout.num_workers=2", "rollout.unroll_length=6", "env.kwargs.horizon=6",
    "policy.controller.kind=pseudo_mamba", "policy.controller.hidden_size=8", "policy.controller.backend=torch",
    "learner.num_minibatches=1", "learner.num_epochs=1", "learner.num_threads=1", "learner.mode=truncated",
    "learner.carry_source=stored", "learner.fidelity_every=1",
    "learner.bptt_length=2",
    "train.total_timesteps=192", "train.evaluation_episodes=16", "tracking.enabled=false",
]  # fmt: skip
TOLD = ["env.id=mneme-tests/Telling-v0", "env.metrics=[score]", "env.kwargs={}"]
STALE = ["learner.anchor=always", "policy.controller.num_layers=2"]
ADAPTIVE = ["learner.carry_source=fresh", "learner.max_bptt_length=4", "train.probe_episodes=1", "train.stop_success=1"]
TRACED = ["learner.mode=traces", "learner.carry_source=fresh", "policy.controller.kind=lru"]
STAGED = ["curriculum.stages=[{horizon: 3}]", "train.evaluate_every=48", "train.stop_success=1e-9"]


class Telling(gym.Env[Any, Any]):
    """Says a score when an episode ends, after three steps."""

    observation_space, action_space = gym.spaces.Discrete(4), gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return 0, {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.time, 1.0, self.time == 3, False, {"score": 2.5} if self.time == 3 else {}


def named() -> dict[str, re.Pattern[str]]:
    """The keys on the page, with what each stands for."""
    rows = re.findall(r"^\| (`[^|]*`) \|", PAGE, re.MULTILINE)
    keys = [key for row in rows for key in re.findall(r"`([^`]+)`", row)]
    assert len(keys) == len(set(keys)), "a key is explained twice"
    return {key: re.compile(re.sub(r"[A-Z]{1,}|…", ".+", re.escape(key))) for key in keys}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The keys of all rows of runs that together do everything, those that were not measured included."""
    keys: set[str] = set()
    append = RunFolder.append

    def seen(self: RunFolder, step: int, row: Row) -> None:
        keys.update(row)
        append(self, step, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append", seen)
        patch.setitem(
            gym.registry, "mneme-tests/Telling-v0", gym.envs.registration.EnvSpec("mneme-tests/Telling-v0", Telling)
        )
        for extra in (STALE, STAGED, ADAPTIVE, TRACED, TOLD):
            folder = tmp_path_factory.mktemp("runs")
            train(load_config(None, [*SMALL, *extra, f"checkpoint.root={folder}"]), local=True)
    return keys


def test_every_key_that_a_run_writes_is_on_the_page(written: set[str]) -> None:
    page = named()
    assert {key for key in written if not any(pattern.fullmatch(key) for pattern in page.values())} == set()


def test_the_page_names_no_key_that_no_run_writes(written: set[str]) -> None:
    ours = {key: pattern for key, pattern in named().items() if not key.startswith("system/")}
    assert {key for key, pattern in ours.items() if not any(map(pattern.fullmatch, written))} == set()


@pytest.mark.slow
def test_the_keys_of_the_machine_are_mlflows() -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found = set()
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        found |= {f"system/{name}" for name in monitor.aggregate_metrics()}
    assert found == {key for key in named() if key.startswith("system/") and "…" not in key}
