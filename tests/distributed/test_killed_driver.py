"""The driver of a run over Ray is killed with its Ray, is started again, and comes to the bits of an unkilled run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mneme.configuration.config import load_config
from mneme.storage.checkpoint import list_checkpoints
from mneme.storage.holding import read_state
from mneme.training import train
from tests.last_arrays import assert_same_bits, last_arrays

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
SMALL = [
    "name=run", "rollout.num_envs=16", "env.kwargs.horizon=6", "policy.controller.hidden_size=16",
    "train.evaluation_episodes=16", "checkpoint.every=448", "tracking.enabled=false", "train.stop_success=null",
    "train.total_timesteps=8960", "learner.num_threads=1",
]  # fmt: skip


def test_a_run_over_ray_whose_driver_is_killed_completes_with_the_same_bits(tmp_path: Path) -> None:
    preset = ROOT / "configs" / "delayed_cue.yaml"
    whole = train(load_config(preset, [*SMALL, f"checkpoint.root={tmp_path / 'whole'}"]), local=True, progress=False)
    run = tmp_path / "killed" / "run"
    supervised = subprocess.Popen(
        [sys.executable, "-m", "mneme", "train", preset, *SMALL, f"checkpoint.root={run.parent}", "--retries", "2"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while supervised.poll() is None and not list_checkpoints(run / "checkpoints"):
        time.sleep(0.01)
    state = read_state(run)
    assert state is not None
    rays = psutil.Process(state.pid).children(recursive=True)
    os.kill(state.pid, signal.SIGKILL)
    out, err = supervised.communicate(timeout=400)
    assert supervised.returncode == 0, err
    assert "was killed (SIGKILL); going on from step-" in err
    assert "done at step 8,960" in out
    gone, alive = psutil.wait_procs(rays, timeout=60)
    assert gone
    assert not alive, "its Ray went with it"
    assert_same_bits(last_arrays(run), last_arrays(whole.folder))
