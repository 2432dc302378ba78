"""Evaluating a checkpoint, without Ray."""

import sys
from pathlib import Path

import torch

from controllers import Weights
from distributed.blueprint import make_blueprint
from distributed.checkpoint import CheckpointError, find_checkpoint
from distributed.config import parse_config
from envs import make_vector_env
from rollout_workers import Evaluation, evaluate


def evaluate_checkpoint(
    path: Path,
    *,
    episodes: int,
    lanes: int,
    seed: int,
    greedy: bool = True,
    reset_carry_at: int | None = None,
) -> Evaluation:
    """Run complete episodes.

    Raises:
        CheckpointError: there is no usable checkpoint, or its weights do not fit its configuration.
        ValueError: an argument is out of range.
    """
    for name, value, least in (
        ("--episodes", episodes, 1),
        ("--lanes", lanes, 1),
        ("--seed", seed, 0),
        ("--reset-carry-at", reset_carry_at, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    torch.set_num_threads(1)
    _, checkpoint = find_checkpoint(path, lambda sentence: print(f"mneme: {sentence}", file=sys.stderr))
    blueprint = make_blueprint(parse_config(checkpoint.run["config"]))
    facts = blueprint.facts
    if reset_carry_at is not None and facts and facts.episode_length and reset_carry_at >= facts.episode_length:
        raise ValueError(
            f"--reset-carry-at is {reset_carry_at}, beyond the episode's last step {facts.episode_length - 1}; "
            f"use a lower one"
        )
    policy = blueprint.policy()
    arrays = checkpoint.arrays["learner"]
    weights = {name.removeprefix("policy."): a for name, a in arrays.items() if name.startswith("policy.")}
    try:
        Weights(int(arrays["version"]), weights).load_into(policy)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint's arrays do not fit its configuration: {error}") from None
    env = make_vector_env(blueprint.config.env, min(lanes, episodes))
    try:
        return evaluate(
            env,
            policy,
            episodes=episodes,
            seed=seed,
            greedy=greedy,
            reset_carry_at=reset_carry_at,
            spaces=blueprint.config.spaces,
            success_return=blueprint.config.env.success_return,
        )
    finally:
        env.close()
