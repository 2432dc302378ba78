"""Replaying: what was recorded is what is shown, and anything else is refused in a sentence."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from mneme.controllers import ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.reporting.episode_plot import _actions as draw_actions
from mneme.reporting.episode_plot import draw_episode, entries_of
from mneme.reporting.replaying import Recording, _cell, episode_table, show
from mneme.rollout_workers import evaluate, policy_spec
from mneme.rollout_workers import recording as recording_module
from mneme.rollout_workers.recording import DESCRIPTION, recording


@pytest.fixture(params=[2**26, 1])
def recorded(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six episodes of the counting environment, of 3, 4 and 5 steps, in one group of rows or in six."""
    monkeypatch.setattr(recording_module, "_ROW_GROUP", request.param)
    env = make_vector_env(EnvSettings(id="mneme/Counting-v0"), 3)
    controller = ControllerSettings(kind="lstm", hidden_size=16)
    policy = build_policy(policy_spec(env), PolicySettings(controller=controller), 5, seed=0)
    with recording(tmp_path / "r.parquet", "Counting, \x1b[31mred") as recorder:
        evaluate(env, policy, episodes=6, seed=0, recorder=recorder)
    return tmp_path / "r.parquet"


def shown(path: Path, index: int | None) -> list[str]:
    console = Console(highlight=False, width=200)
    with console.capture() as capture:
        show(Recording(path), index, console)
    return capture.get().splitlines()


def test_a_recording_knows_its_episodes(recorded: Path) -> None:
    read = Recording(recorded)
    assert read.lengths.tolist() == [3, 4, 5, 3, 4, 5]
    assert read.returns.tolist() == [3, 6, 10, 3, 6, 10]
    for i, length in enumerate([3, 4, 5, 3, 4, 5]):
        episode = read.episode(i)
        assert episode.observations["observation"][0, :length].tolist() == [[t, i % 3, i // 3] for t in range(length)]
        assert (episode.length, int(episode.lane[0])) == (length, i % 3)
        assert episode.carries["h"].shape == (1, length, 16)


def test_an_episode_is_printed_step_by_step(recorded: Path) -> None:
    lines = shown(recorded, 4)
    assert lines[:2] == ["6 episodes: Counting, ?[31mred", "episode 4, lane 1, return 6"]  # nothing steers the terminal
    episode = Recording(recorded).episode(4)
    (header,) = (i for i, line in enumerate(lines) if line.startswith("step"))
    assert lines[header].split() == [
        "step", "observation", "action", "reward", "value", "probability", "|h|", "Δh", "|c|", "Δc"
    ]  # fmt: skip
    assert len(lines) == header + 1 + 4
    last = lines[-1].split()
    assert last[:4] == ["3", "3", "1", "1"]  # the step, and what the environment showed
    h = episode.carries["h"][0].astype(float)
    assert last[4:] == [
        str(episode.actions[0, 3]), "3", f"{episode.values[0, 3]:.3f}", f"{np.exp(episode.log_probs[0, 3]):.3f}",
        f"{np.linalg.norm(h[3]):.3f}", f"{np.linalg.norm(h[3] - h[2]):.3f}", *last[-2:],
    ]  # fmt: skip
    assert lines[header + 1].split()[9] == "–"


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros(4, np.float32), "zeros"),
        (np.eye(5, dtype=np.float32)[3], "one-hot 3"),
        (np.array([0.5], np.float32), "0.5"),
        (np.array([0, 2.25, -1], np.float32), "0 2.25 -1"),
        (np.arange(64, dtype=np.float32), "0 1 2 3 4 5 … of 64"),
        (np.array([7, 0]), "7 0"),
        (np.int64(3), "3"),
        (np.array([True, False, True]), "101"),
        (np.full((84, 84, 3), 51, np.uint8), "84×84×3 mean 51"),
    ],
)
def test_an_array_is_told_in_a_few_words(array: np.ndarray, text: str) -> None:
    assert _cell(array) == text


def test_without_a_choice_the_episodes_are_listed(recorded: Path) -> None:
    lines = shown(recorded, None)
    assert lines[0] == "6 episodes: Counting, ?[31mred"
    assert "4: return 6, 4 steps" in " ".join(lines[1:])
    assert not any(line.startswith("step") for line in lines)


def test_a_part_of_the_observation_may_be_called_what_a_column_is(recorded: Path) -> None:
    from dataclasses import replace

    episode = Recording(recorded).episode(0)
    seen = dict.fromkeys(("action", "reward", "|h|"), episode.observations["observation"])
    table = episode_table(replace(episode, observations=seen))
    names = [str(column.header) for column in table.columns]
    assert names == [
        "step", "action", "reward", "|h|", "action", "reward", "value", "probability", "|h|", "Δh", "|c|", "Δc"
    ]  # fmt: skip


@pytest.mark.parametrize("actions", [[0, 1, 1], [2, 2, 2]])
def test_the_axis_of_categories_has_whole_numbers(actions: list[int]) -> None:
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    draw_actions(panel, entries_of(np.array(actions)), whole=True)
    low, high = panel.get_ylim()
    ticks = [tick for tick in panel.get_yticks() if low <= tick <= high]
    assert ticks
    assert all(float(tick).is_integer() for tick in ticks)


def test_a_density_is_not_called_a_probability(recorded: Path) -> None:
    from dataclasses import replace

    episode = Recording(recorded).episode(0)
    names = [
        column.header for column in episode_table(replace(episode, actions=np.ones((1, 3, 2), np.float32))).columns
    ]
    assert [str(name) for name in names][2:6] == ["action", "reward", "value", "log-density"]


def test_an_episode_that_is_not_there_is_named(recorded: Path) -> None:
    for index in (6, -1):
        with pytest.raises(ValueError, match=rf"--episode is {index}, but .*r.parquet holds episodes 0 to 5"):
            Recording(recorded).episode(index)


def test_anything_else_is_refused_in_a_sentence(recorded: Path, tmp_path: Path) -> None:
    table = pq.read_table(recorded)
    metadata = table.schema.metadata

    def written(name: str, changed: pa.Table) -> Path:
        pq.write_table(changed, tmp_path / name)
        return tmp_path / name

    (tmp_path / "text").write_text("no parquet")
    (tmp_path / "half").write_bytes(recorded.read_bytes()[:3000])
    for path in (
        tmp_path / "text",
        tmp_path / "half",
        written("other", pa.table({"x": [1]})),
        written("fragment", table.replace_schema_metadata({k: v for k, v in metadata.items() if k != DESCRIPTION})),
        written("plain", pa.table({"rewards": ["a"], "valid": ["b"]}).replace_schema_metadata(metadata)),
        written("empty", table.slice(0, 0)),
        written("lacking", table.drop_columns(["values"])),
        written("newer", table.replace_schema_metadata(metadata | {b"schema_version": b"99"})),
        written("sparse", table.replace_schema_metadata(metadata | {b"carry_stride": b"2"})),
    ):
        with pytest.raises(ValueError, match=rf"{path.name} is no recording, or a damaged one \(.+\); write one with"):
            Recording(path).episode(0)
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match=rf"there is no file {path}; name one"):
            Recording(path)


def test_the_entries_that_vary_most_are_drawn() -> None:
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(50, 10, 10)) * 0.1
    loud = rng.choice(100, 32, replace=False)
    steps.reshape(50, 100)[:, loud] *= 100
    entries = entries_of(steps)
    assert entries.index_N.tolist() == sorted(loud)
    assert entries.size == 100
    np.testing.assert_array_equal(entries.values_NL, steps.reshape(50, 100)[:, sorted(loud)].T)


def test_the_picture_shows_the_memory(recorded: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from matplotlib.image import imread

    episode = Recording(recorded).episode(2)
    louder = {"h": episode.carries["h"] * np.float32(3) + 1, "c": episode.carries["c"]}
    pictures = []
    for i, shown_episode in enumerate((episode, episode, replace(episode, carries=louder))):
        draw_episode(shown_episode, tmp_path / "new" / f"{i}.png", "an episode of $5")
        pictures.append(imread(tmp_path / "new" / f"{i}.png"))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert pictures[0].shape[1] == 1200
    assert (pictures[0] != pictures[2]).any()
