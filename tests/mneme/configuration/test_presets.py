"""Presets by name, from any folder."""

import re
from pathlib import Path

import pytest

from mneme.configuration.config import load_config
from mneme.configuration.presets import PRESETS, described_presets, find_preset, preset_names, read_preset
from mneme.distributed.config import ConfigError


@pytest.mark.parametrize("word", ["delayed_cue", "delayed_cue.yaml", "configs/delayed_cue", "configs/delayed_cue.yaml"])
def test_a_preset_is_found_from_any_folder(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "delayed_cue").mkdir()  # a folder is no preset
    assert find_preset(word) == PRESETS / "delayed_cue.yaml"


@pytest.mark.parametrize(
    ("word", "file"),
    [
        ("delayed_cue", "delayed_cue.yaml"),
        ("delayed_cue", "delayed_cue"),
        ("configs/delayed_cue", "configs/delayed_cue.yaml"),
        ("configs/delayed_cue.yaml", "configs/delayed_cue.yaml"),
        ("mine", "mine.yaml"),
        ("elsewhere/delayed_cue.yml", "elsewhere/delayed_cue.yml"),
    ],
)
def test_a_file_of_the_users_comes_first(word: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("seed: 1")
    assert find_preset(word).resolve() == tmp_path / file


def test_what_is_neither_is_refused_with_the_presets_there_are() -> None:
    with pytest.raises(ConfigError) as refused:
        find_preset("configs/Delayed_que.yaml")
    assert "there is no file configs/Delayed_que.yaml, and no preset of that name; did you mean delayed_cue?" in str(
        refused.value
    )
    assert ", ".join(preset_names()) in str(refused.value)
    with pytest.raises(ConfigError, match="no file elsewhere/delayed_cue"):
        find_preset("elsewhere/delayed_cue")
    for word in (".", "..", "/", ""):
        with pytest.raises(ConfigError, match=rf"^there is no file {re.escape(word)}, and no preset of that name"):
            find_preset(word)


def test_every_preset_says_what_it_is() -> None:
    described = dict(described_presets())
    assert list(described) == preset_names()
    assert all(described.values())


def test_a_preset_extends_another_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: delayed_cue\nenv: {kwargs: {horizon: 9}}\npolicy: {encoder: [8], controller: {num_layers: 2}}\n"
    )
    (tmp_path / "further").mkdir()
    (tmp_path / "further" / "longer.yaml").write_text("extends: ../mine.yaml\npolicy: {encoder: [4, 4]}\nseed: 5\n")
    assert load_config(tmp_path / "further" / "longer.yaml", ["seed=6"]) == load_config(
        PRESETS / "delayed_cue.yaml",
        ["env.kwargs.horizon=9", "policy.encoder=[4, 4]", "policy.controller.num_layers=2", "seed=6"],
    )


def test_a_file_of_a_presets_name_may_extend_that_preset(tmp_path: Path) -> None:
    (tmp_path / "delayed_cue.yaml").write_text("extends: delayed_cue\nseed: 3\n")
    assert read_preset(tmp_path / "delayed_cue.yaml") == read_preset(PRESETS / "delayed_cue.yaml") | {"seed": 3}


def test_a_neighbour_comes_before_the_preset_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "delayed_cue.yaml").write_text("seed: 3\n")
    (tmp_path / "mine.yaml").write_text("extends: delayed_cue\n")
    assert read_preset(tmp_path / "mine.yaml") == {"seed": 3}


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (
            {"a": "b", "b": "c", "c": "b"},
            r"in a circle: a.yaml which extends b.yaml which extends c.yaml",
        ),
        ({"a": "a"}, r"a.yaml cannot extend a: there is no file a"),
        ({"a": "delayed_que"}, r"a.yaml cannot extend delayed_que: there is no file .* did you mean delayed_cue\?"),
        ({"a": "[b, c]"}, r"extends in .*a.yaml is \['b', 'c'\]; name one preset, or a YAML file"),
        ({"a": "b", "b": "{x: ["}, r"b.yaml is not YAML"),
    ],
)
def test_what_cannot_be_extended_is_refused_in_one_sentence(
    texts: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    for name, extended in texts.items():
        (tmp_path / f"{name}.yaml").write_text(f"extends: {extended}\n")
    with pytest.raises(ConfigError, match=sentence) as refused:
        load_config(tmp_path / "a.yaml")
    assert "\n" not in str(refused.value)
