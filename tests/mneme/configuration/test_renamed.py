"""An old name of a setting is refused, and the new one named, however the setting is given."""

from pathlib import Path

import pytest

from mneme.configuration.config import Config, load_config, parse_config, settings
from mneme.configuration.renamed import RENAMED
from mneme.distributed.config import ConfigError


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_refused_with_the_new_one(old: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"{old}=1"])
    assert str(caught.value) == f"{old} is now {RENAMED[old]}"


def test_new_names_exist_and_old_ones_do_not() -> None:
    keys = {setting.key for setting in settings()}
    assert set(RENAMED.values()) <= keys
    assert not keys & RENAMED.keys()


def test_yaml_and_python_are_told_as_the_command_line_is(tmp_path: Path) -> None:
    preset = tmp_path / "old.yaml"
    preset.write_text("rollout: {lanes: 64, workers: 2}\nlearner: {window: 8}\n")
    sentences = [f"{old} is now {RENAMED[old]}" for old in ("rollout.lanes", "rollout.workers", "learner.window")]
    with pytest.raises(ConfigError) as caught:
        load_config(preset)
    assert str(caught.value).splitlines() == sentences
    with pytest.raises(ConfigError, match=r"rollout\.lanes is now rollout\.num_envs"):
        parse_config({"rollout": {"lanes": 64}})
    with pytest.raises(ConfigError, match=r"learner\.window is now learner\.bptt_length"):
        Config().changed("learner", window=8)
