"""`ray job submit` against a Ray head on loopback with token authentication on, as the README shows it."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from mneme.storage.checkpoint import list_checkpoints
from mneme.storage.holding import read_state

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The job server's address and the environment that may use it."""
    token, dashboard = tmp_path / "token", free_port()
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on loopback
        "RAY_TMPDIR": "/tmp",
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
    }
    port = free_port()
    start = [
        str(RAY), "start", "--head", f"--port={port}", "--num-cpus=2", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}", "--include-dashboard=true", "--disable-usage-stats", "--block",
    ]  # fmt: skip
    log = tmp_path / "head.log"
    with log.open("w") as out:
        process = subprocess.Popen(start, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A clone, from which jobs are submitted."""
    ignored = shutil.ignore_patterns(".*", "runs", "*.egg-info", "__pycache__", "benchmarks", "docs")
    return Path(shutil.copytree(ROOT, tmp_path / "project", symlinks=True, ignore=ignored))


def submission(address: str, runs: Path, *words: str) -> list[str]:
    return [
        str(RAY), "job", "submit", "--address", address, "--working-dir", ".",
        "--submission-id", "delayed-cue", "--",
        sys.executable, "-m", "mneme", "train", "configs/delayed_cue.yaml",
        "env.kwargs.horizon=6", "rollout.num_envs=16", "rollout.num_workers=1", "name=job",
        "train.evaluation_episodes=16", f"checkpoint.root={runs}", "tracking.enabled=false", *words,
    ]  # fmt: skip


def submit_once_it_answers(
    words: list[str], project: Path, environment: dict[str, str]
) -> "subprocess.CompletedProcess[str]":
    done = None
    for _ in range(30):  # until the job server answers
        done = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, timeout=200)
        said = done.stdout + done.stderr
        if "Failed to connect" not in said and "No available agent" not in said:
            break
    assert done is not None
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_job_trains_through_the_dashboards_job_server(
    head: tuple[str, dict[str, str]], project: Path, tmp_path: Path
) -> None:
    address, environment = head
    runs = tmp_path / "runs"
    submit = submission(address, runs, "train.total_timesteps=224")
    done = submit_once_it_answers(submit, project, environment)
    assert "succeeded" in done.stdout
    assert "done at step 224" in done.stdout
    assert (runs / "job" / "checkpoints" / "step-000000000224").is_dir()

    def status(job: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        asked = [sys.executable, "-m", "mneme", "status", job, "--address", address]
        return subprocess.run(asked, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)

    told = status("delayed-cue", environment)
    assert told.returncode == 0, told.stderr
    assert re.search(r"^state +SUCCEEDED", told.stdout, re.MULTILINE)
    assert re.search(r"^progress +step +224/224", told.stdout, re.MULTILINE)
    assert re.search(r"^(log)? +done at step 224", told.stdout, re.MULTILINE)
    unknown = status("another", environment)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "there is no such job; list them with: ray job list" in unknown.stderr
    tokenless = status("delayed-cue", {k: v for k, v in environment.items() if k != "RAY_AUTH_MODE"})
    assert "its job server wants Ray's token; set RAY_AUTH_MODE=token" in tokenless.stderr

    stranger = environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}
    (tmp_path / "other").write_text(secrets.token_hex(32))
    refused = subprocess.run(submit, cwd=project, env=stranger, capture_output=True, text=True, timeout=100)
    assert refused.returncode != 0
    assert "succeeded" not in refused.stdout
    assert "its job server wants Ray's token" in status("delayed-cue", stranger).stderr


def test_a_job_with_retries_goes_on_by_itself_when_what_trains_in_it_is_killed(
    head: tuple[str, dict[str, str]], project: Path, tmp_path: Path
) -> None:
    address, environment = head
    run = tmp_path / "runs" / "job"
    words = ["train.total_timesteps=8960", "train.stop_success=null", "checkpoint.every=448", "--retries", "2"]
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 300
        while not list_checkpoints(run / "checkpoints") and time.monotonic() < deadline:
            time.sleep(0.01)
        state = read_state(run)
        assert state is not None
        os.kill(state.pid, signal.SIGKILL)
        killed.append(state.pid)

    killer = Thread(target=kill)
    killer.start()
    done = submit_once_it_answers(submission(address, run.parent, *words), project, environment)
    killer.join()
    assert killed
    assert "was killed (SIGKILL); going on from step-" in done.stdout
    assert "done at step 8,960" in done.stdout
    assert "succeeded" in done.stdout
