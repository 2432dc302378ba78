"""`mneme suite`: what it keeps, how it goes on, what its table says, and what it refuses."""

import io
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mneme.cli import main
from mneme.configuration.config import Config, load_config
from mneme.distributed.config import ConfigError
from mneme.experiments.seeds import SeedRun
from mneme.experiments.suite import contest
from mneme.experiments.suite import running as suite
from mneme.experiments.suite.contest import CONTROLLERS_CONTEST
from mneme.experiments.suite.results import Job, Results
from mneme.experiments.suite.running import run_suite, show_suite
from mneme.experiments.suite.table import HEADINGS, as_markdown, table_rows
from mneme.storage.checkpoint import list_checkpoints
from mneme.training import train

TINY = (
    "rollout.num_envs=8", "policy.controller.hidden_size=8", "learner.num_threads=1", "train.total_timesteps=100",
    "train.evaluation_episodes=16",
)  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that were trained on, in place of the training itself."""
    configs: list[Config] = []

    def run_seed(config: Config, **options: Any) -> SeedRun:
        configs.append(config)
        return SeedRun(config.seed, 1000, 2.0, 99, 512, 0.995, 0.98, 1.0, 0.99, 0.9, 0.25)

    monkeypatch.setattr(suite, "run_seed", run_seed)
    return configs


def run(tasks: str = "tmaze", controllers: str = "mlp", seeds: int = 1, overrides: Sequence[str] = ()) -> str:
    out = io.StringIO()
    arguments = (tasks.split(","), controllers.split(","), seeds)
    console = Console(file=out, highlight=False)
    assert run_suite(*arguments, name="s", local=True, overrides=overrides, console=console)
    return out.getvalue()


def document() -> dict[str, Any]:
    return json.loads(Path("runs/suites/s/results.json").read_text())


def test_a_run_is_trained_evaluated_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--tasks", "tmaze", "--controllers", "gru", "--seeds", "1", "--name", "s", "--local", *TINY]
    assert main(["suite", *words]) == 0
    assert "[1 of 1] tmaze, gru, seed 0: not solved in 176 steps" in capsys.readouterr().out
    kept = document()
    (row,) = kept["runs"]
    assert (row["task"], row["controller"], row["seed"], row["solved"]) == ("tmaze", "gru", 0, False)
    assert (row["steps"], row["episodes"]) == (176, 16)  # two updates of 8 lanes and 11 steps
    assert row["parameters"] == 3 * 8 * (2 + 8 + 2) + 2 * 8 + 8 * 4 + 4 + 8 + 1  # GRU, LayerNorm, policy, value
    assert 0 <= row["success_low"] <= row["success"] <= row["success_high"] <= 1
    assert kept["tasks"]["tmaze"]["memoryless_return"] == 0.5
    assert {"torch", "python"} <= kept["versions"].keys()
    assert kept["machine"]["cores"] >= 1
    assert row["cpu"] == kept["machine"]["cpu"]
    assert "step 176/100" in Path("runs/suites/s/log.txt").read_text()


def test_gradients_that_go_back_too_few_steps_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    run("tmaze", "gru", 2, [*TINY, "learner.mode=cached"])
    assert len(document()["runs"]) == 2
    assert len([record for record in caplog.records if "gradients go back 1 step" in record.message]) == 1


def test_what_is_done_is_not_done_again_and_more_may_be_added(trained: list[Config]) -> None:
    run("tmaze,delayed_cue", "mlp", 2)
    assert [(config.env.id, config.seed) for config in trained] == [
        ("mneme/TMaze-v0", 0), ("mneme/DelayedCue-v0", 0), ("mneme/TMaze-v0", 1), ("mneme/DelayedCue-v0", 1),
    ]  # fmt: skip
    text = run("tmaze", "mlp,gru", 3)
    assert [(config.policy.controller.kind, config.seed) for config in trained[4:]] == [
        ("gru", 0), ("gru", 1), ("mlp", 2), ("gru", 2),
    ]  # fmt: skip
    assert "[3 of 6] tmaze, gru, seed 0: solved after 1,000 steps, 2 s, success 99.5%  eta 0:00:06" in text
    assert len(document()["runs"]) == 8


def test_an_interrupted_suite_keeps_what_was_done_and_goes_on(
    trained: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = suite.run_seed
    monkeypatch.setattr(suite, "run_seed", lambda config, **o: whole(config, **o) if config.seed == 0 else None)
    assert not run_suite(["tmaze"], ["mlp"], 2, name="s", local=True, console=Console(file=io.StringIO()))
    assert [row["seed"] for row in document()["runs"]] == [0]
    monkeypatch.setattr(suite, "run_seed", whole)
    run(seeds=2)
    assert [config.seed for config in trained] == [0, 1]


def test_training_that_diverges_is_a_failure_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(config: Config, **options: Any) -> SeedRun:
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(suite, "run_seed", diverges)
    assert "tmaze, mlp, seed 0: failed: the loss is nan" in run()
    assert list(table_rows(document())) == [("tmaze", "mlp", "–", "0 of 1", "–", "–", "failed", "–", "0.50", "–")]


def test_runs_are_tracked_if_a_setting_says_so(trained: list[Config]) -> None:
    run()
    run(seeds=2, overrides=["tracking.experiment=compared"])
    run(seeds=3, overrides=["tracking={experiment: compared, enabled: false}"])
    assert {config.tracking.parent for config in trained} == {"s"}
    assert [(c.tracking.enabled, c.tracking.experiment) for c in trained] == [
        (False, "mneme"), (True, "compared"), (False, "compared"),
    ]  # fmt: skip


def test_other_settings_need_another_name(trained: list[Config]) -> None:
    run()
    with pytest.raises(ConfigError, match=r"mlp under other settings \(learner.gamma=0.99, not 0.5\); choose"):
        run(overrides=["learner.gamma=0.5"])
    with pytest.raises(ConfigError, match="made with no settings besides the presets; give the same, or choose"):
        run(controllers="gru", overrides=["learner.gamma=0.5"])
    run(overrides=["checkpoint.keep=1"])  # it changes no result
    assert len(trained) == 1


def test_a_newer_version_goes_on_with_a_suite_if_all_it_has_besides_is_at_its_default(trained: list[Config]) -> None:
    """A version that has no learner.gamma is made up by taking it out of the file, and the fingerprint that it had."""

    run()
    kept = document()
    (settings,) = kept["settings"].values()
    del settings["learner.gamma"]
    kept["settings"], kept["runs"][0]["settings"] = {"of then": settings}, "of then"
    Path("runs/suites/s/results.json").write_text(json.dumps(kept))
    run(controllers="mlp,gru", seeds=2)
    assert [(config.policy.controller.kind, config.seed) for config in trained] == [
        ("mlp", 0), ("gru", 0), ("mlp", 1), ("gru", 1),
    ]  # fmt: skip
    first, mlp, gru = document()["settings"].values()
    assert "learner.gamma" not in first
    assert mlp == {"learner.gamma": 0.99}
    assert gru.keys() == {"learner.gamma", "policy.controller"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"learner.gamma": 0.5}, r"\(learner.gamma=0.5, not 0.99\)"),
        ({"learner.gone": 1}, "unknown setting learner.gone"),
        (None, "it does not say which"),
    ],
)
def test_what_another_version_did_otherwise_needs_another_name(
    change: dict[str, Any] | None, sentence: str, trained: list[Config]
) -> None:
    run()
    kept = document()
    (settings,) = kept.pop("settings").values()
    kept["runs"][0]["settings"] = "of then"
    Path("runs/suites/s/results.json").write_text(
        json.dumps(kept | ({} if change is None else {"settings": {"of then": settings | change}}))
    )
    with pytest.raises(ConfigError, match=sentence):
        run()
    assert len(trained) == 1


def test_all_runs_start_from_the_checkpoint_that_was_found_before_them(
    trained: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a suite that goes on too, though the run that it is of has gone on meanwhile."""
    start = [*TINY, "train.start_from=runs/other"]
    with pytest.raises(ConfigError, match=r"with tmaze, gru: train.start_from is runs/other: there is no run at"):
        run("tmaze", "gru", 1, start)
    assert not Path("runs").exists()
    given = ["env.id=mneme/TMaze-v0", "tracking.enabled=false", "name=other", *TINY]
    folder = train(load_config(None, given), local=True, progress=False).folder
    (very,) = list_checkpoints(folder / "checkpoints")
    with pytest.raises(ConfigError, match=r"with tmaze, mlp: train.start_from is .*other.*, whose weights do not"):
        run("tmaze", "gru,mlp", 1, start)
    assert trained == []
    run("tmaze", "gru", 1, start)
    very.rename(very.with_name("step-000000999999"))
    with pytest.raises(ConfigError, match="there is no checkpoint at runs/other"):
        run("tmaze", "gru", 2, start)
    shutil.copytree(very.with_name("step-000000999999"), very)
    run("tmaze", "gru", 2, start)
    assert [config.train.start_from for config in trained] == [str(very)] * 2
    assert document()["starts"] == {"runs/other": str(very)}


def test_a_controllers_own_preset_is_taken_in_place_of_the_tasks(
    trained: list[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(contest.PRESETS / "tmaze.yaml", tmp_path)
    (tmp_path / "tmaze_gru.yaml").write_text("env: {id: mneme/TMaze-v0}\nlearner: {learning_rate: 0.5}\n")
    monkeypatch.setattr(contest, "PRESETS", tmp_path)
    run(controllers="mlp,gru")
    rates = {config.policy.controller.kind: config.learner.learning_rate for config in trained}
    assert rates == {"mlp": load_config(tmp_path / "tmaze.yaml").learner.learning_rate, "gru": 0.5}


@pytest.mark.parametrize("task", CONTROLLERS_CONTEST.tasks)
def test_the_suites_presets_say_when_a_task_is_solved(task: str) -> None:
    config = load_config(contest.PRESETS / f"{task}.yaml")
    assert config.train.stop_success == 0.99


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tasks", "tmazes"], "did you mean"),
        (["--controllers", "grue"], "policy.controller.kind is 'grue'"),
        (["--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["--name", "a/b"], "--name is 'a/b'"),
        (["learner.mod=full"], "did you mean learner.mode?"),
        (
            ["policy.controller.kind=gru"],
            "policy.controller.kind is what a suite sets by itself; name kinds with",
        ),
        (["policy={controller: {kind: gru}}"], "policy.controller.kind is what a suite sets by itself"),
        (["env.id=mneme/TMaze-v0"], "env.id is what a suite sets by itself; name presets with --tasks"),
        (["env={kwargs: {}, id: CartPole-v1}"], "env.id is what a suite sets by itself"),
        (["seed=3"], "seed is what a suite sets by itself; give the number of seeds with --seeds"),
        (["name=x"], "name is what a suite sets by itself; name the suite with --name"),
        (["checkpoint.root=elsewhere"], "checkpoint.root is what a suite sets by itself"),
        (["--table"], "holds no results"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["suite", "--local", *options]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def seed_run(task: str, controller: str, seed: int, solved: bool, **values: Any) -> dict[str, Any]:
    return {
        "task": task, "controller": controller, "seed": seed, "solved": solved, "steps": 1000 * (seed + 1),
        "seconds": 10.0, "parameters": 1234, "success": 1.0 if solved else 0.25, "mean_return": 1.0 if solved else 0.0,
        "success_with_carry_reset": 0.5, **values,
    }  # fmt: skip


HAND_MADE = {
    "tasks": {"first": {"memoryless_return": 0.5}, "second": {"memoryless_return": None}},
    "runs": [
        seed_run("second", "gru", 0, solved=True),
        seed_run("first", "gru", 2, solved=True),
        seed_run("first", "gru", 0, solved=True),
        seed_run("first", "gru", 1, solved=False, steps=9000),
        seed_run("first", "mlp", 0, solved=False),
    ],
}


def test_the_table_counts_seeds_and_leaves_failures_in() -> None:
    assert list(table_rows(HAND_MADE)) == [
        ("first", "gru", "1,234", "2 of 3", "2,000", "10", "100.0%, 25.0%, 100.0%", "0.67", "0.50", "50.0%"),
        ("first", "mlp", "1,234", "0 of 1", "–", "10", "25.0%", "0.00", "0.50", "50.0%"),
        ("second", "gru", "1,234", "1 of 1", "1,000", "10", "100.0%", "1.00", "–", "50.0%"),
    ]
    lines = as_markdown(HAND_MADE).splitlines()
    assert len(lines) == 2 + 3
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("|")[1].strip() == HEADINGS[0]


def test_the_table_can_be_shown_again(trained: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    run()
    show_suite("s")
    assert as_markdown(document()) in capsys.readouterr().out
    assert Path("runs/suites/s/table.md").read_text() == as_markdown(document())


def test_the_time_left_is_that_of_runs_that_are_alike_where_there_are_any(tmp_path: Path) -> None:
    def job(task: str, controller: str = "gru") -> Job:
        return Job(task, controller, "", Config(), None, "")

    results = Results(tmp_path, lambda document, folder: None)
    assert math.isnan(results.seconds_left([job("a")]))
    assert results.seconds_left([]) == 0
    results.document["runs"] = [
        {"task": "a", "controller": "gru", "seconds": 10.0},
        {"task": "a", "controller": "lstm", "seconds": 20.0},
        {"task": "b", "controller": "lstm", "seconds": 60.0},
    ]
    left = results.seconds_left([job("a"), job("a", "mlp"), job("b"), job("c")])
    assert left == 10 + 15 + 60 + 30  # of both, of the task, of the task, of all
