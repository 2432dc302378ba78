"""Mneme on delayed cue, as its preset has it. Run as `python -m benchmarks.ours`."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import measurement as m
from mneme.callbacks import Callback, Progress
from mneme.configuration.config import Config, load_config
from mneme.configuration.records import to_json
from mneme.distributed.blueprint import make_blueprint
from mneme.envs import make_vector_env
from mneme.experiments.machine import cores
from mneme.learner import Learner
from mneme.rollout_workers import Collector
from mneme.training import train

PRESET = Path(__file__).parent.parent / "configs" / "delayed_cue.yaml"
_WARM_UP = {m.SHORT: 50, m.LONG: 12}  # some ten seconds, after which the learner has processes beside it


def configuration(
    steps: int, seed: int, controller: str, mode: str, folder: str, overrides: Sequence[str] = (),
    work: m.Work = m.SHORT,
) -> Config:  # fmt: skip
    """The preset, held to the work that all contestants do, without whatever is not training.

    Args:
        steps: environment steps to train on in all.
        seed: of the run.
        controller: kind of sequence model.
        mode: of the service, sync or async.
        folder: where the run may write.
        overrides: further settings, key=value.
        work: of an update.
    """
    return load_config(
        PRESET,
        [
            f"seed={seed}",
            f"env.id={m.ENV_ID}",
            f"env.kwargs={{cues: {m.CUES}, horizon: {work.horizon}}}",
            f"policy.controller.kind={controller}",
            f"policy.controller.hidden_size={m.HIDDEN}",
            f"rollout.num_envs={work.lanes}",
            f"learner.num_epochs={m.EPOCHS}",
            f"learner.num_minibatches={m.MINIBATCHES}",
            f"learner.learning_rate={m.LEARNING_RATE}",
            "learner.mode=full",
            "learner.device=cpu",
            f"train.total_timesteps={steps}",
            "train.stop_success=null",
            "train.evaluate_every=null",
            "train.evaluation_episodes=1",
            f"service.mode={mode}",
            "service.address=local",
            f"checkpoint.root={folder}",
            f"checkpoint.every={steps + 1}",
            "tracking.enabled=false",
            *overrides,
        ],
    )


class _Timing(Callback):
    """Hears of every update at its end."""

    def __init__(self, stopwatch: m.Stopwatch) -> None:
        self._stopwatch = stopwatch
        self._step = 0

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        spent = {key.removeprefix("seconds/"): metrics[key] for key in metrics if key.startswith("seconds/")}
        self._stopwatch.update(progress.steps - self._step, metrics["episodes"], metrics["return"], spent)
        self._step = progress.steps


def bare_loop(config: Config, stopwatch: m.Stopwatch) -> None:
    """Collect and learn in turn in this process: the same parts, without Ray, replay, metrics and checkpoints."""
    torch.set_num_threads(1)  # the learner's shards are threads of their own
    blueprint = make_blueprint(config)
    config = blueprint.config
    acting = blueprint.policy()
    collector = Collector(
        make_vector_env(config.env, config.rollout.num_envs),
        acting,
        length=blueprint.length,
        carry_stride=blueprint.carry_stride,
        seed=config.seed,
    )
    total = config.train.total_timesteps
    learner = Learner(blueprint.policy(), config.learner, seed=config.seed, total_timesteps=total)
    while learner.env_steps < total:
        learner.weights().load_into(acting)
        fragment, stats = collector.collect(learner.version)
        report = learner.update([fragment.to_arrow()])
        spent = {**stats.seconds, **report.seconds}
        stopwatch.update(report.steps, len(stats.returns), float(np.mean(stats.returns)), spent)


def main() -> None:
    """Train for `--steps` timed environment steps and print a measurement."""
    parser = m.contestant_parser(__doc__)
    parser.add_argument("--runner", choices=("ray", "bare"), default="ray")
    parser.add_argument("--mode", choices=("sync", "async"), default="sync")
    parser.add_argument("--controller", default="gru")
    parser.add_argument("--threads", type=int, default=cores(), help="of the learner")
    m.add_work(parser)
    args = parser.parse_args()
    warm_up = _WARM_UP[args.work]
    stopwatch = m.Stopwatch(warm_up)
    with tempfile.TemporaryDirectory() as folder:
        steps = m.updates_for(args.steps, args.work.batch, warm_up) * args.work.batch
        threads = [f"learner.num_threads={args.threads}"]
        config = configuration(steps, args.seed, args.controller, args.mode, folder, threads, args.work)
        if args.runner == "bare":
            bare_loop(config, stopwatch)
        else:
            train(config, callbacks=[_Timing(stopwatch)], progress=False)
    blueprint = make_blueprint(config)
    parameters = sum(parameter.numel() for parameter in blueprint.policy().parameters())
    described = to_json(blueprint.config.to_dict()) | {"parameters": parameters}
    stopwatch.measurement(described, "ray", "gymnasium", "torch", "numpy").report()


if __name__ == "__main__":
    main()
