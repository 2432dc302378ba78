"""Evaluating a checkpoint, without Ray."""

import sys
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from controllers import Weights
from controllers.compilation import compile_ahead
from distributed.blueprint import make_blueprint
from distributed.checkpoint import CheckpointError, find_checkpoint
from distributed.config import parse_config
from distributed.records import from_json
from distributed.run_folder import RunFolder
from distributed.trust import refuse_foreign_code
from envs import make_vector_env
from rollout_workers import Evaluation, evaluate
from rollout_workers.recording import recording
from rollout_workers.video import film_episodes


def evaluate_checkpoint(
    path: Path,
    *,
    episodes: int,
    lanes: int,
    seed: int,
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

    Raises:
        CheckpointError: there is no usable checkpoint, or its weights do not fit its configuration.
        ValueError: an argument is out of range, or the environment does not render.
        OSError: the recording or the films cannot be written.
    """
    for name, value, least in (
        ("--episodes", episodes, 1),
        ("--lanes", lanes, 1),
        ("--seed", seed, 0),
        ("--reset-carry-at", reset_carry_at, 0),
        ("--best", best, 1),
        ("--video-episodes", video_episodes, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if best is not None and record is None:
        raise ValueError(f"--best is {best}, but nothing is recorded; name a file with --record")
    torch.set_num_threads(1)
    path, checkpoint = find_checkpoint(path, _say)
    config = parse_config(from_json(checkpoint.run["config"]))
    if not trust:
        refuse_foreign_code(config, path, RunFolder.of(path).path)
    blueprint = make_blueprint(config)
    facts = blueprint.facts
    if reset_carry_at is not None and facts and facts.episode_length and reset_carry_at >= facts.episode_length:
        raise ValueError(
            f"--reset-carry-at is {reset_carry_at}, beyond the episode's last step {facts.episode_length - 1}; "
            f"use a lower one"
        )
    policy = blueprint.policy()
    compile_ahead(policy.controller, blueprint.config.policy.controller.kind, _say)
    arrays = checkpoint.arrays["learner"]
    weights = {name.removeprefix("policy."): a for name, a in arrays.items() if name.startswith("policy.")}
    version = int(arrays["version"])
    try:
        Weights(version, weights).load_into(policy)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint's arrays do not fit its configuration: {error}") from None
    settings, spaces = blueprint.config.env, blueprint.config.spaces
    how: dict[str, Any] = {"seed": seed, "greedy": greedy, "reset_carry_at": reset_carry_at, "spaces": spaces}
    description = (
        f"{settings.id}, weights {version}, seed {seed}, {'greedy' if greedy else 'sampled'}"
        f"{'' if reset_carry_at is None else f', carry reset at step {reset_carry_at}'}"
    )
    recorded = nullcontext() if record is None else recording(record, description, best)
    with recorded as recorder:
        if video is not None:
            with closing(make_vector_env(settings, 1, render_mode="rgb_array")) as env:
                film_episodes(env, policy, video, episodes=video_episodes, **how)
        with closing(make_vector_env(settings, min(lanes, episodes))) as env:
            return evaluate(
                env, policy, episodes=episodes, success_return=settings.success_return, weights_version=version,
                recorder=recorder, max_episode_steps=blueprint.config.train.evaluation_max_steps, **how,
            )  # fmt: skip


def _say(sentence: str) -> None:
    print(f"mneme: {sentence}", file=sys.stderr)
