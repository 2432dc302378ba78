"""The carries of a run: how they change from step to step, and drift from those of newer weights once stored."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mneme.agent import LoadedPolicy
from mneme.envs import make_vector_env
from mneme.learner import Learner, LearnerSettings
from mneme.learner.anchor import anchor_pass
from mneme.learner.batch import SequenceBatch
from mneme.learner.staleness import Staleness, measure_staleness
from mneme.rollout_workers import Collector, Fragment, Packer, stride_to_collect

_WATCHED = 8  # parallel environments in which every step's carry is kept
_PROBES = 4  # carries stored a sequence, where the mode stores fewer


class Ageing(NamedTuple):
    """The staleness of one batch's stored carries as training goes on from the weights that collected it."""

    by_epoch: list[Staleness]  # after the first epoch on the batch itself, the second, ...
    by_lag: list[Staleness]  # after one update, two, ...; of which the first is on the batch itself


@contextmanager
def collector_of(loaded: LoadedPolicy, seed: int, num_envs: int, carry_stride: int) -> Iterator[Collector]:
    """A collector with a run's newest weights, in the middle of episodes that are longer than a sequence."""
    blueprint, config = loaded.blueprint, loaded.blueprint.config
    with closing(make_vector_env(config.env, num_envs, place=blueprint.place(0, seed, copy=2))) as env:
        collector = Collector(
            env, loaded.policy, blueprint.length, carry_stride, seed=seed, spaces=config.spaces,
            success_return=config.env.success_return,
        )  # fmt: skip
        collector.collect(loaded.version)
        yield collector


@contextmanager
def batches_of(
    loaded: LoadedPolicy, seed: int, num_envs: int, carry_stride: int
) -> Iterator[Callable[[int], Fragment]]:
    """What gives a run's next fragment under the newest weights, of a version: sequences, or rows of whole episodes."""
    packs = loaded.blueprint.packs_episodes
    collected = stride_to_collect(loaded.blueprint.length, carry_stride) if packs else carry_stride
    with collector_of(loaded, seed, num_envs, collected) as collector:
        packer = Packer(collector.blank(), carry_stride) if packs else None

        def next_fragment(version: int) -> Fragment:
            while True:
                fragment, _ = collector.collect(version)
                ready = fragment if packer is None else packer.add(fragment)
                if ready is not None:
                    return ready

        yield next_fragment


def learner_of(loaded: LoadedPolicy, settings: LearnerSettings, seed: int) -> Learner:
    """A run's learner as its checkpoint has it, with a policy of its own."""
    blueprint, config = loaded.blueprint, loaded.blueprint.config
    learner = Learner(
        blueprint.policy(),
        settings,
        seed=seed,
        total_timesteps=config.train.total_timesteps,
        asynchronous=config.service.mode == "async",
        packed=blueprint.packs_episodes,
    )
    learner.set_state(loaded.learner)
    return learner


def ageing(loaded: LoadedPolicy, *, lags: int, seed: int, num_envs: int) -> Ageing:
    """Train on from a checkpoint, in memory, and look back at the first batch's carries; nothing of the run is changed.

    Args:
        loaded: the checkpoint; its policy is trained on.
        lags: updates to make, at least 1.
        seed: of the batches.
        num_envs: parallel environments.
    """
    config, length = loaded.blueprint.config, loaded.blueprint.length
    epochs = config.learner.num_epochs
    own = config.learner.plan(length).carry_stride
    stride = own if own < length else -(-length // _PROBES)
    # An update of one epoch at a time: what counts as old came with the fragments, so several make one of several.
    settings = replace(config.learner, num_epochs=1, num_minibatches=min(num_envs, config.learner.num_minibatches))
    learner = learner_of(loaded, settings, seed)
    by_epoch: list[Staleness] = []
    by_lag: list[Staleness] = []
    with batches_of(loaded, seed, num_envs, stride) as next_fragment:
        first: SequenceBatch | None = None
        for _ in range(lags):
            fragment = next_fragment(learner.version)
            first = first or SequenceBatch.from_fragments([fragment], learner.device)
            for _epoch in range(epochs):
                learner.update([fragment.to_arrow()])
                if len(by_epoch) < epochs:
                    by_epoch.append(_staleness(learner, first))
            by_lag.append(_staleness(learner, first))
            learner.weights().load_into(loaded.policy)
    return Ageing(by_epoch, by_lag)


def turnover(loaded: LoadedPolicy, *, seed: int) -> dict[str, float]:
    """How much of each part of the carry a step replaces: median ||after - before|| / ||after|| inside episodes.

    A gate that stays shut, or a time constant of n steps, shows as 0, or about 1 / n; 1 and more is no memory.
    """
    with collector_of(loaded, seed, _WATCHED, 1) as collector:
        fragment, _ = collector.collect(loaded.version)
    inside = ~fragment.resets[:, : fragment.length - 1] & fragment.valid[:, :-1]
    found = {}
    for name, carry in fragment.carries.items():
        before, after = (x[inside].astype(np.float64) for x in (carry[:, :-1], carry[:, 1:]))  # [n, ...]
        axes = tuple(range(1, after.ndim))
        size, apart = (np.sqrt(np.square(x).sum(axes)) for x in (after, after - before))
        share = apart[size > 0] / size[size > 0]
        found[name] = float(np.median(share)) if len(share) else 0.0
    return found


def _staleness(learner: Learner, batch: SequenceBatch) -> Staleness:
    return measure_staleness(learner.policy, batch, anchor_pass(learner.policy, batch))
