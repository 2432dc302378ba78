"""The right setting is suggested for one that does not exist."""

import pytest

from mneme.configuration.config import settings, suggest
from mneme.configuration.hints import OTHER_NAMES


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learner.lr", ["learner.learning_rate"]),
        ("lr", ["learner.learning_rate"]),
        ("optimizer.lr", ["learner.learning_rate"]),
        ("learner.learning-rate", ["learner.learning_rate"]),
        ("Learner.Epochs", ["learner.num_epochs"]),
        ("learner.burn_in_steps", ["learner.bptt_length", "learner.burn_in"]),
        ("learner.entropy_coeff", ["learner.ent_coef"]),
        ("n_envs", ["rollout.num_envs"]),
        ("env.num_envs", ["rollout.num_envs", "env.kwargs.num_envs"]),
        ("learner.batch_size", ["rollout.num_envs", "learner.num_minibatches"]),
        ("rollout.n_steps", ["rollout.unroll_length"]),
        ("learner.total_timesteps", ["train.total_timesteps"]),
        ("policy.hidden_size", ["policy.controller.hidden_size"]),
        ("kind", ["policy.controller.kind"]),
        ("learner.lambda", ["learner.gae_lambda"]),
        ("env.horizon", ["env.kwargs.horizon"]),
        ("env.length", ["env.kwargs.length"]),
        ("env.name", ["env.id"]),
        ("policy.controller.slots", ["policy.controller.num_slots"]),
        ("mode", ["learner.mode", "service.mode"]),
        ("learner.learning_rat", ["learner.learning_rate"]),
        ("learnr.num_epoch", ["learner.num_epochs"]),
        ("foo.bar", []),
    ],
)
def test_the_setting_that_is_meant_is_found(key: str, meant: list[str]) -> None:
    assert suggest(key) == meant


def test_only_settings_that_exist_are_suggested() -> None:
    keys = {setting.key for setting in settings()}
    assert OTHER_NAMES.keys() <= keys
    leaves = {key.rpartition(".")[2] for key in keys}
    words = [word for names in OTHER_NAMES.values() for word in names.split()]
    assert not leaves & set(words), "what is a name of ours needs no other"
