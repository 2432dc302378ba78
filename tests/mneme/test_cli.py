"""The command line as a user meets it: its own process, its exit status, its words."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mneme.cli import main
from mneme.storage.checkpoint import list_checkpoints, load_checkpoint

ROOT = Path(__file__).parents[2]
SMALL = [
    "name=run", "rollout.num_envs=16", "env.kwargs.horizon=6", "policy.controller.hidden_size=16",
    "train.evaluation_episodes=16", "checkpoint.keep=100", "learner.num_threads=2",
]  # fmt: skip


def mneme(*arguments: str, cwd: Path = ROOT, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mneme", *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    from mneme.configuration.config import settings

    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for setting in settings():
        assert f"  {setting.key}  (" in text
        assert setting.help.split()[0] in text


@pytest.mark.parametrize("command", ["", "train", "evaluate", "replay", "check", "suite", "dashboard"])
def test_help_reads_well(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"] if command else ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "%%" not in text
    assert "%(" not in text
    if command == "train":
        assert "  delayed_cue\n      The main job" in text


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("mneme ")


def test_train_evaluate_and_what_a_run_leaves_behind(tmp_path: Path) -> None:
    preset = ROOT / "configs" / "delayed_cue.yaml"
    trained = mneme(
        "train", str(preset), "--local", *SMALL, f"checkpoint.root={tmp_path}", "train.total_timesteps=448",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "step   448/448" in trained.stdout or "448/448" in trained.stdout
    run = tmp_path / "run"
    assert {"checkpoints", "config.yaml", "metrics.jsonl", "curve.png"} <= {path.name for path in run.iterdir()}
    assert (tmp_path / "mlflow.db").exists()

    evaluated = mneme("evaluate", str(run), "--episodes", "64", "--reset-carry-at", "3")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "success" in evaluated.stdout
    assert "over 64 episodes" in evaluated.stdout
    assert recorded_and_replayed(run, tmp_path) == evaluated.stdout
    changed = mneme("evaluate", str(run), "--episodes", "64", "--json", "env.kwargs.horizon=12")
    assert changed.returncode == 0, changed.stderr
    told = json.loads(changed.stdout)
    assert (told["changes"], told["episodes"], told["mean_length"]) == (["env.kwargs.horizon=12"], 64, 13)
    assert told["success_interval"][0] <= told["success"] <= told["success_interval"][1]
    assert "the task is changed: env.kwargs.horizon=12" in changed.stderr
    sampled = mneme("evaluate", str(list_checkpoints(run / "checkpoints")[-1]), "--episodes", "64", "--sample")
    assert sampled.returncode == 0, sampled.stderr


def recorded_and_replayed(run: Path, folder: Path) -> str:
    """What the evaluation said that was recorded; and the recording is replayed."""
    file, picture = folder / "best.parquet", folder / "episode.png"
    evaluated = mneme(
        "evaluate", str(run), "--episodes", "64", "--reset-carry-at", "3", "--record", str(file), "--best", "2"
    )
    assert evaluated.returncode == 0, evaluated.stderr
    replayed = mneme("replay", str(file), "--episode", "1", "--plot", str(picture))
    assert replayed.returncode == 0, replayed.stderr
    assert "2 episodes: mneme/DelayedCue-v0, weights 4, seed 0, greedy, carry reset at step 3" in replayed.stdout
    assert picture.stat().st_size > 10_000
    again = mneme("evaluate", str(run), "--record", str(file))
    assert (again.returncode, again.stdout) == (1, "")
    assert f"{file} exists already" in again.stderr
    return evaluated.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["train", "learner.mod=full"], 2, "did you mean learner.mode?"),
        (["train", "configs/delayed_que.yaml"], 2, "did you mean delayed_cue?"),
        (["train", "env.id=mneme/DelayedQue-v0"], 2, "mneme/DelayedCue-v0"),
        (["train", "a.yaml", "b.yaml"], 2, "got 2 presets"),
        (["train", "--local", "service.mode=async"], 2, "set service.mode=sync"),
        (["train", "--resume", "/nowhere"], 2, "no usable checkpoint under /nowhere/checkpoints"),
        (["train", "--resume", "runs/x", "seed=1"], 2, "only train.total_timesteps"),
        (["train", "service.address=127.0.0.1:1"], 1, "cannot join the Ray cluster at 127.0.0.1:1"),
        (["evaluate", "/nowhere"], 2, "no usable checkpoint"),
        (["evaluate", "/nowhere", "--episodes", "0"], 2, "--episodes is 0"),
        (["evaluate", "/nowhere", "--record", "a.parquet", "--best", "0"], 2, "--best is 0"),
        (["evaluate", "/nowhere", "--best", "3"], 2, "name a file with --record"),
        (["evaluate", "/nowhere", "--video-episodes", "0"], 2, "--video-episodes is 0"),
        (["replay", "/nowhere"], 2, "there is no file /nowhere"),
        (["replay", "configs/delayed_cue.yaml"], 2, "is no recording"),
        (["train", "service.learner_gpus=64"], 1, "asks for 64 GPU and Ray has"),
        (["dashboard", "--port", "99999"], 2, "99999 is no port; give a number from 1 to 65535"),
        (
            ["dashboard", "--store", "foo://x"],
            2,
            "--store is foo://x; give mlflow.db, its folder, or the URI of a database",
        ),
        (["train", "--seed", "3"], 2, "--seed; settings are written without dashes: seed=3"),
        (["train", "--learning-rate=1e-3"], 2, "settings are written without dashes: learner.learning_rate=1e-3"),
        (["evaluate", "/nowhere", "--num-envs", "0"], 2, "--num-envs is 0"),
        (["train", "--locla"], 2, "unrecognized arguments: --locla; did you mean --local?"),
        (["evaluate", "x", "--episods", "3"], 2, "did you mean --episodes?"),
        (["dashboard", "--prot=80"], 2, "did you mean --port?"),
        (["train", "seed", "3"], 2, "a setting and its value are one word: seed=3"),
        (["train", "delayed_cue", "lr", "1e-3"], 2, "one word: learner.learning_rate=1e-3"),
        (["train", "seed", "=", "3"], 2, "one word: seed=3"),
        (["train", "seed=", "3"], 2, "one word: seed=3"),
        (["train", "seed"], 2, "one word: seed=VALUE"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, arguments: list[str], status: int, sentence: str) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    done = mneme(*arguments, cwd=tmp_path)
    assert done.returncode == status
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()  # refused before anything was made


def test_a_module_of_ones_own_is_found_where_the_command_is_started(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    command = [Path(sys.executable).parent / "mneme", "check", "mine:Absent"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "module 'mine' has no attribute 'Absent'; modules are looked for in the present folder" in done.stderr


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


LONGER = [*SMALL, "tracking.enabled=false", "train.total_timesteps=16800", "checkpoint.every=1120"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """The last checkpoint's arrays of a run that nothing happened to."""
    root = tmp_path_factory.mktemp("uninterrupted")
    done = mneme("train", "--local", *LONGER, f"checkpoint.root={root}")
    assert done.returncode == 0, done.stderr
    return load_checkpoint(list_checkpoints(root / "run" / "checkpoints")[-1]).arrays


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_stopped_run_goes_on_to_the_same_bits(
    tmp_path: Path, number: signal.Signals, uninterrupted: dict[str, dict[str, np.ndarray]]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mneme", "train", "--local", *LONGER, f"checkpoint.root={tmp_path}"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    run = tmp_path / "run"
    wait_for(run / "metrics.jsonl", 25, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, err
        assert "go on with: mneme train --resume" in out
        assert "Traceback" not in err
    assert load_checkpoint(list_checkpoints(run / "checkpoints")[-1]).run["steps"] < 16800
    resumed = mneme("train", "--local", "--resume", str(run))
    assert resumed.returncode == 0, resumed.stderr
    final = load_checkpoint(list_checkpoints(run / "checkpoints")[-1]).arrays
    for part, arrays in uninterrupted.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, final[part][name], err_msg=f"{part}/{name}")


def test_a_disk_that_is_really_full_costs_a_checkpoint_not_the_training_and_in_the_end_its_success(
    tmp_path: Path,
) -> None:
    """No file may grow beyond 20 kB: metrics fit, weights do not."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "import mneme.storage.saving; mneme.storage.saving.PAUSES = (1,);"
        "from mneme.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "--local", *SMALL, "policy.controller.hidden_size=64",
         "tracking.enabled=false", "train.total_timesteps=336", "checkpoint.every=112", f"checkpoint.root={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "the checkpoint at step 112 could not be written" in done.stdout
    assert "evaluation" in done.stdout or "result" in done.stdout
    assert "done at step" not in done.stdout
    assert "mneme: the last checkpoint could be written neither to" in done.stderr


def test_an_unreachable_tracking_server_never_stops_training(tmp_path: Path) -> None:
    done = mneme(
        "train", "--local", *SMALL, f"checkpoint.root={tmp_path}", "train.total_timesteps=448",
        "tracking.uri=http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:9" in done.stdout
    assert "done at step 448" in done.stdout


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = mneme("train", "--local", *SMALL, f"checkpoint.root={tmp_path / 'file'}", "tracking.enabled=false")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "file") in done.stderr


def test_a_taken_port_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = mneme("dashboard", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "choose another: --port" in done.stderr
