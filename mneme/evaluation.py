"""Evaluating a checkpoint, without Ray."""

from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mneme.agent import LoadedPolicy, load_policy
from mneme.configuration.config import Config, override
from mneme.controllers.compilation import compile_acting
from mneme.distributed.blueprint import Blueprint
from mneme.distributed.config import ConfigError
from mneme.envs import EnvSettings, TaskFacts, facts_of, make_vector_env
from mneme.rollout_workers import Evaluation, evaluate, policy_spec
from mneme.rollout_workers.recording import recording
from mneme.rollout_workers.video import film_episodes


def evaluate_checkpoint(
    path: Path | LoadedPolicy,
    *,
    episodes: int,
    seed: int,
    num_envs: int | None = None,
    changes: Sequence[str] = (),
    greedy: bool = True,
    reset_carry_at: int | None = None,
    record: Path | None = None,
    best: int | None = None,
    video: Path | None = None,
    video_episodes: int = 3,
    trust: bool = False,
) -> Evaluation:
    """Run complete episodes; write them to the new file `record`, or the `best` of them, and films of the first
    `video_episodes` into the folder `video`, where these are given. With `trust`, what the run names is imported,
    whoever wrote it.

    Args:
        path: a run folder, or one of its checkpoints, or what was loaded of it.
        episodes: how many at least; each lane plays equally many.
        seed: of the episodes.
        num_envs: parallel environments; unset: as many as the run had.
        changes: settings of the task as `env.key=value`, which replace the run's. The policy stays what it is, so that
            observations and actions must be alike. An episode may be as long as the task declares, also where that is
            more than `train.evaluation_max_steps`.

    Raises:
        ConfigError: a change is none of the task, or the policy does not fit the changed task.
        CheckpointError: there is no usable checkpoint, or its weights do not fit its configuration.
        ValueError: an argument is out of range, or the environment does not render.
        OSError: the recording or the films cannot be written.
    """
    for name, value, least in (
        ("episodes", episodes, 1),
        ("num_envs", num_envs, 1),
        ("seed", seed, 0),
        ("reset_carry_at", reset_carry_at, 0),
        ("best", best, 1),
        ("video_episodes", video_episodes, 1),
    ):
        if value is not None and (type(value) is not int or value < least):
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    if best is not None and record is None:
        raise ValueError(f"best is {best}, but nothing is recorded; name a file for the record")
    refuse_other_settings(changes)
    torch.set_num_threads(1)
    loaded = path if isinstance(path, LoadedPolicy) else load_policy(path, trust)
    blueprint, policy = loaded.blueprint, loaded.policy
    compile_acting(policy)  # the scans were compiled when it was loaded
    env_settings, facts = blueprint.config.env, blueprint.facts
    if changes:
        env_settings, facts = changed_task(blueprint, changes)
    if reset_carry_at is not None and facts and facts.episode_length and reset_carry_at >= facts.episode_length:
        raise ValueError(
            f"reset_carry_at is {reset_carry_at}, beyond the episode's last step {facts.episode_length - 1}; "
            f"use a lower one"
        )
    declared = facts.episode_length if facts is not None else None
    longest = max(blueprint.config.train.evaluation_max_steps, declared or 0)
    settings, spaces = env_settings, blueprint.config.spaces
    how: dict[str, Any] = {"seed": seed, "greedy": greedy, "reset_carry_at": reset_carry_at, "spaces": spaces}
    description = (
        f"{settings.id}, weights {loaded.version}, seed {seed}, {'greedy' if greedy else 'sampled'}"
        f"{'' if reset_carry_at is None else f', carry reset at step {reset_carry_at}'}"
    )
    recorded = nullcontext() if record is None else recording(record, description, best)
    with recorded as recorder:
        if video is not None:
            with closing(make_vector_env(settings, 1, "rgb_array", blueprint.place(0, seed, copy=2))) as env:
                film_episodes(env, policy, video, episodes=video_episodes, **how)
        count = min(num_envs or blueprint.config.rollout.num_envs, episodes)
        with closing(make_vector_env(settings, count, place=blueprint.place(0, seed, copy=2))) as env:
            return evaluate(
                env, policy, episodes=episodes, success_return=settings.success_return, weights_version=loaded.version,
                recorder=recorder, max_episode_steps=longest, **how,
            )  # fmt: skip


def refuse_other_settings(changes: Sequence[str]) -> None:
    """See that changes are of the task.

    Raises:
        ConfigError: one is not.
    """
    for change in changes:
        if not change.startswith("env."):
            raise ConfigError(f"{change} is no setting of the task; an evaluation changes only env.key=value")


def changed_task(blueprint: Blueprint[Config], changes: Sequence[str]) -> tuple[EnvSettings, TaskFacts | None]:
    """A run's task with settings of it replaced, and what is known of it.

    Raises:
        ConfigError: the task has no such setting, or the policy does not fit the changed task.
    """
    settings = override(blueprint.config, changes).env
    try:
        with closing(make_vector_env(settings, 1)) as env:
            spec, facts = policy_spec(env, blueprint.config.spaces), facts_of(env)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if replace(spec, value_bins=blueprint.spec.value_bins) != blueprint.spec:
        raise ConfigError(
            f"{' '.join(changes)} changes the observations or actions, which the policy does not fit; change only what "
            f"leaves them alike"
        )
    return settings, facts
