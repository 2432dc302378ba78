"""Presets by name, from any folder."""

import re
from pathlib import Path

import pytest

from mneme.configuration.presets import PRESETS, described_presets, find_preset, preset_names
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
