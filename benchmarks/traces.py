"""The gradient that traces give beside full backpropagation's through all time: `python -m benchmarks.traces`.

Collector and learner in one process, in episodes longer than the run, so that every sequence but a lane's first begins
in the middle of one. The truth is full backpropagation of the newest sequence's loss, with random advantages, from the
lane's first step on under the present weights; beside it stand the gradient of mode=traces and that of mode=full on the
sequence alone. Frozen, traces are exact where they exist. In learning they are as old as the steps they are of. Means
over the second half of the run.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

from mneme.controllers import ControllerSettings, Policy, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import Learner, LearnerSettings
from mneme.learner.batch import SequenceBatch
from mneme.learner.carries import StoredCarries
from mneme.learner.gradients import shard_gradients
from mneme.learner.returns import Returns
from mneme.learner.traces import LaneTraces
from mneme.rollout_workers import Collector, policy_spec

LANES, UPDATES = 16, 12
KINDS = ("nbrc", "mingru", "lru")
CPU = torch.device("cpu")


def joined(batches: Sequence[SequenceBatch]) -> SequenceBatch:
    """All steps of the same lanes as one sequence each, of which the last ones count."""
    last, T = batches[-1], batches[-1].length
    counted = torch.cat([torch.zeros(LANES, T * (len(batches) - 1), dtype=torch.bool), last.valid], 1)

    def through(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([*(part[:, :T] for part in parts[:-1]), parts[-1]], 1)

    names = ("actions", "log_probs", "values", "final_values", "rewards", "terminated", "truncated", "resets")
    return replace(
        last,
        **{name: through([getattr(batch, name) for batch in batches]) for name in names},
        observations={name: through([batch.observations[name] for batch in batches]) for name in last.observations},
        valid=counted,
        stored=StoredCarries.of(batches[0].carries, CPU),
        traces=None,
    )


def gradient(policy: Policy, settings: LearnerSettings, batch: SequenceBatch, noise: Tensor) -> dict[str, Tensor]:
    """Of the controller's parameters, by name."""
    own = torch.zeros_like(batch.rewards)
    own[:, -noise.shape[1] :] = noise
    rows, returns = torch.arange(LANES), Returns(own, own, torch.ones_like(own))
    found = shard_gradients(policy, settings, batch, returns, rows, int(batch.valid.sum())).gradients
    every = {name: g for (name, _), g in zip(policy.named_parameters(), found, strict=True) if g is not None}
    return {name: g for name, g in every.items() if name.startswith("controller.")}


def cosine(a: dict[str, Tensor], b: dict[str, Tensor], names: Sequence[str]) -> float:
    """Of two gradients in these parameters."""
    vectors = (torch.cat([gradients[name].flatten() for name in names]) for gradients in (a, b))
    return float(torch.cosine_similarity(*vectors, 0))


def run(kind: str, layers: int, learning_rate: float, length: int, seed: int) -> dict[str, float]:
    """The mean cosines with the truth."""
    own = {"cellular": True} if kind == "nbrc" else {}
    controller = ControllerSettings(kind=kind, num_layers=layers, **own)
    decks = -(-(UPDATES + 1) * length // 52)
    env = make_vector_env(EnvSettings(id="mneme/RepeatPrevious-v0", kwargs={"k": 32, "decks": decks}), LANES)
    spec, horizon = policy_spec(env), env.unwrapped.facts.memory_horizon
    acting, learning = (build_policy(spec, PolicySettings(controller=controller), horizon, seed) for _ in "ab")
    settings = LearnerSettings(mode="traces", learning_rate=learning_rate or 1e-12, num_threads=1)
    collector = Collector(env, acting, length, length, seed=seed)
    learner = Learner(learning, settings, seed=seed, total_timesteps=1)
    lanes = LaneTraces(learning)
    cells = learning.controller.elementwise()
    reached = torch.autograd.grad(
        [p.sum() for cell in cells.values() for p in cell.traced().values()],
        list(learning.parameters()),
        allow_unused=True,
    )
    traced = [name for (name, _), g in zip(learning.named_parameters(), reached, strict=True) if g is not None]
    batches: list[SequenceBatch] = []
    found: dict[str, list[float]] = defaultdict(list)
    generator = torch.Generator().manual_seed(seed)
    for update in range(UPDATES):
        learner.weights().load_into(acting)
        fragment, _ = collector.collect(learner.version)
        alone = SequenceBatch.from_fragments([fragment], CPU)
        batch, _ = lanes.through(alone)
        batches.append(alone)
        if update >= UPDATES // 2:
            noise = torch.randn(LANES, length, generator=generator)
            truth = gradient(learning, settings.full(), joined(batches), noise)
            for name, of in (("traces", batch), ("alone", alone)):
                mine = gradient(learning, settings, of, noise)
                found[f"{name}, recurrence"].append(cosine(mine, truth, traced))
                found[f"{name}, controller"].append(cosine(mine, truth, list(truth)))
        learner.update([fragment.to_arrow()])
    return {name: fmean(values) for name, values in found.items()}


def main() -> None:
    """Print one line for each kind, depth and learning rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--layers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[0.0, 5e-4, 3e-3])
    parser.add_argument("--length", type=int, default=16, help="steps in a sequence")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for kind in args.kinds:
        for layers in args.layers:
            for rate in args.learning_rates:
                shown = "  ".join(f"{k} {v:.4f}" for k, v in run(kind, layers, rate, args.length, args.seed).items())
                print(f"{kind}, {layers} layer(s), learning rate {rate:g}: {shown}", flush=True)


if __name__ == "__main__":
    main()
