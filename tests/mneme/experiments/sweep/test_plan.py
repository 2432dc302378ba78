"""A sweep's file: what it may say, what is refused before anything starts, and the configurations that come of it."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml

from mneme.configuration.config import load_config
from mneme.configuration.presets import SWEEPS
from mneme.distributed.config import ConfigError
from mneme.distributed.search_space import Range, Trial
from mneme.envs.counting import CountingEnv
from mneme.experiments.sweep.best import preset_of, write_preset
from mneme.experiments.sweep.plan import Plan, check_plan, find_sweep, make_plan, stand_ins, trials_of
from mneme.storage.checkpoint import list_checkpoints
from mneme.training import train

SPACE = {"learner.learning_rate": [1e-3, 3e-3]}


def plan_of(space: Any = SPACE, *overrides: str, **search: Any) -> Plan:
    return make_plan(None, ["env.kwargs.horizon=4", *overrides], {"space": space, **search}, Path("/runs/sweeps/s"))


def refusal(space: Any, *overrides: str, **search: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        check_plan(plan_of(space, *overrides, **search))
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("space", "search", "sentence"),
    [
        ({}, {}, "sweep.space is empty; name settings and what they may be"),
        ({"learner.gamma": []}, {}, "sweep.space.learner.gamma is an empty list; give the values to try"),
        ({"learner.gamma": [0.9, 0.9]}, {}, "sweep.space.learner.gamma has 0.9 twice; give each value once"),
        ({"learner.gamma": 0.9}, {}, "sweep.space.learner.gamma is 0.9; give a list of values, or a range such as"),
        ({"learner.gamma": {"low": 0.1}}, {}, "give a list of values, or a range such as {low: 0.0001"),
        ({"learner.gamma": {"low": 0.1, "high": 0.9}}, {}, "is a range, which no grid covers; list its values, or set"),
        ({"learner.gamma": {"low": "a", "high": 1}}, {"search": "random"}, "has a bound 'a', which is no number"),
        ({"learner.gamma": {"low": 1, "high": 0.5}}, {"search": "random"}, "low must be below high, and above 0"),
        ({"learner.gamma": {"low": 0, "high": 1, "log": True}}, {"search": "random"}, "above 0 where log is true"),
        ({"learner.learning_rat": [0.1]}, {}, "unknown setting learner.learning_rat (given 0.1); did you mean"),
        ({"learner.gamma": [0.9, 2.0]}, {}, "with learner.gamma=2: learner.gamma is 2.0"),
        ({"learner.mode": ["full", "ful"]}, {}, "with learner.mode=ful: learner.mode is 'ful'; use 'cached'"),
        ({"env.kwargs.horizont": [3]}, {}, "with env.kwargs.horizont=3: "),
        ({"seed": [0, 1]}, {}, "sweep.space has seed, which a sweep does not search; set sweep.seeds to a number"),
        ({"service.max_lag": [0, 1]}, {}, "sweep.space has service.max_lag, which a sweep does not search; set it for"),
        ({"extends": ["delayed_que"]}, {}, "there is no file delayed_que, and no preset of that name; did you mean"),
        (SPACE, {"metric": "evaluation/sucess"}, "sweep.metric is evaluation/sucess, which no evaluation has; there"),
        (SPACE, {"trails": 3}, "unknown setting sweep.trails; did you mean sweep.trials?"),
        (SPACE, {"trials": 0}, "sweep.trials is 0; it must be at least 1"),
        (SPACE, {"search": "bayes"}, "sweep.search is 'bayes'; use 'grid', 'random' or 'optuna'"),
        (SPACE, {"search": "optuna", "seeds": 2}, "sweep.seeds is 2; search=optuna takes one seed a trial"),
        (SPACE, {"early_stopping": "asha"}, "which looks at regular evaluations; set train.evaluate_every=50000"),
    ],
)
def test_a_bad_search_is_refused_in_one_sentence(space: Any, search: Mapping[str, Any], sentence: str) -> None:
    assert sentence in refusal(space, **search)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("service.mode=async", "service.mode is async, and a trial of a sweep is one process; set service.mode=sync"),
        ("learner.replicas=2", "learner.replicas is 2, and a trial of a sweep is one process; set learner.replicas=1"),
        ("checkpoint.root=elsewhere", "checkpoint.root is what a sweep sets by itself; name the sweep with --name"),
        ("name=mine", "name is what a sweep sets by itself; name the sweep with --name"),
    ],
)
def test_settings_that_no_trial_can_have_are_refused(override: str, sentence: str) -> None:
    assert sentence in refusal(SPACE, override)


def test_code_that_no_other_process_can_have_is_refused() -> None:
    lock = threading.Lock()  # which no pickle holds
    gym.register("Locked-v0", entry_point=lambda: lock and CountingEnv())
    try:
        assert "whose code cannot be sent to other processes" in refusal(SPACE, "env={id: Locked-v0}")
    finally:
        del gym.registry["Locked-v0"]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four cues at a horizon of 4, of a GRU of 8 units."""
    root = tmp_path_factory.mktemp("other")
    settings = [
        f"checkpoint.root={root}", "name=other", "env.kwargs={horizon: 4}", "policy.controller.hidden_size=8",
        "tracking.enabled=false", "train.total_timesteps=1", "train.evaluation_episodes=1", "rollout.num_envs=8",
    ]  # fmt: skip
    return train(load_config(None, settings), local=True, progress=False).folder


@pytest.mark.parametrize(
    ("overrides", "search", "sentence"),
    [
        (["train.start_from=/nowhere"], {}, "train.start_from is /nowhere: "),
        (["learner.gamma=2"], {}, "learner.gamma is 2"),
        (["service.mode=async"], {}, "service.mode is async"),
        ([], {"metric": "evaluation/sucess"}, "sweep.metric is evaluation/sucess, which no evaluation has"),
        (["env={id: CartPole-v1}"], {"metric": "evaluation/success"}, "sweep.metric is evaluation/success, which no"),
        (["env.kwargs.wrong=3"], {"metric": "sucess"}, "sweep.metric is sucess, which no"),
        (["seeds=2"], {}, "unknown setting seeds (given 2); did you mean sweep.seeds?"),
    ],
)
def test_what_all_trials_have_is_not_blamed_on_one(
    overrides: list[str], search: Mapping[str, Any], sentence: str
) -> None:
    assert refusal(SPACE, *overrides, **search).startswith(sentence)


def test_what_trials_start_from_is_found_before_them(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(other.parent)
    start, small = "train.start_from=other", "policy.controller.hidden_size=8"
    assert "start_from is nowhere: there is no run at nowhere" in refusal(SPACE, "train.start_from=nowhere")
    assert "whose weights do not fit" in refusal(SPACE, start)
    sizes = {"policy.controller.hidden_size": [8, 16]}
    assert refusal(sizes, start).startswith("with policy.controller.hidden_size=16: train.start_from is other, whose")
    (very,) = list_checkpoints(other / "checkpoints")
    plan = check_plan(plan_of(SPACE, start, small))
    assert plan.starts == {"other": str(very)}
    monkeypatch.chdir("/")  # as another process may be elsewhere
    assert {plan.config(trial).train.start_from for trial in trials_of(plan)} == {str(very)}
    assert check_plan(plan).starts == plan.starts


def test_a_sweep_that_goes_on_starts_its_trials_from_where_it_did(other: Path) -> None:
    """Though that has gone, as its run went on: those that have begun do without."""
    plan = plan_of(SPACE, f"train.start_from={other}", "policy.controller.hidden_size=8")
    before = {str(other): "/runs/other/checkpoints/step-000000000064"}
    again = check_plan(replace(plan, starts=before))
    assert again.starts == before
    assert again.config(trials_of(again)[0]).train.start_from == before[str(other)]


def test_a_reach_that_is_searched_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    check_plan(plan_of({"learner.bptt_length": [1, 2, 3]}, "learner.mode=truncated"))
    assert len([record for record in caplog.records if "asks to remember 4" in record.message]) == 1


def test_the_metric_must_be_one_that_the_task_has() -> None:
    untold = ["env={id: CartPole-v1}"]
    assert "sweep.metric is evaluation/success, which no evaluation has" in refusal(
        SPACE, *untold, metric="evaluation/success"
    )
    check_plan(plan_of(SPACE, *untold))


def test_a_space_that_is_searched_step_by_step_is_tried_out_at_its_ends() -> None:
    pytest.importorskip("optuna")
    space = {"learner.gamma": {"low": 0.5, "high": 0.9}, "rollout.num_envs": {"low": 2, "high": 6}}
    points = [trial.point for trial in stand_ins(plan_of(space, search="optuna"))]
    assert {"learner.gamma": 0.5, "rollout.num_envs": 6} in points
    assert {"learner.gamma": 0.9, "rollout.num_envs": 2} in points
    assert "learner.gamma is 1.5" in refusal({"learner.gamma": {"low": 0.5, "high": 1.5}}, search="optuna")


def test_trials_take_every_point_with_one_seed_before_the_next() -> None:
    trials = trials_of(plan_of(SPACE, "seed=5", seeds=2))
    assert [(trial.number, trial.seed) for trial in trials] == [(0, 5), (1, 5), (0, 6), (1, 6)]


def test_a_trials_run_is_an_ordinary_one_in_the_sweeps_folder() -> None:
    plan = plan_of({"learner.bptt_length": [4, 8], "policy.encoder": [[], [16]]}, "learner.mode=truncated")
    config = plan.config(Trial(3, 2, {"learner.bptt_length": 8, "policy.encoder": [16]}))
    assert (config.name, config.checkpoint.root, config.seed) == ("003-seed2", "/runs/sweeps/s", 2)
    assert (config.learner.bptt_length, config.policy.encoder, config.learner.mode) == (8, (16,), "truncated")
    assert (config.tracking.parent, config.tracking.uri) == ("s", f"sqlite:///{Path.cwd()}/runs/mlflow.db")
    assert config.learner.num_threads == 1  # so that as many trials run at once as there are cores


def test_presets_may_be_searched_and_the_files_own_settings_count_more() -> None:
    plan = plan_of({"extends": ["delayed_cue", "copy_memory"]}, "env.kwargs={}", "train.total_timesteps=7")
    ids = [(plan.config(trial).env.id, plan.config(trial).train.total_timesteps) for trial in trials_of(plan)]
    assert ids == [("mneme/DelayedCue-v0", 7), ("mneme/CopyMemory-v0", 7)]


def test_whole_numbers_are_drawn_where_the_setting_is_one() -> None:
    space = {key: {"low": 1, "high": 9} for key in ("rollout.num_workers", "learner.learning_rate", "env.kwargs.cues")}
    found = plan_of(space, search="random").space
    assert [values.whole for values in found.values() if isinstance(values, Range)] == [True, False, True]


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_that_come_with_mneme_can_run(path: Path) -> None:
    assert find_sweep(path.stem) == path
    check_plan(make_plan(path, [], {}, Path("/runs/sweeps/s")))


def test_the_best_configuration_reads_back_equal_as_a_preset(tmp_path: Path) -> None:
    overrides = [
        "env.kwargs.horizon=9", "policy.controller={kind: lstm, layer_norm: true, hidden_size: 24}",
        "learner.gamma=0.9", "policy.encoder=[16]", "train.stop_success=0.9",
    ]  # fmt: skip
    config = load_config(None, overrides)
    write_preset(config, tmp_path / "best.yaml", "The best of 3.")
    assert load_config(tmp_path / "best.yaml") == config
    assert (tmp_path / "best.yaml").read_text().startswith("# The best of 3.\n")
    tree = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert tree["learner"] == {"gamma": 0.9}  # and not what is as it was
    assert preset_of(load_config(None, ["seed=4", "tracking.enabled=false"])) == {
        "policy": {"controller": {"kind": "gru"}}
    }
