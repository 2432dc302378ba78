"""What a run records of its settings reads back equal, in value and in type, or is refused before it trains."""

import datetime
import decimal
import enum
import json
import math
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml

from mneme.configuration.config import Config, load_config, parse_config
from mneme.configuration.records import from_json, read_yaml, same, to_json, write_yaml
from mneme.controllers import OwnSettings
from mneme.distributed.config import ConfigError
from mneme.envs import EnvSettings
from mneme.envs.counting import Counting
from mneme.evaluation import evaluate_checkpoint
from mneme.storage.checkpoint import list_checkpoints, load_checkpoint
from mneme.training import resume, train

TEXTS = [
    "1e3", "3e-3", "yes", "no", "null", "~", "", " ", "2020-01-01", "0x10", "010", "0o7", "1_000", "1:30", ".inf",
    ".nan", "-", "[", "{a", "a: b", "#x", "*x", "&x", "!x", "%x", "@x", "`", "'", '"', "\\", "=", "<<", "---", "...",
    "? a", "|", "ok", "ü", "日本", "\U0001f600", "\ud800", "a\nb", "\n", "a\r\nb", "\t", "\x00", "\x7f", "\x85",
    "\u2028", "\ufeff", " a ", "a\n\n b\n", "x" * 2_000, "word " * 400, "!yaml", "!numpy",
]  # fmt: skip
LEAVES: list[Any] = [
    *TEXTS, None, True, False, 0, 1, -1, 2**63, -(2**200), 10**4000, 0.0, -0.0, 1.0, 1e300, 1e16, 1e-7, 5e-324, 0.1,
    math.inf, -math.inf, math.nan, b"", b"\x00\xff", datetime.date(2020, 1, 1),
    datetime.datetime(2020, 1, 1, 2, 3, 4, 5), datetime.datetime(1, 1, 1, tzinfo=datetime.UTC),
    datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=-5, minutes=-30))),
    np.int64(-5), np.uint8(3), np.float32(0.1), np.float64(0.1), np.float64(math.nan), np.float16(math.inf),
    np.bool_(True), np.uint64(2**64 - 1),
]  # fmt: skip


def drawn(choose: random.Random, depth: int = 4) -> Any:
    """Plain data of any shape."""
    kind = choose.choice(("leaf", "list", "tuple", "dict", "texts", "set") if depth else ("leaf",))
    some = range(choose.randrange(4))
    if kind == "leaf":
        return choose.choice(LEAVES)
    if kind in ("list", "tuple"):
        items = [drawn(choose, depth - 1) for _ in some]
        return items if kind == "list" else tuple(items)
    if kind == "set":
        return {choose.choice(LEAVES) for _ in some}
    if kind == "texts":
        return {choose.choice(TEXTS): drawn(choose, depth - 1) for _ in some}
    return {choose.choice([*LEAVES, (1, "a"), ((2.0,), 3)]): drawn(choose, depth - 1) for _ in some}


def configured(kwargs: dict[str, Any]) -> Config:
    return load_config(None, ["curriculum.stages=[{}]"]).changed("env", kwargs=kwargs)


def read_back(config: Config, folder: Path) -> list[Config]:
    """From a checkpoint's JSON and from a run's YAML."""
    file = folder / "config.yaml"
    file.write_text(write_yaml(config.to_dict()))
    return [parse_config(from_json(json.loads(json.dumps(to_json(config.to_dict()))))), load_config(file)]


def test_whatever_is_accepted_reads_back_equal_in_value_and_type(tmp_path: Path) -> None:
    choose = random.Random(0)
    values = {str(i): value for i, value in enumerate([*LEAVES, *(drawn(choose) for _ in range(60))])}
    given = configured(values).changed("curriculum", stages=({"deep": values["7"]}, {"all": tuple(LEAVES)}))
    config = given.as_recorded()
    for read in (config, *read_back(config, tmp_path)):
        for name, value in values.items():
            assert same(read.env.kwargs[name], value), value
        assert same(read.to_dict(), given.to_dict())


def test_a_comparison_tells_types_zeros_and_zones_apart() -> None:
    other = [1, True, 1.0, np.int64(1), "1", 0.0, -0.0, [1], (1,), {1}, {1: 1}, {True: 1}, {1.0: 1}, math.nan, None]
    other += [
        datetime.date(2020, 1, 1),
        datetime.datetime(2020, 1, 1),
        datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    ]
    other += [datetime.datetime(2020, 1, 1, fold=1)]
    for i, a in enumerate(other):
        for j, b in enumerate(other):
            assert same(a, b) == (i == j), (a, b)


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"goal": np.zeros(2)}, r"env.kwargs.goal is array\(\[0., 0.\]\), a ndarray, which would not read back equal"),
        ({"deep": {"list": [1, {3: decimal.Decimal("0.1")}]}}, r"env.kwargs.deep.list\[1\].3 is Decimal\('0.1'\)"),
        ({"colour": Colour.RED}, "env.kwargs.colour is <Colour.RED: 1>, a Colour"),
        ({"path": Path("maps/a.txt")}, "env.kwargs.path is PosixPath"),
        ({"ordered": OrderedDict(a=1)}, "env.kwargs.ordered is OrderedDict"),
        ({"made": Counting}, "env.kwargs.made is <class 'mneme.envs.counting.Counting'>, a type"),
        ({"step": lambda t: t}, "env.kwargs.step is <function"),
        ({"fixed": frozenset({1})}, r"env.kwargs.fixed is frozenset\(\{1\}\)"),
        ({"table": {frozenset({1}): 2}}, r"a key of env.kwargs.table is frozenset\(\{1\}\)"),
        ({"z": 1j}, "env.kwargs.z is 1j, a complex"),
        ({"word": np.str_("a")}, "env.kwargs.word is np.str_"),
        ({"wide": np.longdouble(1) / 3}, "env.kwargs.wide is np.longdouble"),
        ({"all": range(3)}, r"env.kwargs.all is range\(0, 3\), a range"),
        ({"odd": datetime.datetime(2020, 1, 1, fold=1)}, "env.kwargs.odd is datetime"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_by_key_and_value_before_anything_is_made(
    tmp_path: Path, kwargs: dict[str, Any], sentence: str
) -> None:
    config = configured(kwargs).changed("checkpoint", root=str(tmp_path / "runs"))
    with pytest.raises(ConfigError, match=sentence) as caught:
        train(config, local=True)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    kind = configured({}).changed("policy", controller=OwnSettings(kind="module:Class", kwargs=kwargs))
    with pytest.raises(ConfigError, match="policy.controller.kwargs."):
        kind.as_recorded()


def test_data_that_hold_themselves_are_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ConfigError, match="holds itself"):
        configured({"x": loop}).as_recorded()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system [echo]", "!!python/name:os.system", "!numpy [object, 1]", "!numpy [V8, 1]",
        "!numpy [float32, x]", "!numpy {}", "!numpy [1]", "!numpy [int8, 300]", "!!bool maybe",
        "2020-02-31", "[*a]", "[&a [1], *a]", "[", "!!timestamp x",
    ],
)  # fmt: skip
def test_a_record_holds_no_code_no_aliases_and_no_nonsense(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        from_json({"x": {"!yaml": text}})


class Typed(Counting):
    """A task that plays another one when an argument changes its type."""

    def __init__(self, num_envs: int = 1, *, rewards: Any, start: Any, limit: Any, holidays: Any, words: Any) -> None:
        super().__init__(num_envs)
        assert rewards == {0: 0.0, 1: -1.0} and all(type(key) is int for key in rewards), rewards
        assert type(start) is datetime.date and holidays == {"x", 3} and limit == math.inf


def test_a_run_is_evaluated_resumed_and_started_again_with_the_arguments_that_it_had(tmp_path: Path) -> None:
    given = (
        "{rewards: {0: 0.0, 1: -1.0}, start: 2020-01-01, limit: .inf, holidays: !!set {x, 3}, "
        "words: [1e3, '1e3', 'yes', yes, !!python/tuple [1, 2]]}"
    )
    gym.register("Typed-v0", vector_entry_point=Typed)
    try:
        config = load_config(
            None,
            ["env.id=Typed-v0", f"env.kwargs={given}", f"checkpoint.root={tmp_path}", "name=run", "rollout.num_envs=4",
             "rollout.unroll_length=7", "tracking.enabled=false", "train.total_timesteps=28",
             "train.evaluation_episodes=4",
             "learner.num_threads=1", "policy.controller.hidden_size=8", "policy.controller.backend=torch"],
        )  # fmt: skip
        run = train(config, local=True).folder
        for read in (
            load_config(run / "config.yaml"),
            parse_config(from_json(load_checkpoint(list_checkpoints(run / "checkpoints")[-1]).run["config"])),
        ):
            assert same(read.env.kwargs, config.env.kwargs)
            assert same(read.env.kwargs["words"], [1e3, "1e3", "yes", True, (1, 2)])
            again = read.changed("rollout", carry_stride=None, warm_up=None)
            assert again == config.changed("tracking", uri=read.tracking.uri)
        assert evaluate_checkpoint(run, episodes=4, num_envs=4, seed=0).episodes == 4
        assert resume(run, "train.total_timesteps=56", local=True).steps == 56
        again = train(load_config(run / "config.yaml", ["name=again", "train.total_timesteps=28"]), local=True)
        assert load_config(again.folder / "config.yaml", ["name=run"]) == load_config(
            run / "config.yaml", ["train.total_timesteps=28"]
        )
    finally:
        del gym.registry["Typed-v0"]


def test_settings_of_python_callers_are_read_as_those_of_files(tmp_path: Path) -> None:
    config = Config(env=EnvSettings(kwargs={"horizon": np.int64(6)})).changed("train", total_timesteps=np.int64(64))
    recorded = config.as_recorded()
    assert type(recorded.train.total_timesteps) is int
    assert type(recorded.env.kwargs["horizon"]) is np.int64
    assert all(same(read.to_dict(), recorded.to_dict()) for read in read_back(recorded, tmp_path))


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("learner: {mode: cached}\nseed: 1\nlearner: {num_threads: 1}\n")
    with pytest.raises(ConfigError, match="learner stands there twice") as refused:
        load_config(file)
    assert "line 3" in str(refused.value)
    file.write_text("train: &own {total_timesteps: 100}\nlearner: {seed: 1, seed: 2}\n")
    with pytest.raises(ConfigError, match="seed stands there twice"):
        load_config(file)
    assert read_yaml("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}") == {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}


def test_a_number_with_an_exponent_is_a_number_in_files_as_on_the_command_line() -> None:
    assert same(read_yaml("[3e-3, 1E5, '3e-3', 1.5e3, 1e]"), [3e-3, 1e5, "3e-3", 1.5e3, "1e"])
