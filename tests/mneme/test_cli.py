"""The command line as a user meets it: its exit status and its words; in its own process where that is the point."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from mneme.cli import main
from mneme.configuration.config import Config, load_config
from mneme.distributed.runners import LocalRunner
from mneme.storage.checkpoint import list_checkpoints, load_checkpoint
from mneme.storage.run_folder import RunFolder
from mneme.training import Run, train

ROOT = Path(__file__).parents[2]
SMALL = [
    "name=run", "rollout.num_envs=16", "env.kwargs.horizon=6", "policy.controller.hidden_size=16",
    "train.evaluation_episodes=16", "checkpoint.keep=100", "learner.num_threads=2",
]  # fmt: skip


class Done(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def mneme(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, in this process."""

    def run(*arguments: str) -> Done:
        try:
            status = main(arguments)
        except SystemExit as stopped:  # argparse's
            status = stopped.code if isinstance(stopped.code, int) else -1
        return Done(status, *capsys.readouterr())

    return run


def test_a_command_leaves_the_process_as_it_found_it(mneme: Command) -> None:
    before = [*sys.path], {**os.environ}
    mneme("check", "mine:Absent")
    mneme("check", "gru", "--nothing")
    mneme("episodes", "nowhere")
    assert ([*sys.path], {**os.environ}) == before


def in_a_process(program: list[str], *arguments: str, cwd: Path = ROOT) -> Done:
    done = subprocess.run(
        [*program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    from mneme.configuration.config import settings

    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for setting in settings():
        assert f"  {setting.key}  (" in text
        assert setting.help.split()[0] in text


@pytest.mark.parametrize("command", ["", "train", "evaluate", "replay", "check", "suite", "status", "dashboard"])
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


def test_train_evaluate_and_what_a_run_leaves_behind(tmp_path: Path, mneme: Command) -> None:
    preset = ROOT / "configs" / "delayed_cue.yaml"
    trained = mneme(
        "train", str(preset), "--local", *SMALL, f"checkpoint.root={tmp_path}", "train.total_timesteps=448",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    )  # fmt: skip
    assert trained.status == 0, trained.err
    assert "448/448" in trained.out
    run = tmp_path / "run"
    assert {"checkpoints", "config.yaml", "metrics.jsonl", "curve.png"} <= {path.name for path in run.iterdir()}
    assert (run / "curve.png").stat().st_size > 5_000
    assert (tmp_path / "mlflow.db").exists()

    evaluated = mneme("evaluate", str(run), "--episodes", "64", "--reset-carry-at", "3")
    assert evaluated.status == 0, evaluated.err
    assert "success" in evaluated.out
    assert "over 64 episodes" in evaluated.out
    assert recorded_and_replayed(mneme, run, tmp_path) == evaluated.out
    changed = mneme("evaluate", str(run), "--episodes", "64", "--json", "env.kwargs.horizon=12")
    assert changed.status == 0, changed.err
    told = json.loads(changed.out)
    assert (told["changes"], told["episodes"], told["mean_length"]) == (["env.kwargs.horizon=12"], 64, 13)
    assert told["success_interval"][0] <= told["success"] <= told["success_interval"][1]
    assert changed.err.count("the task is changed: env.kwargs.horizon=12") == 1
    newest = str(list_checkpoints(run / "checkpoints")[-1])
    sampled = in_a_process([sys.executable, "-m", "mneme"], "evaluate", newest, "--episodes", "64", "--sample")
    assert sampled.status == 0, sampled.err


def recorded_and_replayed(mneme: Command, run: Path, folder: Path) -> str:
    """What the evaluation said that was recorded; and the recording is replayed."""
    file, picture = folder / "best.parquet", folder / "episode.png"
    evaluated = mneme(
        "evaluate", str(run), "--episodes", "64", "--reset-carry-at", "3", "--record", str(file), "--best", "2"
    )
    assert evaluated.status == 0, evaluated.err
    replayed = mneme("replay", str(file), "--episode", "1", "--plot", str(picture))
    assert replayed.status == 0, replayed.err
    assert "2 episodes: mneme/DelayedCue-v0, weights 4, seed 0, greedy, carry reset at step 3" in replayed.out
    assert picture.stat().st_size > 10_000
    again = mneme("evaluate", str(run), "--record", str(file))
    assert (again.status, again.out) == (1, "")
    assert f"{file} exists already" in again.err
    return evaluated.out


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["train", "learner.mod=full"], 2, "did you mean learner.mode?"),
        (["train", "configs/delayed_que.yaml"], 2, "did you mean delayed_cue?"),
        (["train", "env.id=mneme/DelayedQue-v0"], 2, "mneme/DelayedCue-v0"),
        (["train", "a.yaml", "b.yaml"], 2, "got 2 presets"),
        (["train", "--local", "service.mode=async"], 2, "set service.mode=sync"),
        (["train", "--resume", "/nowhere"], 2, "there is no run at /nowhere; name a run's folder"),
        (["train", "--resume", "runs/x", "seed=1"], 2, "those that may change are train.total_timesteps"),
        (["train", "service.address=127.0.0.1:1"], 1, "cannot join the Ray cluster at 127.0.0.1:1"),
        (["evaluate", "/nowhere"], 2, "there is no run at /nowhere"),
        (["train", "delayed_cue", "--resume", "runs/x"], 2, "goes on with its own settings; leave delayed_cue out"),
        (["evaluate", "a_run", "learner.mode=cached"], 2, "mneme: learner.mode=cached is no setting of the task"),
        (["evaluate", "a_run", "--episodes", "0"], 2, "episodes is 0"),
        (["evaluate", "a_run", "--record", "a.parquet", "--best", "0"], 2, "best is 0"),
        (["evaluate", "a_run", "--best", "3"], 2, "name a file for the record"),
        (["evaluate", "a_run", "--video-episodes", "0"], 2, "video_episodes is 0"),
        (["replay", "/nowhere"], 2, "there is no file /nowhere"),
        (["replay", "configs/delayed_cue.yaml"], 2, "is no recording"),
        (["dashboard", "--port", "99999"], 2, "99999 is no port; give a number from 1 to 65535"),
        (
            ["dashboard", "--store", "foo://x"],
            2,
            "--store is foo://x; give mlflow.db, its folder, or the URI of a database",
        ),
        (["train", "--seed", "3"], 2, "--seed; settings are written without dashes: seed=3"),
        (["train", "--learning-rate=1e-3"], 2, "settings are written without dashes: learner.learning_rate=1e-3"),
        (["evaluate", "a_run", "--num-envs", "0"], 2, "num_envs is 0"),
        (["train", "--locla"], 2, "unrecognized arguments: --locla; did you mean --local?"),
        (["evaluate", "x", "--episods", "3"], 2, "did you mean --episodes?"),
        (["diagnose", "x", "--local"], 2, "mneme diagnose: error: unrecognized arguments: --local"),
        (["diagnose", "x", "--local"], 2, "usage: mneme diagnose [-h]"),
        (["dashboard", "--prot=80"], 2, "did you mean --port?"),
        (
            ["sweep", "copy_memory_k", "--seeds", "2"],
            2,
            "--seeds 2; settings are written without dashes: sweep.seeds=2",
        ),
        (["sweep", "copy_memory_k", "--early-stoping=asha"], 2, "without dashes: sweep.early_stopping=asha"),
        (["sweep", "copy_memory_k", "--seed", "2"], 2, "settings are written without dashes: seed=2"),
        (["suite", "nosuch"], 2, "nosuch is no suite; give one of modes, horizons, or none to compare controllers"),
        (["suite", "modes", "horizons"], 2, "modes, horizons is no suite; give one of modes, horizons"),
        (["suite", "seed=3", "--seeds", "1", "modus"], 2, "modus is no suite"),
        (["suite", "modes", "--tables"], 2, "did you mean --table?"),
        (["train", "seed", "3"], 2, "a setting and its value are one word: seed=3"),
        (["train", "delayed_cue", "lr", "1e-3"], 2, "one word: learner.learning_rate=1e-3"),
        (["train", "seed", "=", "3"], 2, "one word: seed=3"),
        (["train", "seed=", "3"], 2, "one word: seed=3"),
        (["train", "seed"], 2, "one word: seed=VALUE"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, mneme: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, sentence: str
) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "a_run" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    done = mneme(*arguments)
    assert done.status == status
    assert sentence in done.err
    assert "the task is changed" not in done.err
    assert not (tmp_path / "runs").exists()  # refused before anything was made


@pytest.mark.parametrize(
    ("words", "go_on", "evaluate"),
    [
        ([], "", ""),
        (["--local"], " --local", ""),
        (["--local", "env.id=minigrid:MiniGrid-MemoryS7-v0"], " --local", ""),
        (["--local", "env.id=own:Own-v0"], " --local --trust", " --trust"),
        (["policy.controller.kind=own:Own"], " --trust", " --trust"),
        (["service.address=ray://elsewhere:10001"], " --trust", ""),
        (["--local", "service.address=ray://elsewhere:10001"], " --local", ""),
        (["tracking.uri=http://elsewhere"], " --trust", ""),
    ],
)
def test_what_to_do_next_is_said_with_the_options_that_it_needs(
    tmp_path: Path, mneme: Command, monkeypatch: pytest.MonkeyPatch, words: list[str], go_on: str, evaluate: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("")
    monkeypatch.setitem(sys.modules, "own", sys)  # as a run that has used it leaves it
    folder, interrupted = RunFolder(tmp_path / "run"), True

    def trained(config: Config, **_: Any) -> Run:
        folder.path.mkdir(exist_ok=True)
        folder.write_config(config)
        return Run(folder.path, 5, None, interrupted)

    monkeypatch.setattr("mneme.training.train", trained)
    done = mneme("train", *words)
    assert (done.status, done.err) == (130, "")
    assert done.out.endswith(f"go on with: mneme train --resume run{go_on}\n")
    interrupted = False
    done = mneme("train", *words)
    assert (done.status, done.err) == (0, "")
    assert done.out.endswith(f"evaluate with: mneme evaluate run{evaluate}\n")


def test_the_usage_of_a_suite_has_a_place_for_what_it_compares(mneme: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, tuple[str, ...]]] = []
    monkeypatch.setattr(
        "mneme.experiments.suite.running.run_suite",
        lambda *_, name, overrides, **__: bool(shown.append((name, tuple(overrides)))) or True,
    )
    for words in (["modes", "seed=3"], ["seed=3", "modes"], ["--seeds", "1", "modes", "seed=3"]):
        assert mneme("suite", *words).status == 0
    assert shown == [("modes", ("seed=3",))] * 3
    assert mneme("suite", "seed=3").status == 0
    assert shown[3] == ("suite", ("seed=3",))
    assert "[modes|horizons] [key=value ...]" in " ".join(mneme("suite", "--help").out.split())


def test_a_module_of_ones_own_is_found_where_the_command_is_started(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    done = in_a_process([str(Path(sys.executable).parent / "mneme")], "check", "mine:Absent", cwd=tmp_path)
    assert done.status == 2
    assert "module 'mine' has no attribute 'Absent'; modules are looked for in the present folder" in done.err
    assert "Traceback" not in done.err


LONGER = [
    *SMALL,
    "tracking.enabled=false",
    "train.total_timesteps=1120",
    "checkpoint.every=336",
    "learner.num_epochs=1",
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """The last checkpoint's arrays of a run that nothing happened to."""
    config = load_config(None, [*LONGER, f"checkpoint.root={tmp_path_factory.mktemp('uninterrupted')}"])
    return load_checkpoint(list_checkpoints(train(config, local=True).folder / "checkpoints")[-1]).arrays


def goes_on(mneme: Command, run: Path, expected: dict[str, dict[str, np.ndarray]]) -> None:
    """The stopped run, resumed, ends as the one that nothing happened to."""
    assert 0 < load_checkpoint(list_checkpoints(run / "checkpoints")[-1]).run["steps"] < 1120
    resumed = mneme("train", "--local", "--resume", str(run))
    assert resumed.status == 0, resumed.err
    assert "done at step 1,120" in resumed.out
    final = load_checkpoint(list_checkpoints(run / "checkpoints")[-1]).arrays
    for part, arrays in expected.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, final[part][name], err_msg=f"{part}/{name}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_run_goes_on_to_the_same_bits(
    tmp_path: Path,
    mneme: Command,
    number: signal.Signals,
    uninterrupted: dict[str, dict[str, np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learn, calls = LocalRunner.learn, iter(range(100))

    def stopped(runner: LocalRunner, fragments: Any) -> Any:
        if next(calls) == 4:
            signal.raise_signal(number)
        return learn(runner, fragments)

    with monkeypatch.context() as patch:
        patch.setattr(LocalRunner, "learn", stopped)
        done = mneme("train", "--local", *LONGER, f"checkpoint.root={tmp_path}")
    assert done.status == 130, done.err
    assert f"interrupted at step 560; go on with: mneme train --resume {tmp_path}/run --local\n" in done.out
    goes_on(mneme, tmp_path / "run", uninterrupted)


def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, mneme: Command, uninterrupted: dict[str, dict[str, np.ndarray]]
) -> None:
    """Killed in the fifth update, once the checkpoint of the third is whole (another thread writes it)."""
    code = (
        "import os, pathlib, signal, sys, time\n"
        "from mneme.distributed.runners import LocalRunner as Runner\n"
        "learn, left = Runner.learn, [1] * 4\n"
        "def learn_or_die(*all):\n"
        "    if left and left.pop(): return learn(*all)\n"
        f"    while not list(pathlib.Path({str(tmp_path)!r}).glob('run/checkpoints/step-*')): time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Runner.learn = learn_or_die\n"
        "from mneme.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    killed = in_a_process([sys.executable, "-c", code], "train", "--local", *LONGER, f"checkpoint.root={tmp_path}")
    assert killed.status == -signal.SIGKILL, killed.err
    assert "interrupted" not in killed.out
    goes_on(mneme, tmp_path / "run", uninterrupted)


def test_a_disk_that_is_really_full_costs_a_checkpoint_not_the_training_and_in_the_end_its_success(
    tmp_path: Path,
) -> None:
    """No file may grow beyond 20 kB: metrics fit, weights do not."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "import mneme.storage.saving; mneme.storage.saving.PAUSES = (1,);"
        "from mneme.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = in_a_process(
        [sys.executable, "-c", code], "train", "--local", *SMALL, "policy.controller.hidden_size=64",
        "tracking.enabled=false", "train.total_timesteps=336", "checkpoint.every=112", f"checkpoint.root={tmp_path}",
    )  # fmt: skip
    assert done.status == 1
    assert "the checkpoint at step 112 could not be written" in done.out
    assert "evaluation" in done.out or "result" in done.out
    assert "done at step" not in done.out
    assert "mneme: the last checkpoint could be written neither to" in done.err


def test_an_unreachable_tracking_server_never_stops_training(tmp_path: Path, mneme: Command) -> None:
    done = mneme(
        "train", "--local", *SMALL, f"checkpoint.root={tmp_path}", "train.total_timesteps=448",
        "tracking.uri=http://127.0.0.1:9",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "http://127.0.0.1:9" in done.out
    assert "done at step 448" in done.out


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path: Path, mneme: Command) -> None:
    (tmp_path / "file").write_text("")
    done = mneme("train", "--local", *SMALL, f"checkpoint.root={tmp_path / 'file'}", "tracking.enabled=false")
    assert done.status == 1
    assert str(tmp_path / "file") in done.err


def test_a_taken_port_is_said(mneme: Command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = mneme("dashboard", "--port", str(taken.getsockname()[1]))
    assert done.status == 1
    assert "choose another: --port" in done.err
