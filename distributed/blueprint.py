"""The blueprint of a run, derived from its configuration and a look at its environment before any actor starts."""

from collections.abc import Iterator, Mapping
from contextlib import chdir, closing
from dataclasses import replace
from math import prod
from typing import Any, Generic, NamedTuple

import gymnasium as gym
from gymnasium.vector import VectorEnv
from typing_extensions import TypeVar

from mneme.controllers import Policy, PolicySpec, Weights, build_policy
from mneme.controllers.given import pickled, take
from mneme.distributed.config import ConfigError, ServiceConfig
from mneme.distributed.room import check_room, memory
from mneme.distributed.trial import try_out
from mneme.envs import (
    EnvironmentFailure,
    EnvSettings,
    Place,
    Registered,
    TaskFacts,
    facts_of,
    horizon_of,
    make_vector_env,
    registered_here,
)
from mneme.learner import default_num_threads
from mneme.rollout_workers import adapter_of, policy_spec

_DEFAULT_LENGTH = 128  # steps in a sequence where the task's episodes have no fixed length
_STALENESS_PROBES = 4  # carries stored a sequence where the mode needs only the first but staleness is measured
_WARM_UP = 64  # least steps of its past that a sequence brings along where its first carry is stale


ConfigT_co = TypeVar("ConfigT_co", bound=ServiceConfig, covariant=True, default=ServiceConfig)
ConfigT = TypeVar("ConfigT", bound=ServiceConfig)


class Blueprint(NamedTuple, Generic[ConfigT_co]):
    """Enough to build every part of a run, on any machine, alike."""

    config: ConfigT_co  # with what is left open in rollout, learner.num_threads and how images are read filled in
    observation_space: gym.Space[Any]  # of a single environment
    action_space: gym.Space[Any]
    spec: PolicySpec
    horizon: int  # steps over which the task asks to remember
    facts: TaskFacts | None
    observed: tuple[str, ...]  # how each part of the observation is read, in words
    registered: Registered  # the ids that the task, or what it makes in its turn, may need
    given: Mapping[str, bytes]  # the class of a controller that other processes cannot import, pickled, by its kind
    weights: Weights | None = None  # that the policy starts from, where they are not random

    @property
    def envs_per_worker(self) -> int:
        """Environments that one rollout worker steps."""
        return self.config.rollout.num_envs // self.config.rollout.num_workers

    @property
    def length(self) -> int:
        """Steps in one sequence."""
        assert self.config.rollout.unroll_length is not None
        return self.config.rollout.unroll_length

    @property
    def carry_stride(self) -> int:
        """Steps between stored carries."""
        assert self.config.rollout.carry_stride is not None
        return self.config.rollout.carry_stride

    @property
    def warm_up(self) -> int:
        """Steps of its past that a sequence brings along."""
        assert self.config.rollout.warm_up is not None
        return self.config.rollout.warm_up

    @property
    def packs_episodes(self) -> bool:
        """True if sequences are made of complete episodes."""
        return self.config.rollout.batching == "episodes"

    def env(self, level: int) -> EnvSettings:
        """The task at a level of the curriculum; the highest level is the task itself."""
        return list(_levels(self.config))[level]

    def place(self, worker: int, seed: int, incarnation: int = 0, copy: int = 0) -> Place:
        """The position of a worker's lanes among all that may be open at once: those of training (copy 0), of its
        evaluation (1) and of an evaluation by itself (2) are numbered one after the other."""
        rollout = self.config.rollout
        return Place(
            copy * rollout.num_envs + worker * self.envs_per_worker,
            copy * rollout.num_workers + worker,
            (seed, incarnation),
        )

    def policy(self) -> Policy:
        """The policy that the run starts from."""
        take(self.given)
        policy = build_policy(self.spec, self.config.policy, self.horizon, self.config.seed)
        if self.weights is not None:
            self.weights.load_into(policy)
        return policy

    def fragment_bytes(self, policy: Policy) -> int:
        """The least size in bytes of a worker's fragment of a row a lane: flags, provenance and true final observations
        come on top. Of complete episodes it has as many rows in the long run, and fewer or more at a time."""
        T, past = self.length, self.warm_up
        carry = sum(c.numel() * c.element_size() for c in policy.initial_carry(1).values())
        observation = sum(
            prod(part.shape) * min(dtype.itemsize for dtype in part.dtypes) for part in self.spec.observations.values()
        )
        action = prod(self.spec.actions.action_shape) * self.spec.actions.action_dtype.itemsize
        numbers = 4 * (T + T + 1 + T + T)  # log-probabilities, values, final values and rewards, float32
        lane = (T + 1 + past) * observation + T * action + numbers + (-(-T // self.carry_stride) + bool(past)) * carry
        return self.envs_per_worker * lane


def make_blueprint(config: ConfigT) -> Blueprint[ConfigT]:
    """Look at the environment once and fill in what the configuration leaves open.

    Raises:
        ConfigError: the environment, the controller or a combination of sizes cannot work.
        EnvironmentFailure: the environment cannot be reset.
    """
    with chdir("."):  # back to where one stood, wherever an environment may go
        return _made_blueprint(config)


def _made_blueprint(config: ConfigT) -> Blueprint[ConfigT]:
    try:
        env = make_vector_env(config.env, 1)
    except Exception as error:
        raise ConfigError(str(error)) from error
    try:
        seen, facts = adapter_of(env, config.spaces), facts_of(env)
        spec = replace(seen.spec, value_bins=config.learner.value_bins)
        config = config.changed("spaces", layout=seen.settings.layout, scale=seen.settings.scale)
        length = config.rollout.unroll_length or (facts.episode_length if facts else None) or _DEFAULT_LENGTH
        config.learner.check_batch(config.rollout.num_envs)
        _check_replicas(config)
        config = _with_stages(config, env)
        if facts is None and config.env.success_return is None:
            _refuse_success(config)
        check_room(config, spec, length, memory())
        _check_stages(config, seen.spec)
        if config.train.evaluation_environments == "training" and config.curriculum.stages:
            raise ValueError(
                "train.evaluation_environments is training, but the environments of curriculum.stages are not those of "
                "the task; use own, or leave out curriculum.stages"
            )
        if config.learner.mode_schedule == "evaluation_plateau" and config.train.evaluate_every is None:
            raise ValueError(
                "learner.mode_schedule is evaluation_plateau, but there are no regular evaluations; set "
                "train.evaluate_every, or use plateau, which goes by the return in training"
            )
        _check_order(config)
        if config.rollout.double_buffered and config.env.vectorization_mode != "async":
            raise ValueError(
                f"rollout.double_buffered is set, but with env.vectorization_mode={config.env.vectorization_mode} "
                f"environments step in the process that acts, which can do nothing else meanwhile; use "
                f"env.vectorization_mode=async, or leave rollout.double_buffered unset"
            )
        blueprint = Blueprint(
            config.changed(
                "rollout",
                unroll_length=length,
                carry_stride=_carry_stride(config, length),
                warm_up=_warm_up(config, length, facts),
            ).changed("learner", num_threads=config.learner.num_threads or default_num_threads(_neighbours(config))),
            env.single_observation_space,
            env.single_action_space,
            spec,
            config.policy.controller.expected_horizon or (max(1, facts.memory_horizon) if facts else length),
            facts,
            seen.described,
            registered_here(),
            pickled(config.policy.controller.kind),
        )
        policy = blueprint.policy()
        try_out(policy.controller, config.policy.controller.kind, traces=config.learner.mode == "traces")
        _check_replay(blueprint, policy)
        config.learner.check_controller(policy.controller, config.policy.controller.kind)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    finally:
        env.close()
    return blueprint


def _with_stages(config: ConfigT, env: VectorEnv[Any, Any, Any]) -> ConfigT:
    """The configuration with the stages that `curriculum.start` asks for."""
    given = config.curriculum
    if given.start is None:
        return config
    own = horizon_of(env, config.env.kwargs)
    if own is None:
        raise ValueError(
            f"curriculum.start is {given.start}, but {config.env.id} does not say which of its arguments is the "
            f"horizon; give curriculum.stages, as in curriculum.stages=[{{length: 10}}, {{length: 20}}]"
        )
    argument, horizon = own
    if given.start >= horizon:
        raise ValueError(
            f"curriculum.start is {given.start}, and env.kwargs.{argument} is {horizon}; let the curriculum start below"
        )
    stages, at = [], float(given.start)
    while round(at) < horizon:
        stages.append({argument: round(at)})
        at = min(max(at + 1, at * given.growth), horizon)
    return config.changed("curriculum", stages=tuple(stages))


def _check_replicas(config: ServiceConfig) -> None:
    """Refuse learners that would never have a fragment."""
    replicas, workers = config.learner.replicas, config.rollout.num_workers
    if replicas > workers:
        raise ValueError(
            f"learner.replicas is {replicas}, but an update has {workers} fragments, one for each of "
            f"rollout.num_workers; lower learner.replicas or raise rollout.num_workers"
        )


def _neighbours(config: ServiceConfig) -> int:
    """Learners that share the cores of a machine."""
    together = config.service.cluster() is None or config.service.learner_placement == "packed"
    return config.learner.replicas if together else 1


def _check_order(config: ServiceConfig) -> None:
    """Refuse what goes by the order of a lane's fragments, or does not look at their age, where they are older than the
    weights."""
    for setting, value in (("service.mode", config.service.mode), ("rollout.batching", config.rollout.batching)):
        if value not in ("async", "episodes"):
            continue
        if config.learner.anchor == "never":
            raise ValueError(
                f"learner.anchor is never, but {setting}={value} corrects what older weights did from what the anchor "
                f"pass finds; use learner.anchor=auto"
            )
        if config.learner.mode == "traces":
            raise ValueError(
                f"learner.mode is traces, which go on from a lane's last fragment to its next, and {setting}={value} "
                f"does not keep them in order; use {setting}={'sync' if value == 'async' else 'sequences'}"
            )


def _levels(config: ServiceConfig) -> Iterator[EnvSettings]:
    for stage in (*config.curriculum.stages, {}):
        yield replace(config.env, kwargs={**config.env.kwargs, **stage})


def _refuse_success(config: ServiceConfig) -> None:
    """Refuse what needs to know whether an episode succeeded."""
    settings = {"train.stop_success": config.train.stop_success, "curriculum.stages": config.curriculum.stages or None}
    for name, value in settings.items():
        if value is not None:
            raise ValueError(
                f"{name} is {value}, but {config.env.id} does not declare what success is; "
                f"set env.success_return, or leave it unset"
            )


def _check_stages(config: ServiceConfig, spec: PolicySpec) -> None:
    """Refuse a stage that cannot be played, or whose spaces are not those of the task itself."""
    for level, (stage, settings) in enumerate(zip(config.curriculum.stages, _levels(config), strict=False)):
        try:
            with closing(make_vector_env(settings, 1)) as env:
                own = policy_spec(env, config.spaces)
        except (ValueError, EnvironmentFailure) as error:
            raise ValueError(f"curriculum.stages[{level}] is {stage}: {error}") from error
        if own != spec:
            raise ValueError(
                f"curriculum.stages[{level}] is {stage}, which changes the observations or actions; "
                f"a stage may change only what leaves them alike"
            )


def _check_replay(blueprint: Blueprint, policy: Policy) -> None:
    """Refuse a replay that cannot hold what one update takes."""
    given, workers = blueprint.config.service.replay_bytes, blueprint.config.rollout.num_workers
    # Of whole episodes a fragment has as many rows as are ready, in the beginning twice as many as lanes.
    nbytes = blueprint.fragment_bytes(policy) * (2 if blueprint.packs_episodes else 1)
    if nbytes * workers > given:
        largest = max(blueprint.spec.observations.items(), key=lambda item: prod(item[1].shape))
        raise ValueError(
            f"{too_small_a_replay(given, workers, nbytes)}; the largest part of the observation, {largest[0]!r}, has "
            f"{prod(largest[1].shape):,} numbers"
        )


def too_small_a_replay(given: int, fragments: int, nbytes: int) -> str:
    """The sentence about a replay of `given` bytes that one update's fragments, of `nbytes` each, do not fit in."""
    return (
        f"service.replay_bytes is {given}, less than the {fragments} fragments of {nbytes} bytes that one update "
        f"takes; raise it, or lower rollout.num_envs or rollout.unroll_length"
    )


def _carry_stride(config: ServiceConfig, length: int) -> int:
    plan, chosen = config.learner.plan(length), config.rollout.carry_stride
    if chosen is None:
        probe = -(-length // _STALENESS_PROBES)
        apart = config.rollout.batching == "sequences"  # episodes lie end to end, and begin with no carry
        whole = plan.window == length and config.service.mode == "async" and apart
        return min(probe, plan.carry_stride) if whole else plan.carry_stride
    if plan.carry_stride % chosen and plan.carry_stride < length:
        raise ValueError(
            f"rollout.carry_stride is {chosen}, but windows start from carries every {plan.carry_stride} steps; "
            f"use a divisor of {plan.carry_stride}, or leave it unset"
        )
    return min(chosen, length)


def _warm_up(config: ServiceConfig, length: int, facts: TaskFacts | None) -> int:
    """Twice as long as the task asks to remember, and 64 steps at least, but no longer than a sequence."""
    chosen, asynchronous = config.rollout.warm_up, config.service.mode == "async"
    if config.rollout.batching == "episodes":
        if chosen:
            raise ValueError(
                f"rollout.warm_up is {chosen}, but with rollout.batching=episodes sequences begin with an episode; "
                f"leave it unset"
            )
        return 0
    if chosen is None:
        whole = facts is not None and facts.episode_length and length % facts.episode_length == 0
        if not asynchronous or (whole and not config.curriculum.stages):
            return 0
        horizon = config.policy.controller.expected_horizon or (facts.memory_horizon if facts else 0)
        return min(length, max(_WARM_UP, 2 * horizon))
    if chosen and not asynchronous and config.learner.anchor != "always":
        raise ValueError(
            f"rollout.warm_up is {chosen}, but nothing replays those steps: in synchronous service the anchor pass "
            f"runs only with learner.anchor=always; set that, or leave rollout.warm_up unset"
        )
    return chosen
