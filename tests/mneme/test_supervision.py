"""A training process that is killed is started again, and comes to the same result; one that ends is not."""

import ast
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RaySystemError, RayTaskError

from mneme import supervision
from mneme.cli import main
from mneme.configuration.config import Config, load_config
from mneme.distributed.config import ConfigError
from mneme.distributed.failures import loss_of_ray
from mneme.distributed.runners import ServiceError, ServiceLost
from mneme.storage.checkpoint import list_checkpoints, load_checkpoint
from mneme.storage.holding import read_state
from mneme.supervision import LOST
from mneme.training import train
from tests.last_arrays import assert_same_bits, last_arrays

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[2]
PARENT = """
import sys
from pathlib import Path
from mneme import supervision
supervision._PAUSES = (float(sys.argv[1]),)
sys.exit(supervision.supervise(Path(sys.argv[2]), int(sys.argv[3]), [sys.executable, "-c", *sys.argv[4:]]))
"""
KILL = "import os; os.kill(os.getpid(), 9)"
SMALL = [
    "name=run", "rollout.num_envs=16", "env.kwargs.horizon=6", "policy.controller.hidden_size=16",
    "train.evaluation_episodes=16", "checkpoint.keep=100", "checkpoint.every=448", "tracking.enabled=false",
    "train.stop_success=null", "train.total_timesteps=3360", "learner.num_threads=1",
]  # fmt: skip


def parent(folder: Path, retries: int, code: str, pause: float = 0) -> subprocess.Popen[str]:
    """A supervisor of a process that runs `code` in a folder, in which each start leaves a mark."""
    mark = "import os; open('starts', 'a').write('x'); "
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(pause), ".", str(retries), mark + code],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def starts(folder: Path) -> int:
    mark = folder / "starts"
    return len(mark.read_text()) if mark.exists() else 0


def until(holds: Callable[[], object]) -> None:
    while not holds():
        time.sleep(0.01)


def config(root: Path, *overrides: str) -> Config:
    return load_config(ROOT / "configs" / "delayed_cue.yaml", [*SMALL, f"checkpoint.root={root}", *overrides])


def test_a_killed_run_completes_with_the_same_bits(tmp_path: Path) -> None:
    whole = train(config(tmp_path / "whole"), local=True, progress=False)
    run = tmp_path / "killed" / "run"
    words = ["train", "delayed_cue", *SMALL, f"checkpoint.root={run.parent}", "--local", "--retries", "3"]
    supervised = subprocess.Popen(
        [sys.executable, "-m", "mneme", *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: supervised.poll() is not None or list_checkpoints(run / "checkpoints"))
    state = read_state(run)
    assert state is not None
    assert state.pid != supervised.pid
    assert "torch" not in Path(f"/proc/{supervised.pid}/maps").read_text(), "the parent is small"
    os.kill(state.pid, signal.SIGKILL)
    out, err = supervised.communicate(timeout=200)
    assert supervised.returncode == 0, err
    assert "the process that trains was killed (SIGKILL); going on from step-" in err
    assert "done at step 3,360" in out
    first, *_, last = list_checkpoints(run / "checkpoints")
    ours, theirs = load_checkpoint(last), load_checkpoint(list_checkpoints(whole.folder / "checkpoints")[-1])
    assert ours.run["tracking_run"] == load_checkpoint(first).run["tracking_run"], "one run for MLflow"
    assert ours.run["steps"] == theirs.run["steps"] == 3360
    assert_same_bits(last_arrays(run), last_arrays(whole.folder))


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_a_process_that_ends_by_itself_is_not_started_again(tmp_path: Path, status: int) -> None:
    assert parent(tmp_path, 3, f"raise SystemExit({status})").wait(60) == status
    assert starts(tmp_path) == 1


@pytest.mark.parametrize(("code", "status", "how"), [(KILL, 137, "SIGKILL"), (f"raise SystemExit({LOST})", 75, "Ray")])
def test_one_that_is_lost_without_progress_is_started_again_so_often(
    tmp_path: Path, code: str, status: int, how: str
) -> None:
    tried = parent(tmp_path, 2, code)
    said = tried.communicate(timeout=60)[1]
    assert tried.returncode == status
    assert starts(tmp_path) == 3
    assert said.count(how) == 3
    assert "from the beginning in 0.0 s (try 2 of 2)" in said
    assert "3 times in a row without a new checkpoint" in said


@pytest.mark.parametrize(("error", "status"), [(ServiceLost, LOST), (ServiceError, 1)])
def test_only_the_loss_of_ray_or_of_the_learner_asks_for_another_try(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[ServiceError], status: int
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error("the run asks for 5 GPU and Ray has 0")

    monkeypatch.setattr("mneme.training.train", fails)
    assert main(["train", "name=run", "--retries", "0"]) == status
    assert main(["train", "name=run"]) == 1
    assert "asks for 5 GPU" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RaySystemError("the GCS is gone"), ConnectionResetError("by peer")])
def test_an_error_of_a_ray_that_is_gone_is_its_loss(error: Exception) -> None:
    with pytest.raises(ServiceLost, match=r"^Ray was lost \(.*(gone|peer).*\); .*--resume$"), loss_of_ray():
        raise error
    task = RayTaskError("update", "Traceback", ValueError("it is of ours"))
    with pytest.raises(RayTaskError), loss_of_ray():
        raise task


def test_a_new_checkpoint_earns_new_tries(tmp_path: Path) -> None:
    makes = "n = len(open('starts').read()); os.makedirs(f'checkpoints/step-{n:012d}') if n in (2, 3) else None; "
    tried = parent(tmp_path, 1, f"{makes}{KILL}")
    said = tried.communicate(timeout=60)[1]
    assert starts(tmp_path) == 4
    assert said.count("from step-000000000002 in 0.0 s (try 1 of 1)") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_wish_to_stop_is_passed_on_and_is_no_loss(tmp_path: Path, number: signal.Signals) -> None:
    code = f"import signal, sys, time; signal.signal({int(number)}, lambda *_: sys.exit(130)); "
    code += "open('up', 'w'); time.sleep(60)"
    tried = parent(tmp_path, 3, code)
    until((tmp_path / "up").exists)
    tried.send_signal(number)
    assert tried.wait(50) == 130
    assert starts(tmp_path) == 1


def test_a_wish_to_stop_counts_between_two_tries_and_where_the_process_dies_of_it(tmp_path: Path) -> None:
    (tmp_path / "pause").mkdir()
    tried = parent(tmp_path / "pause", 3, KILL, pause=1000)
    assert tried.stderr is not None
    assert "SIGKILL" in tried.stderr.readline()
    tried.terminate()
    assert tried.wait(50) == 128 + signal.SIGTERM
    tried = parent(tmp_path, 3, "import time; open('up', 'w'); time.sleep(60)")
    until((tmp_path / "up").exists)
    tried.terminate()
    assert tried.wait(50) == 128 + signal.SIGTERM
    assert starts(tmp_path) == 1


def test_a_process_whose_parent_is_killed_is_told_to_stop(tmp_path: Path) -> None:
    code = "import signal, sys, time; signal.signal(15, lambda *_: (open('told', 'w'), sys.exit())); "
    code += "open('up', 'w'); time.sleep(60)"
    tried = parent(tmp_path, 3, code)
    until((tmp_path / "up").exists)
    tried.kill()
    tried.wait(50)
    end = time.monotonic() + 20
    until(lambda: (tmp_path / "told").exists() or time.monotonic() > end)
    assert (tmp_path / "told").exists()
    assert starts(tmp_path) == 1


def test_a_process_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", full)
    monkeypatch.setattr(supervision, "_PAUSES", (0.0,))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert supervision.supervise(tmp_path, 2, ["mneme"]) == LOST
    said = capfd.readouterr().err
    assert said.count("could not be started (Cannot allocate memory)") == 3
    assert "3 times in a row without a new checkpoint" in said


def test_the_parent_needs_no_library() -> None:
    tree = ast.parse((ROOT / "mneme" / "supervision.py").read_text())
    named = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    named += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in named} <= sys.stdlib_module_names


def test_a_run_of_that_name_goes_on_where_it_was_and_is_left_alone_when_complete(
    tmp_path: Path, notes: list[str]
) -> None:
    short = train(config(tmp_path, "train.total_timesteps=448"), local=True, go_on=True, progress=False)
    again = train(config(tmp_path, "train.total_timesteps=448"), local=True, go_on=True, progress=False)
    assert (again.folder, again.steps, again.evaluation) == (short.folder, 448, None)
    assert any(note.startswith(f"{short.folder} is complete at step 448; ") for note in notes)
    longer = train(config(tmp_path, "train.total_timesteps=896"), local=True, go_on=True, progress=False)
    assert (longer.folder, longer.steps) == (short.folder, 896)
    assert any("resuming" in note for note in notes)


def test_a_run_whose_folder_is_gone_goes_on_from_its_mirror(tmp_path: Path, notes: list[str]) -> None:
    mirrored = f"checkpoint.mirror=file://{tmp_path / 'mirror'}"
    begun = train(config(tmp_path, "train.total_timesteps=448", mirrored), local=True, go_on=True, progress=False)
    shutil.rmtree(begun.folder)
    longer = train(config(tmp_path, "train.total_timesteps=896", mirrored), local=True, go_on=True, progress=False)
    assert (longer.folder, longer.steps) == (begun.folder, 896)
    assert any(note.endswith("from step 448") for note in notes)


def test_a_run_of_that_name_with_other_settings_is_refused(tmp_path: Path) -> None:
    train(config(tmp_path, "train.total_timesteps=448"), local=True, progress=False)
    with pytest.raises(ConfigError, match=r"was begun with learner.learning_rate=.*, not 0.5; go on with it as it is"):
        train(config(tmp_path, "learner.learning_rate=0.5"), local=True, go_on=True, progress=False)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", "config.yaml", "state.json", ".state.json.7"):
        (run / name).touch()
    (run / "metrics.jsonl").write_text('{"step": 112, "time": 1.0}\n')
    done = train(config(tmp_path, "train.total_timesteps=448"), local=True, go_on=True, progress=False)
    assert done.history()["step"].to_pylist() == [112, 224, 336, 448, 448]
    assert [row > 1 for row in done.history()["time"].to_pylist()] == [True] * 5


@pytest.mark.parametrize("names", [["thesis.tex"], [".lock", "thesis.tex"]])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "run").mkdir()
    for name in names:
        (tmp_path / "run" / name).touch()
    with pytest.raises(ConfigError, match="exists already"):
        train(config(tmp_path), local=True, go_on=True, progress=False)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names


def test_a_run_without_a_name_cannot_be_found_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--retries finds its run again by name; give name=..."):
        train(config(tmp_path, "name=null"), local=True, go_on=True, progress=False)


def test_a_mirror_is_no_folder_to_be_started_in_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", "s3://bucket/runs/cue", "--retries", "3"]) == 2
    assert "give name=cue and its checkpoint.mirror" in capsys.readouterr().err
