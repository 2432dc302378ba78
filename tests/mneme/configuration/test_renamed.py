"""An old name of a setting is refused, and the new one named, however the setting is given."""

from pathlib import Path

import pytest
import yaml

from mneme.configuration.config import Config, load_config, parse_config, settings
from mneme.configuration.renamed import RENAMED, new_name, under_new_names
from mneme.distributed.config import ConfigError


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_refused_with_the_new_one(old: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"{old}=1"])
    assert str(caught.value) == new_name(old)
    assert str(caught.value).startswith(f"{old} is now {RENAMED[old]}")


def test_new_names_exist_and_old_ones_do_not() -> None:
    keys = {setting.key for setting in settings()}
    assert set(RENAMED.values()) <= keys
    assert not keys & {old for old, new in RENAMED.items() if new != old}


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


def test_what_was_recorded_under_old_names_is_read_under_the_new_ones() -> None:
    recorded = yaml.safe_load(
        """
        seed: 3
        env: {id: mneme/DelayedCue-v0, kwargs: {cues: 4, horizon: 64, window: 7}, vectorization: sync}
        policy:
          controller: {kind: pseudo_mamba, layers: 2, kwargs: {slots: 5, slot_size: 8, convolution: 3, chunk: 8}}
        rollout: {lanes: 256, workers: 2, length: null, carry_stride: null}
        learner:
          {window: 8, epochs: 3, minibatches: 2, anneal: true, clip: 0.1, value_coef: 0.4, value_clip: null,
           entropy_coef: 0.0, shards: 1, mode: truncated}
        train: {total_steps: 1000, stop_success: 0.99}
        """
    )
    settings = [
        "seed=3", "env.kwargs={cues: 4, horizon: 64, window: 7}", "env.vectorization_mode=sync",
        "policy.controller={kind: pseudo_mamba, num_layers: 2, num_slots: 5, slot_size: 8, d_conv: 3, chunk_size: 8}",
        "rollout.num_envs=256", "learner.mode=truncated", "learner.carry_source=stored", "learner.bptt_length=8",
        "learner.num_epochs=3",
        "learner.num_minibatches=2", "learner.lr_schedule=linear", "learner.clip_range=0.1", "learner.vf_coef=0.4",
        "learner.ent_coef=0", "learner.num_threads=1", "train.total_timesteps=1000", "train.stop_success=0.99",
    ]  # fmt: skip
    assert parse_config(under_new_names(recorded)) == load_config(None, settings)
    assert recorded["rollout"]["lanes"] == 256


@pytest.mark.parametrize(("recorded", "read"), [(True, "batch"), (False, "none"), ("minibatch", "minibatch")])
def test_a_recorded_value_that_is_called_otherwise_now_is_read_as_it_was_meant(recorded: object, read: str) -> None:
    tree = {"learner": {"normalize_advantages": recorded}}
    assert parse_config(under_new_names(tree)).learner.normalize_advantages == read
    if recorded != read:
        with pytest.raises(ConfigError, match="learner.normalize_advantages is .*; use 'batch', 'minibatch' or 'none'"):
            parse_config(tree)


def test_a_record_of_kwargs_that_nothing_is_in_is_read_too() -> None:
    assert parse_config(under_new_names({"policy": {"controller": {"kind": "lru", "kwargs": {}}}})) == load_config(
        None, ["policy.controller.kind=lru"]
    )


def test_what_a_controller_of_ones_own_calls_its_settings_stays() -> None:
    tree = {"policy": {"controller": {"kind": "module:Class", "kwargs": {"window": 3}}}}
    assert under_new_names(tree) == tree


@pytest.mark.parametrize(
    "config", [Config(), load_config(None, ["policy.controller.kind=transformer", "policy.controller.window_size=9"])]
)
def test_present_names_stay(config: Config) -> None:
    assert under_new_names(config.to_dict()) == config.to_dict()
