"""The configuration: YAML, overrides, and one clear sentence for whatever is wrong."""

from pathlib import Path

import pytest

from mneme.configuration.config import Config, load_config, override, parse_config, settings
from mneme.configuration.listing import texts_of
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.config import ConfigError

PRESETS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))

BROKEN = "tests.controllers.test_contract_can_fail"


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_can_be_built(preset: Path) -> None:
    make_blueprint(load_config(preset))


def test_overrides_win_over_the_preset() -> None:
    config = load_config(PRESETS[0], ["learner.learning_rate=1e-3", "seed=7", "env.kwargs.horizon=10", "name=null"])
    assert config.learner.learning_rate == 1e-3
    assert config.seed == 7
    assert config.env.kwargs["horizon"] == 10
    assert config.name is None


def test_a_configuration_survives_its_own_dictionary() -> None:
    config = load_config(None, ["learner.mode=truncated", "policy.encoder=[32, 16]", "policy.controller.kind=lstm"])
    assert parse_config(config.to_dict()) == config


def test_every_setting_is_explained() -> None:
    found = list(settings())
    assert {"seed", "env.id", "learner.mode", "policy.controller.hidden_size", "service.max_lag"} <= {
        s.key for s in found
    }
    assert [s.key for s in found if not s.help] == []


def test_texts_are_the_settings_that_are_said_to_be() -> None:
    assert {*texts_of(Config)} == {s.key for s in settings() if s.type == "text"}


@pytest.mark.parametrize(
    ("override", "sentences"),
    [
        (
            "learner.learning_rat=1",
            ["unknown setting learner.learning_rat", "did you mean learner.learning_rate?"],
        ),
        ("sed=1", ["unknown setting sed", "did you mean seed?"]),
        ("policy.controller.hiden_size=3", ["did you mean policy.controller.hidden_size?"]),
        ("learner.num_epochs=many", ["learner.num_epochs is 'many'; it must be a whole number"]),
        ("learner.num_epochs=0", ["learner.num_epochs is 0; it must be at least 1"]),
        ("learner.num_epochs=1.5", ["learner.num_epochs is 1.5"]),
        ("learner.mode=partial", ["learner.mode is 'partial'; use 'cached', 'truncated', 'full' or 'traces'"]),
        ("seed=-1", ["seed is -1", "greater than or equal to 0"]),
        ("rollout.num_envs=127", ["rollout.num_envs is 127", "use a multiple of rollout.num_workers"]),
        ("learner=full", ["learner is 'full'; it is a section: set what it holds, such as learner.mode"]),
        ("seed.x=1", ["seed"]),
        ("train.stop_success=99", ["train.stop_success is 99"]),
        ("checkpoint.keep=0", ["checkpoint.keep is 0; it must be at least 1"]),
        ("tracking.uri=", ["tracking.uri"]),
        ("name=../elsewhere", ["name is '../elsewhere'", "no slashes"]),
        ("name=..", ["name is '..'; it is dots alone, which mean a folder that is there already; choose another"]),
        ("name=''", ["name is ''; it is empty, and a folder has a name; choose another"]),
        ("service.learner_gpus=-1", ["service.learner_gpus is -1"]),
        ("learner.learning_rate=.inf", ["learner.learning_rate is inf; it must be finite"]),
        ("nonsense", ["cannot read the override 'nonsense'; write it as key=value without spaces"]),
        ("seed=[", ["cannot read the value"]),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_a_remedy(override: str, sentences: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    for sentence in sentences:
        assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optimizer.lr=3", "unknown setting optimizer.lr (given 3); did you mean learner.learning_rate?"),
        ("optimizer={lr: 3}", "unknown setting optimizer.lr (given 3); did you mean learner.learning_rate?"),
        ("rollot={}", "unknown setting rollot (given {}); did you mean rollout?"),
        ("horizon=3", "unknown setting horizon (given 3); the sections are env, spaces, policy"),
        ("horizon=3", "what the task itself takes is env.kwargs.horizon"),
        ("learner.qqq=1", "unknown setting learner.qqq (given 1); see mneme train --help for all settings"),
    ],
)
def test_a_setting_that_is_unknown_is_met_with_a_hint(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [("001", "001"), ("run #3", "run #3"), ("[red] x?", "[red] x?"), ("'quoted: 1'", "quoted: 1"), ("null", None)],
)
def test_a_text_is_what_was_typed(text: str, name: str | None) -> None:
    assert load_config(None, [f"name={text}"]).name == name


def test_an_override_of_a_configuration_leaves_the_configuration_alone() -> None:
    config = load_config(None, ["env.kwargs.horizon=3"])
    assert override(config, ["env.kwargs.horizon=5", "seed=2"]).env.kwargs == {"horizon": 5}
    assert (config.env.kwargs, config.seed) == ({"horizon": 3}, 0)


def test_another_kind_replaces_one_whose_own_settings_are_left_as_they_are() -> None:
    gru, transformer = (load_config(None, [f"policy.controller.kind={kind}"]) for kind in ("gru", "transformer"))
    assert override(gru, ["policy.controller.kind=transformer"]) == transformer
    chosen = override(gru, ["policy.controller.layer_norm=true"])
    assert override(chosen, ["policy.controller.kind=lstm"]).policy.controller.kind == "lstm"
    with pytest.raises(ConfigError, match="layer_norm is True, but is a setting of gru, lstm alone"):
        override(chosen, ["policy.controller.kind=transformer"])


def test_a_configuration_written_in_python_is_checked_in_the_same_words() -> None:
    with pytest.raises(ConfigError, match=r"^learner.num_epochs is 0; it must be at least 1$"):
        Config(learner={"num_epochs": 0})
    with pytest.raises(ConfigError, match=r"^unknown setting rollout.num_env"):
        Config(rollout={"num_env": 3})
    assert Config(seed=3, rollout={"num_envs": 8}) == load_config(None, ["seed=3", "rollout.num_envs=8"])


def test_several_mistakes_give_several_sentences() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["learner.num_epochs=0", "rollout.num_envs=0", "nam=x"])
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["env.id=mneme/DelayedCu-v0"], "mneme/DelayedCue-v0"),
        (["env.kwargs.horizont=3"], "horizont"),
        (["env.kwargs.horizon=0"], "horizon is 0"),
        (["policy.controller.kind=gur"], "(nearest: 'gru')"),
        (["policy.controller.kind=GRU"], "(nearest: 'gru')"),
        (["policy.controller.kind=PseudoMamba"], "(nearest: 'pseudo_mamba')"),
        (
            ["rollout.num_envs=2", "learner.num_minibatches=4"],
            "lower learner.num_minibatches or raise rollout.num_envs",
        ),
        (
            [
                "learner.mode=truncated",
                "learner.bptt_length=8",
                "learner.carry_source=stored",
                "rollout.carry_stride=5",
            ],
            "use a divisor of 8",
        ),
        (["rollout.warm_up=8"], "rollout.warm_up is 8, but nothing replays those steps"),
        (["env.id=CartPole-v1", "spaces.features=[4]"], "names feature 4, but the observation has 4"),
        (["curriculum.stages=[{cues: 2}]"], "curriculum.stages[0] is {'cues': 2}, which changes the observations"),
        (["curriculum.stages=[{horizons: 2}]"], "no such setting"),
        (["env.id=CartPole-v1", "curriculum.stages=[{}]"], "does not declare what success is"),
        (["service.mode=async", "learner.anchor=never"], "use learner.anchor=auto"),
        (["env.id=CartPole-v1", "train.stop_success=0.9"], "does not declare what success is"),
        ([f"policy.controller.kind={BROKEN}:NarrowOutput"], "has shape [2, 127] instead of [2, 128]; mneme check"),
        ([f"policy.controller.kind={BROKEN}:ForgottenCarry"], "cannot take two steps: the carry holds []"),
        ([f"policy.controller.kind={BROKEN}:Raises"], "cannot take two steps"),
        ([f"policy.controller.kind={BROKEN}:NoCuts"], "sets cuts_gradients, and a gradient crosses a cut"),
        (
            [f"policy.controller.kind={BROKEN}:TracesOfNoRun", "learner.mode=traces"],
            "cannot have traces: elementwise is of ['h'] and elementwise_runs of []; both must be of the same parts",
        ),
        (
            [f"policy.controller.kind={BROKEN}:TracesWithoutAdvance", "learner.mode=traces"],
            "cannot have traces: KeyError: 'v'; mneme check",
        ),
        (["policy.controller.kind=controllers:Controller"], "cannot be built: TypeError"),
    ],
)
def test_combinations_that_cannot_work_are_refused_before_anything_starts(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_blueprint(load_config(None, overrides))
    assert sentence in str(caught.value)


def test_what_is_left_open_follows_from_the_task() -> None:
    blueprint = make_blueprint(load_config(None, ["env.kwargs.horizon=20"]))
    assert (blueprint.length, blueprint.carry_stride, blueprint.horizon) == (21, 21, 20)
    truncated = load_config(
        None,
        [
            "env.kwargs.horizon=20",
            "learner.mode=truncated",
            "learner.bptt_length=8",
            "learner.burn_in=2",
            "learner.carry_source=stored",
        ],
    )
    assert make_blueprint(truncated).carry_stride == 2
    stale = make_blueprint(load_config(None, ["env.kwargs.horizon=20", "service.mode=async"]))
    assert stale.carry_stride == 6  # a few carries to measure staleness against
    assert make_blueprint(load_config(None, ["env.id=CartPole-v1"])).length == 128


@pytest.mark.parametrize(
    ("overrides", "warm_up"),
    [
        ([], 0),
        (["service.mode=async"], 0),  # every sequence is an episode
        (["service.mode=async", "rollout.unroll_length=30"], 30),
        (["service.mode=async", "rollout.unroll_length=90"], 64),
        (["service.mode=async", "rollout.unroll_length=90", "env.kwargs.horizon=40"], 80),
        (["service.mode=async", "rollout.unroll_length=90", "policy.controller.expected_horizon=200"], 90),
        (["service.mode=async", "rollout.unroll_length=80"], 0),
        (["service.mode=async", "rollout.unroll_length=80", "curriculum.stages=[{horizon: 4}]"], 64),
        (["service.mode=async", "env.id=CartPole-v1", "env.kwargs={}"], 64),
        (["service.mode=async", "rollout.warm_up=5"], 5),
        (["service.mode=async", "rollout.unroll_length=30", "rollout.warm_up=0"], 0),
        (["learner.anchor=always", "rollout.warm_up=5"], 5),
    ],
)
def test_a_warm_up_is_brought_along_where_the_first_carry_is_stale(overrides: list[str], warm_up: int) -> None:
    config = load_config(None, ["env.kwargs.horizon=19", *overrides])
    assert make_blueprint(config).warm_up == warm_up


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("a: [", "is not YAML"), ("- 1", "must be a mapping"), ("learner: {num_epochs: x}", "num_epochs")],
)
def test_files_that_cannot_be_read(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "preset.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "delayed_cue.yaml").write_text("")
    with pytest.raises(ConfigError, match="cannot read .*delayed_que.yaml: No such file"):
        load_config(tmp_path / "delayed_que.yaml")
    assert load_config(tmp_path / "delayed_cue.yaml") == Config()
