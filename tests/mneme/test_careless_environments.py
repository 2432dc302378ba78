"""Environments that change what a whole process has once: its folder, and torch's default type."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import mneme
from mneme.controllers.torch_globals import default_dtype_kept
from mneme.envs.counting import CountingEnv
from mneme.storage.run_folder import RunFolder

SMALL = (
    "name=run", "tracking.enabled=false", "rollout.num_envs=4", "rollout.num_workers=2", "rollout.unroll_length=10",
    "policy.controller.hidden_size=8", "train.total_timesteps=120", "train.evaluation_episodes=4",
    "checkpoint.every=40", "learner.num_threads=1", "learner.num_minibatches=2",
)  # fmt: skip


class Wanders(CountingEnv):
    """Goes to a folder of its own when it is made, and to another one later."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        os.chdir("elsewhere")
        self.steps = 0

    def step(self, action: Any) -> Any:
        """Move on after a while."""
        self.steps += 1
        if self.steps == 15:
            os.chdir("/")
        return super().step(action)


class Doubles(CountingEnv):
    """Computes in double precision, and has the whole process do so."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        torch.set_default_dtype(torch.float64)


def test_a_run_stays_where_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere" / "elsewhere").mkdir(parents=True)
    here = tmp_path
    for _ in range(12):  # a folder for every environment that is made
        here = here / "elsewhere"
        here.mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    run = mneme.train(*SMALL, env=Wanders, local=True, progress=False)
    assert run.folder == tmp_path / "runs" / "run"
    assert [row["step"] for row in RunFolder(run.folder).history() if "kl" in row] == [40, 80, 120]
    assert len(list((run.folder / "checkpoints").iterdir())) == 3
    assert (run.folder / "config.yaml").exists() and (run.folder / "curve.png").exists()


@pytest.mark.parametrize("layers", [{}, {"spaces.stack": 2}])
def test_a_run_is_of_single_precision_whatever_the_default(tmp_path: Path, layers: dict[str, Any]) -> None:
    words = [*SMALL, f"checkpoint.root={tmp_path}", *(f"{key}={value}" for key, value in layers.items())]
    expected = mneme.train(*words, env=CountingEnv, local=True, progress=False)
    with default_dtype_kept():
        found = mneme.train(*words, "name=other", env=Doubles, local=True, progress=False)
        assert torch.get_default_dtype() == torch.float64
        agent, other = mneme.load(expected.folder), mneme.load(found.folder)
        names = agent.policy.state_dict().keys()
        assert names == other.policy.state_dict().keys()
        for name in names:
            torch.testing.assert_close(agent.policy.state_dict()[name], other.policy.state_dict()[name], rtol=0, atol=0)
