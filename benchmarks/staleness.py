"""Staleness of the carry that enters a sequence, and what a warm-up repairs: `python -m benchmarks.staleness`.

Collector and learner in one process, the learner some versions ahead. Episodes are longer than the run, so every
sequence but a lane's first begins in the middle of one. The truth is a scan under the learner's weights from the lane's
first step; beside it stands what a warm-up of some steps gives, from the carry that was stored there. Means over the
sequences of the run's second half.
"""

import argparse
from collections import defaultdict, deque
from statistics import fmean

import numpy as np
import torch

from mneme.controllers import Carry, ControllerSettings, Policy, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import Learner, LearnerSettings
from mneme.rollout_workers import Collector, Fragment, policy_spec

LENGTH, LANES, STRIDE = 128, 16, 16
WARM_UPS = (0, 16, 64, 128, 256)


def scanned(policy: Policy, fragments: list[Fragment], first: int, carry: Carry) -> Carry:
    """The carry after all of the fragments' steps from `first` on."""

    def steps(arrays: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([a[:, :LENGTH] for a in arrays], 1)[:, first:].swapaxes(0, 1))

    observations = {name: steps([f.observations[name] for f in fragments]) for name in fragments[0].observations}
    with torch.no_grad():
        return policy.scan(observations, steps([f.resets for f in fragments]), carry).carry


def stored(fragments: list[Fragment], step: int) -> Carry:
    """The carry that was collected before a step."""
    fragment, t = fragments[step // LENGTH], step % LENGTH
    return {name: torch.from_numpy(c[:, t // STRIDE]) for name, c in fragment.carries.items()}


def run(kind: str, lag: int, updates: int, settings: EnvSettings, seed: int) -> dict[str, list[float]]:
    """The distances of each part and warm-up, as "part steps", one an update."""
    env = make_vector_env(settings, LANES)
    spec, horizon = policy_spec(env), env.unwrapped.facts.memory_horizon
    acting, learning = (
        build_policy(spec, PolicySettings(controller=ControllerSettings(kind=kind)), horizon, seed) for _ in "ab"
    )
    collector = Collector(env, acting, LENGTH, STRIDE, seed=seed)
    learner = Learner(learning, LearnerSettings(), seed=seed, total_timesteps=1, asynchronous=True)
    weights, fragments, found = deque([learner.weights()], lag + 1), [], defaultdict(list)
    for update in range(updates):
        weights[0].load_into(acting)
        fragment, _ = collector.collect(weights[0].version)
        if update >= updates // 2:
            now = update * LENGTH
            truth = scanned(learning, fragments, 0, learning.initial_carry(LANES))
            for warm_up in WARM_UPS:
                carry = stored([*fragments, fragment], now - warm_up)
                if warm_up:
                    carry = scanned(learning, fragments, now - warm_up, carry)
                for name, c in carry.items():
                    apart, size = (x.flatten(1).norm(dim=1) for x in (c - truth[name], truth[name]))
                    found[f"{name} {warm_up}"].append(float((apart / size).mean()))
        fragments.append(fragment)
        learner.update([fragment.to_arrow()])
        weights.append(learner.weights())
    return found


def main() -> None:
    """Print one line for each controller, lag and part of the carry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--controllers", nargs="+", default=["gru", "mamba2", "transformer"])
    parser.add_argument("--lags", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--k", type=int, default=32, help="how far back the card is that RepeatPrevious asks for")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    decks = -(-(args.updates + 1) * LENGTH // 52)
    settings = EnvSettings(id="mneme/RepeatPrevious-v0", kwargs={"k": args.k, "decks": decks})
    for kind in args.controllers:
        for lag in args.lags:
            found = run(kind, lag, args.updates, settings, args.seed)
            for part in dict.fromkeys(key.split()[0] for key in found):
                shown = "  ".join(f"{w}: {fmean(found[f'{part} {w}']):.3f}" for w in WARM_UPS)
                print(f"{kind} lag {lag} {part}: {shown}", flush=True)


if __name__ == "__main__":
    main()
