"""The two kinds of worker as plain classes: the local runner calls them, the Ray runner makes actors of them."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pyarrow as pa
import torch

from mneme.controllers import Weights
from mneme.distributed.blueprint import Blueprint
from mneme.envs import EnvironmentFailure, make_vector_env, register_missing
from mneme.learner import Group, Learner, UpdateReport
from mneme.rollout_workers import (
    Collector,
    DoubleBuffered,
    EpisodeStats,
    Evaluation,
    EvaluationError,
    FragmentError,
    Packer,
    evaluate,
    stride_to_collect,
)
from mneme.rollout_workers.state import State, under
from mneme.rollout_workers.stopwatch import Stopwatch

_WAITING = "waiting."  # before the names of what a packer keeps, among a worker's
VectorEnv = gym.vector.VectorEnv[Any, Any, Any]


class Delivery(NamedTuple):
    """A rollout worker's report about a fragment that it made, or could not make."""

    worker: int
    version: int  # of the newest weights that acted: from them on the fragment's lag is counted
    steps: int
    nbytes: int  # 0 where there is no fragment
    incarnation: int  # of the worker's lanes
    level: int  # of the curriculum
    stats: EpisodeStats | None
    error: str | None = None  # why there is no fragment, unless none was due: its episodes may still be under way


class RolloutWorker:
    """One share of the lanes, and the policy that steps them."""

    def __init__(self, blueprint: Blueprint, worker: int, incarnation: int = 0) -> None:
        torch.set_num_threads(1)
        register_missing(blueprint.registered)
        self._blueprint = blueprint
        self._worker = worker
        self._incarnation = incarnation
        self._policy = blueprint.policy()
        self._version = -1
        self._level = 0
        self._begin(self._fresh_envs())

    def ready(self) -> bool:
        """True once the worker is built."""
        return True

    def collect(self, weights: Weights, level: int) -> tuple[Delivery, pa.RecordBatch | None]:
        """One fragment under these weights, at this level of the curriculum; or, of whole episodes, none where too few
        have ended. A fragment with values that are not finite is reported, not shipped, and the lanes start anew."""
        watch = Stopwatch("broadcast", "env", "inference", "recording")
        with watch("broadcast"):
            self._load(weights)
            self.enter(level)
        fragment, stats = self._collector.collect(weights.version)
        try:
            fragment.validate()
        except FragmentError as error:
            self.restart(self._incarnation + 1)
            return Delivery(self._worker, weights.version, 0, 0, self._incarnation, level, None, str(error)), None
        with watch("recording"):
            ready = fragment if self._packer is None else self._packer.add(fragment)
            batch = ready.to_arrow() if ready else None
        watch.add(stats.seconds)
        delivery = Delivery(
            self._worker,
            weights.version,
            ready.steps if ready else 0,
            batch.nbytes if batch else 0,
            self._incarnation,
            level,
            stats._replace(seconds=watch.seconds),
        )
        return delivery, batch

    def evaluate(self, weights: Weights, episodes: int, seed: int, timeout: float, part: int) -> Evaluation:
        """Greedy complete episodes, other ones for each `part` of an evaluation, in environments of their own, so that
        the training lanes are not touched; or in the training lanes, which start new episodes afterwards
        (`train.evaluation_environments`).

        Raises:
            EvaluationError: an episode did not end, `timeout` seconds have passed, or something failed on the way.
        """
        self._load(weights)
        config, num_envs = self._blueprint.config, self._blueprint.envs_per_worker
        try:
            with self._evaluation_envs(seed, min(num_envs, episodes)) as envs:
                parts = [
                    evaluate(
                        env, self._policy, episodes=-(-episodes // len(envs)), seed=seed, first_lane=first,
                        spaces=config.spaces, success_return=config.env.success_return,
                        max_episode_steps=config.train.evaluation_max_steps, timeout=timeout / len(envs),
                    )
                    for env, first in _numbered(envs, part * num_envs)
                ]  # fmt: skip
            return Evaluation.joined(parts)
        except EvaluationError:
            raise
        except Exception as error:
            raise EvaluationError(f"{type(error).__name__}: {error}".partition("\n")[0]) from error

    @contextmanager
    def _evaluation_envs(self, seed: int, num_envs: int) -> Iterator[Sequence[VectorEnv]]:
        config = self._blueprint.config
        if config.train.evaluation_environments == "own":
            place = self._blueprint.place(self._worker, seed, copy=1)
            with closing(make_vector_env(config.env, num_envs, place=place)) as env:
                yield [env]
            return
        try:
            yield self._envs
        finally:
            self._incarnation += 1
            try:
                self._begin(self._envs)
            except EnvironmentFailure:
                self.restart(self._incarnation)

    def state(self) -> State | None:
        """See `Collector.state`; the level, and what waits to be packed, besides."""
        return self._whole(self._collector.state(), self._packer.state() if self._packer else {})

    def expected_state(self) -> State | None:
        """See `Collector.expected_state`; of this level of the curriculum."""
        return self._whole(self._collector.expected_state(), self._packer.largest_state() if self._packer else {})

    def _whole(self, state: State | None, waiting: State) -> State | None:
        if state is None:
            return None
        return state | {f"{_WAITING}{name}": x for name, x in waiting.items()} | {"level": np.array(self._level)}

    def set_state(self, state: State) -> None:
        """See `Collector.set_state`."""
        self._level = int(state["level"])
        self.restart(int(state["incarnation"]))
        self._take_up(state)

    def _take_up(self, state: State) -> None:
        assert isinstance(self._collector, Collector)  # halves in other processes give no state
        self._collector.set_state(state)
        if self._packer is not None:
            self._packer.set_state(under(_WAITING, state))

    def try_out(self, state: State) -> None:
        """Take up a state and act once, to see whether it is one; this worker is of no use afterwards.

        Raises:
            Exception: whatever comes of a state that is none.
        """
        self._level = int(state["level"])
        self.restart(int(state["incarnation"]))
        assert isinstance(self._collector, Collector)
        self._collector.check_state(state)
        self._take_up(state)
        if self._packer is not None:
            self._packer.check_agrees(int(state["step"]), state["reset"])
        self._collector.length = 1
        self._collector.collect()

    def enter(self, level: int) -> None:
        """Play this level of the curriculum, from new episodes where it is another one."""
        if level != self._level:
            self._level = level
            self.restart(self._incarnation + 1)

    def restart(self, incarnation: int) -> None:
        """New episodes, unlike those of any lower incarnation."""
        self._incarnation = incarnation
        self.close()
        self._begin(self._fresh_envs())

    def close(self) -> None:
        """Let the environments go, subprocesses included."""
        for env in self._envs:
            env.close()

    def _load(self, weights: Weights) -> None:
        if weights.version != self._version:
            weights.load_into(self._policy)
            self._version = weights.version

    def _fresh_envs(self) -> list[VectorEnv]:
        """The environments of all lanes, in order: one of all, or, double-buffered, one of each half."""
        blueprint = self._blueprint
        first = blueprint.place(self._worker, blueprint.config.seed, self._incarnation)
        halves = 2 if blueprint.config.rollout.double_buffered else 1
        num_envs, made = blueprint.envs_per_worker // halves, list[VectorEnv]()
        try:
            for half in range(halves):
                place = first._replace(first_lane=first.first_lane + half * num_envs)
                made.append(make_vector_env(blueprint.env(self._level), num_envs, place=place))
        except BaseException:
            for env in made:
                env.close()
            raise
        return made

    def _begin(self, envs: list[VectorEnv]) -> None:
        """Begin an episode in every lane; what belongs to earlier ones is forgotten."""
        self._envs, first_lane = envs, self._worker * self._blueprint.envs_per_worker
        collectors = [self._collector_of(env, first) for env, first in _numbered(envs, first_lane)]
        self._collector = DoubleBuffered(*collectors) if len(collectors) > 1 else collectors[0]
        stride = self._blueprint.carry_stride
        self._packer = Packer(self._collector.blank(), stride) if self._blueprint.packs_episodes else None

    def _collector_of(self, env: VectorEnv, first_lane: int) -> Collector:
        config, length, stride = self._blueprint.config, self._blueprint.length, self._blueprint.carry_stride
        return Collector(
            env,
            self._policy,
            length=length,
            carry_stride=stride_to_collect(length, stride) if self._blueprint.packs_episodes else stride,
            warm_up=self._blueprint.warm_up,
            seed=config.seed,
            incarnation=self._incarnation,
            worker=self._worker,
            first_lane=first_lane,
            spaces=config.spaces,
            success_return=config.env.success_return,
            metrics=config.env.metrics,
        )


def _numbered(envs: Sequence[VectorEnv], first_lane: int) -> Iterator[tuple[VectorEnv, int]]:
    """Each with the number of its first lane."""
    for env in envs:
        yield env, first_lane
        first_lane += env.num_envs


class LearnerWorker:
    """The learner behind calls that take Arrow batches and give versioned weights.

    Args:
        blueprint: what it is built from.
        group: the learners that it is one of; by itself by default.
    """

    def __init__(self, blueprint: Blueprint, group: Group | None = None) -> None:
        torch.set_num_threads(1)
        config = blueprint.config
        self._learner = Learner(
            blueprint.policy(),
            config.learner,
            seed=config.seed,
            total_timesteps=config.train.total_timesteps,
            asynchronous=config.service.mode == "async",
            group=group,
            packed=blueprint.packs_episodes,
        )

    def update(self, *batches: pa.RecordBatch) -> tuple[UpdateReport, Weights]:
        """Train on these fragments; see `Learner.update`."""
        report, watch = self._learner.update(batches), Stopwatch("broadcast")
        with watch("broadcast"):
            weights = self._learner.weights()
        return report._replace(seconds=report.seconds | watch.seconds), weights

    def skip(self) -> Weights:
        """Count an update that is not made, as fragments may name its weights; the same weights, with that number."""
        self._learner.version += 1
        return self._learner.weights()

    def next_mode(self) -> None:
        """See `Learner.next_mode`."""
        self._learner.next_mode()

    def weights(self) -> Weights:
        """The current weights."""
        return self._learner.weights()

    def state(self) -> State:
        """See `Learner.state`."""
        return self._learner.state()

    def expected_state(self) -> State:
        """See `Learner.expected_state`."""
        return self._learner.expected_state()

    def set_state(self, state: State) -> Weights:
        """See `Learner.set_state`; returns the weights it restored."""
        self._learner.set_state(state)
        return self._learner.weights()
