"""Does it learn? One run for one seed, and what came of it."""

from collections.abc import Iterable
from time import perf_counter
from typing import NamedTuple

from mneme.callbacks import Callback
from mneme.configuration.config import Config
from mneme.distributed.blueprint import make_blueprint
from mneme.evaluation import evaluate_checkpoint
from mneme.experiments.machine import describe_machine, versions
from mneme.rollout_workers import EvaluationError
from mneme.training import train

DEFAULT_TARGET = 0.99
"""Success rate that counts as solved, where `train.stop_success` is unset."""


class SeedRun(NamedTuple):
    """The result of one seed. Success is greedy, in complete episodes after training, unless said otherwise."""

    seed: int
    steps: int  # environment steps trained on: as many as it took to solve the task, if it was solved
    seconds: float  # of training and evaluation
    parameters: int  # of the whole policy
    episodes: int  # in the evaluation
    success: float  # share of them
    success_low: float  # 95 % interval
    success_high: float
    mean_return: float
    sampled_success: float | None  # of the last episodes in training, whose actions are drawn
    success_with_carry_reset: float  # with the memory taken away in the middle of every episode


def run_seed(
    config: Config, *, local: bool = False, callbacks: Iterable[Callback] = (), progress: bool = True
) -> SeedRun | None:
    """Train and evaluate; None if it was interrupted.

    Args:
        config: of an environment that says what success is.
        local, callbacks, progress: as for `train`.

    Raises:
        EvaluationError: the evaluation at the end came to no result. Else as `train`.
    """
    started = perf_counter()
    result = train(config, local=local, callbacks=callbacks, progress=progress)
    seconds = perf_counter() - started
    if result.interrupted:
        return None
    evaluation = result.evaluation
    if evaluation is None:
        raise EvaluationError(f"the evaluation at the end of {result.folder} came to no result")
    assert evaluation.success_rate is not None and evaluation.success_interval is not None
    forgetful = evaluate_checkpoint(
        result.folder, episodes=512, num_envs=128, seed=config.seed, reset_carry_at=int(evaluation.lengths.max()) // 2
    )
    assert forgetful.success_rate is not None
    return SeedRun(
        seed=config.seed,
        steps=result.steps,
        seconds=round(seconds, 1),
        parameters=sum(parameter.numel() for parameter in make_blueprint(config).policy().parameters()),
        episodes=evaluation.episodes,
        success=evaluation.success_rate,
        success_low=evaluation.success_interval[0],
        success_high=evaluation.success_interval[1],
        mean_return=evaluation.mean_return,
        sampled_success=next(
            (share for share in result.history()["success"].to_pylist()[::-1] if share is not None), None
        ),
        success_with_carry_reset=forgetful.success_rate,
    )


def provenance() -> dict[str, dict[str, object]]:
    """The machine and the versions that figures belong to."""
    return {"machine": describe_machine(), "versions": {**versions("torch", "ray", "numpy", "gymnasium")}}
