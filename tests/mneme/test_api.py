"""The front door: what `import mneme` offers, and what it takes."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

import mneme
from mneme.callbacks import Callback, Look, Outcome, Progress, RunStart
from mneme.controllers import CONTROLLERS
from mneme.envs import DelayedCue
from mneme.envs.counting import Counting, CountingEnv

OFFERED = {
    "Agent", "AgentCarry", "Callback", "Carry", "CheckpointError", "Config", "ConfigError", "Controller",
    "ControllerSettings", "EnvironmentFailure", "Evaluation", "EvaluationError", "Look", "Outcome", "Progress", "Run",
    "RunStart", "ServiceError", "Session", "Sweep", "TensorBoard", "Wandb", "evaluate", "export", "load", "resume",
    "sweep", "train",
}  # fmt: skip


def short(tmp_path: Path, *overrides: str, **options: Any) -> mneme.Run:
    """A run of two updates on the counting environment, unless the options say otherwise."""
    given = [
        f"checkpoint.root={tmp_path}", "rollout.num_envs=8", "rollout.num_workers=2", "rollout.unroll_length=10",
        "train.total_timesteps=160", "train.evaluation_episodes=8", "learner.num_minibatches=1",
        "learner.num_threads=1", "policy.controller.hidden_size=8", "tracking.enabled=false", *overrides,
    ]  # fmt: skip
    options = {"env": "mneme/Counting-v0", "local": True, "progress": False} | options
    return mneme.train(options.pop("preset", None), *given, **options)


def test_what_is_offered_is_pinned_and_there() -> None:
    assert set(mneme.__all__) == OFFERED
    for name in mneme.__all__:
        assert getattr(mneme, name) is not None
    assert set(dir(mneme)) >= OFFERED
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        mneme.trian  # type: ignore[attr-defined]  # noqa: B018


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, mneme; sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'numpy', 'gymnasium')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_comes_back_with_its_history(tmp_path: Path) -> None:
    run = short(tmp_path, seed=3, name="mine", controller="lstm")
    assert (run.folder, run.steps, run.interrupted) == (tmp_path / "mine", 160, False)
    assert run.evaluation is not None
    assert run.evaluation.episodes == 8
    history = run.history()
    assert history["step"].to_pylist() == [80, 160, 160]
    assert history["evaluation/return"].to_pylist() == [None, None, run.evaluation.mean_return]
    assert history.to_pandas()["weights_version"].tolist()[:2] == [1.0, 2.0]
    assert "kind: lstm" in (run.folder / "config.yaml").read_text()
    assert "seed: 3" in (run.folder / "config.yaml").read_text()


def test_a_run_goes_on(tmp_path: Path) -> None:
    run = short(tmp_path)
    more = mneme.resume(run, total_timesteps=240, local=True, progress=False)
    assert (more.folder, more.steps) == (run.folder, 240)
    assert mneme.resume(str(run.folder), total_timesteps=320, local=True, progress=False).steps == 320


def test_presets_files_and_configurations_are_taken(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("env: {id: mneme/DelayedCue-v0, kwargs: {horizon: 4}}\n")
    assert short(tmp_path, preset="seed=5").steps == 160
    for preset in ("delayed_cue", tmp_path / "own.yaml", mneme.Config(seed=4)):
        run = short(tmp_path, "env.kwargs.horizon=6", preset=preset, env=None)
        assert "horizon: 6" in (run.folder / "config.yaml").read_text()
    # the horizon is of the preset's own task
    assert "kwargs: {}" in (short(tmp_path, preset="delayed_cue").folder / "config.yaml").read_text()
    with pytest.raises(mneme.ConfigError, match="did you mean delayed_cue?"):
        short(tmp_path, preset="delayed_que")


def make_cue(horizon: int = 5) -> gym.Env[Any, Any]:
    return gym.make("mneme/DelayedCue-v0", horizon=horizon)


def make_many(num_envs: int, length: int) -> Any:
    assert length == 3
    return SyncVectorEnv([CountingEnv] * num_envs, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP)


class Own(CONTROLLERS["gru"]):  # type: ignore[misc]
    """As GRU."""

    class Inside(CONTROLLERS["gru"]):  # type: ignore[misc]
        """Found by the name of the class around it."""


def test_what_makes_an_environment_may_be_given_in_place_of_an_id(tmp_path: Path, notes: list[str]) -> None:
    run = short(tmp_path, "env.kwargs.horizon=4", env=make_cue, controller=Own)
    assert "horizon: 4" in (run.folder / "config.yaml").read_text()
    assert f"{__name__}:make_cue" in (run.folder / "config.yaml").read_text()
    assert f"{__name__}:Own" in (run.folder / "config.yaml").read_text()
    assert mneme.resume(run, total_timesteps=240, local=True, progress=False, trust=True).steps == 240
    assert short(tmp_path, "env.kwargs.length=3", env=make_many).evaluation is not None
    assert short(tmp_path, env=Counting).evaluation is not None  # a vector environment's class
    assert short(tmp_path, env=CountingEnv).evaluation is not None
    assert short(tmp_path, controller=Own.Inside).evaluation is not None
    assert not any("cannot be imported" in note for note in notes)


def test_what_only_this_process_has_trains_and_is_said_to_be_lost_with_it(tmp_path: Path, notes: list[str]) -> None:
    class Local(CONTROLLERS["gru"]):  # type: ignore[misc]
        pass

    run = short(tmp_path, env=lambda: gym.make("mneme/Counting-v0"), controller=Local)
    assert [note for note in notes if "cannot be imported by another process" in note] == [
        "the environment and the controller cannot be imported by another process, so this run can be resumed and "
        "evaluated in the present one alone; put the code into a module of its own to lift that"
    ]
    assert mneme.evaluate(run, episodes=4, trust=True).episodes >= 4
    code = f"import mneme; mneme.resume({str(run.folder)!r}, total_timesteps=240, local=True, trust=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "Error: " in done.stderr.splitlines()[-1]
    assert "cannot be imported" in done.stderr or "which only the process that made it can make" in done.stderr


def test_classes_of_one_name_stay_apart(tmp_path: Path) -> None:
    def made(number: int) -> type[mneme.Controller]:
        class Local(CONTROLLERS["gru"]):  # type: ignore[misc]
            chosen = number

        return Local

    runs = [short(tmp_path, controller=made(number)) for number in (1, 2)]
    found = [getattr(mneme.load(run, trust=True).policy.controller, "chosen") for run in runs]  # noqa: B009
    assert found == [1, 2]


def test_runs_of_one_second_have_names_of_their_own_and_stay_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [short(Path("runs")) for _ in range(2)]
    monkeypatch.chdir("/")
    assert len({run.folder for run in runs}) == 2
    assert all(run.history().num_rows == 3 for run in runs)
    assert len(repr(runs[0])) < 400


@pytest.mark.ray
def test_what_only_this_process_has_trains_over_ray_too(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import gymnasium as gym, mneme\n"
        "from mneme.controllers.gru import GruController\n"
        "class Mine(GruController):\n    pass\n"
        "def make(length=5):\n    return gym.make('mneme/Counting-v0')\n"
        "run = mneme.train(None, 'rollout.num_envs=4', 'rollout.num_workers=2',\n"
        "    'rollout.unroll_length=8', 'train.total_timesteps=64', 'tracking.enabled=false',\n"
        "    'learner.num_minibatches=1', 'train.evaluation_episodes=4', env=make, controller=Mine, progress=False)\n"
        "print(run.steps, run.evaluation.episodes)\n"
    )
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines()[-1:] == ["64 4"], done.stderr


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"env": 3}, "the environment is given as 3; give an id, or"),
        ({"env": lambda: make_many(2, 3)}, "a vector environment was made, of its own size; let what makes it take"),
        ({"env": lambda num_envs: make_many(2, 3)}, "asked for 1 environments that reset by themselves, and made 2"),
        ({"callbacks": [Callback]}, "give instances of a subclass of mneme.Callback"),
        ({"controller": DelayedCue}, "give a kind such as gru, or a subclass of Controller"),
        ({"controller": "grue"}, "policy.controller.kind is 'grue'"),
        ({"seed": -1}, "seed is -1"),
        ({"name": 3}, "name is 3; give a folder's name as text, or None for one that is made for you"),
        ({"name": ""}, "name is ''; give a folder's name as text, or None for one that is made for you"),
        ({"name": ".."}, "name is '..'; it is dots alone, which mean a folder that is there already; choose another"),
        ({"name": "a/b"}, "name is 'a/b'; it names a folder, so it holds no slashes; choose another"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(mneme.ConfigError, match=sentence):
        short(tmp_path, **given)
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_taken_as_it_is(tmp_path: Path) -> None:
    for name in ("null", "'quoted'", "run #3", "3"):
        assert short(tmp_path, name=name).folder == tmp_path / name


@pytest.mark.parametrize("name", [3, ""])
def test_a_sweeps_name_is_a_text_too(name: Any) -> None:
    with pytest.raises(mneme.ConfigError, match=f"^name is {name!r}; give a folder's name as text"):
        mneme.sweep("delayed_cue", space={"learner.gamma": [0.9, 1.0]}, name=name, progress=False)


class Diary(Callback):
    """Notes what it is told, and does what it is asked to at one of the events."""

    def __init__(self, at: str = "", act: Any = None) -> None:
        self.events: list[str] = []
        self._at, self._act = at, act

    def _noted(self, event: str) -> Any:
        self.events.append(event)
        return self._act() if event.startswith(self._at) and self._at else None

    def on_start(self, run: RunStart) -> None:
        self._noted(f"start {run.config.rollout.num_envs} {run.resumed}")

    def on_begin(self, progress: Progress) -> None:
        self._noted(f"begin {progress.steps}")

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> bool | None:
        assert np.isfinite(metrics["policy_loss"])
        answer: bool | None = self._noted(f"update {progress.update} {progress.steps}/{progress.total_timesteps}")
        return answer

    def on_evaluation(self, progress: Progress, evaluation: mneme.Evaluation, look: Look) -> bool | None:
        answer: bool | None = self._noted(f"{look.name} {progress.steps} {evaluation.episodes}")
        return answer

    def on_checkpoint(self, progress: Progress, path: Path) -> bool | None:
        answer: bool | None = self._noted(f"checkpoint {path.name}")
        return answer

    def on_end(self, progress: Progress, outcome: Outcome) -> None:
        self._noted(f"end {outcome}")


def test_callbacks_hear_of_everything_in_order(tmp_path: Path) -> None:
    diary = Diary()
    short(tmp_path, "checkpoint.every=80", "train.evaluate_every=80", callbacks=[diary])
    assert diary.events == [
        "start 8 False",
        "begin 0",
        "update 1 80/160",
        "checkpoint step-000000000080",
        "EVALUATION 80 8",
        "update 2 160/160",
        "checkpoint step-000000000160",
        "RESULT 160 8",
        "end complete",
    ]


@pytest.mark.parametrize("event", ["update 1", "checkpoint", "EVALUATION"])
def test_a_callback_may_ask_to_stop(tmp_path: Path, event: str) -> None:
    diary = Diary(event, lambda: np.bool_(True))
    run = short(
        tmp_path, "train.total_timesteps=800", "checkpoint.every=80", "train.evaluate_every=80", callbacks=[diary]
    )
    assert run.interrupted
    assert run.steps <= 160
    assert diary.events[-1] == "end stopped"
    assert mneme.resume(run, total_timesteps=run.steps + 80, local=True, progress=False).steps == run.steps + 80


def test_one_that_exits_ends_the_run_with_a_checkpoint_first(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        short(tmp_path, callbacks=[Diary("update 1", sys.exit)], name="run")
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("event", ["start", "begin", "update 1", "checkpoint", "EVALUATION", "RESULT", "end"])
def test_one_that_raises_ends_the_run_with_a_checkpoint(tmp_path: Path, event: str, notes: list[str]) -> None:
    def explode() -> None:
        raise RuntimeError("my plot is broken")

    diary, other = Diary(event, explode), Diary()
    with pytest.raises(RuntimeError, match="my plot is broken"):
        short(tmp_path, "checkpoint.every=80", "train.evaluate_every=80", callbacks=[diary, other], name="run")
    assert any("the callback Diary failed (RuntimeError: my plot is broken)" in note for note in notes)
    assert other.events[-1].startswith("end ")
    assert diary.events[-1].startswith("end ")
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert mneme.load(tmp_path / "run") is not None
