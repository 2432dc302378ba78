"""docs/tasks.md is true: its pictures, parameters, bounds and curriculum are those of the registered tasks."""

import ast
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.envs.registration import load_env_creator

from mneme.configuration.config import load_config
from mneme.distributed.blueprint import make_blueprint
from mneme.envs import MemoryVectorEnv, TaskFacts, facts_of
from tests.envs.test_conformance import SETTINGS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tasks.md").read_text()
IDS = [id for id in gym.registry if id.startswith("mneme/")]
PICTURES = re.findall(r"^```text\n(mneme/.+?)^```", PAGE, re.MULTILINE | re.DOTALL)


def blocks(language: str, text: str = PAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def block(language: str, text: str = PAGE) -> str:
    (found,) = blocks(language, text)
    return found


def table(columns: int, first: str) -> list[list[str]]:
    """The rows of so many columns whose first cell is like this."""
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    return [row for row in cells if len(row) == columns and re.fullmatch(first, row[0])]


def task_class(id: str) -> type[MemoryVectorEnv]:
    entry_point = gym.spec(id).vector_entry_point
    assert isinstance(entry_point, str)
    return load_env_creator(entry_point)


def parameters_of(task: type[MemoryVectorEnv]) -> dict[str, Any]:
    code = task.__init__.__code__
    return dict(zip(code.co_varnames[2 : code.co_argcount], task.__init__.__defaults__, strict=True))


def facts(id: str, **kwargs: Any) -> TaskFacts:
    known = facts_of(gym.make(id, **kwargs))
    assert known is not None
    return known


def bounds(facts: TaskFacts) -> list[float | None]:
    return [facts.memory_horizon, facts.episode_length, facts.memoryless_return, facts.chance_return]


def test_all_tasks_stand_in_the_first_table_with_their_facts() -> None:
    rows = {row[0].strip("`"): row[1:] for row in table(7, "`mneme/.*`")}
    assert list(rows) == IDS
    for id, (horizon, length, optimal, memoryless, chance, success) in rows.items():
        known = facts(id)
        assert [int(horizon), int(length)] == [known.memory_horizon, known.episode_length]
        returns = [known.optimal_return, known.memoryless_return, known.chance_return, known.success_return]
        assert [optimal, memoryless, chance, success] == [f"{value:.3g}" for value in returns]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.splitlines()[0])
def test_pictures_are_what_the_task_shows_and_pays(picture: str) -> None:
    header, *lines = picture.splitlines()
    id, *words = header.split()
    kwargs = {name: yaml.safe_load(value) for name, value in (word.split("=") for word in words)}
    rows = [re.split(r" {2,}", line, maxsplit=1) for line in lines]
    assert [rows[0][0], *(label for label, _ in rows[-2:])] == ["step", "action", "reward"]
    (_, *shown, action), reward = [row.replace("·", "0").split() for _, row in rows[:-1]], rows[-1][1].split()
    env = gym.make(id, **{name: value for name, value in kwargs.items() if name != "seed"})
    observation, _ = env.reset(seed=kwargs.get("seed", 0))
    terminated = False
    for t in range(len(action)):
        assert not terminated
        np.testing.assert_allclose([float(row[t]) for row in shown], observation, rtol=1e-6)
        observation, paid, terminated, _, _ = env.step(np.int64(action[t]))
        assert reward[t] == ("+" if paid > 0 else "-" if paid < 0 else "·")
    assert terminated


def test_every_task_has_a_picture_and_all_its_parameters_with_their_defaults() -> None:
    documented = {}
    for section in PAGE.split("\n## "):
        if pictured := re.search(r"^```text\n(mneme/\S+)", section, re.MULTILINE):
            rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.MULTILINE)
            documented[task_class(pictured[1])] = {name: ast.literal_eval(default) for name, default in rows}
    assert documented == {task_class(id): parameters_of(task_class(id)) for id in IDS}


@pytest.mark.parametrize("id", [id for id in SETTINGS if id != "mneme/Counting-v0"])
def test_the_formulas_give_the_facts_of_every_setting(id: str) -> None:
    task = task_class(id)
    rows = table(6, task.__name__)
    for kwargs in SETTINGS[id]:
        parameters = parameters_of(task) | gym.spec(id).kwargs | kwargs
        (formulas,) = [row[2:] for row in rows if eval(row[1].strip("`"), {}, parameters)]
        known = facts(id, **kwargs)
        assert known.optimal_return == known.success_return == 1.0
        for formula, value in zip(formulas, bounds(known), strict=True):
            if not formula.startswith("counted"):
                assert eval(formula.strip("`"), {}, parameters) == pytest.approx(value), (kwargs, formula)


def test_popgyms_levels_are_those_of_the_table() -> None:
    for id, k, decks in table(3, "`mneme/.*`"):
        assert gym.spec(id.strip("`")).kwargs == {"k": int(k), "decks": int(decks)}


def test_the_curriculum_can_be_trained(tmp_path: Path) -> None:
    preset = tmp_path / "curriculum.yaml"
    given, made = blocks("yaml")
    preset.write_text(made)
    stages = make_blueprint(load_config(preset)).config.curriculum.stages
    assert [stage["horizon"] for stage in (stages[0], stages[1], stages[-1])] == [32, 40, 909]
    preset.write_text(given)
    blueprint = make_blueprint(load_config(preset))
    assert [blueprint.env(level).kwargs["horizon"] for level in range(3)] == [8, 24, 64]
    assert (
        blueprint.config.curriculum == load_config(None, ["curriculum.stages=[{horizon: 8}, {horizon: 24}]"]).curriculum
    )


def test_the_example_is_shown_in_full_and_short() -> None:
    code = (ROOT / "docs" / "examples" / "count_flashes.py").read_text()
    assert block("python") == code
    assert len(code.splitlines()) < 60
