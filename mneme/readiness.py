"""What is found out before a run starts: that its parts fit each other, this machine, and Ray."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from contextvars import ContextVar

from mneme.configuration.config import Config
from mneme.controllers import given
from mneme.distributed.blueprint import Blueprint, make_blueprint
from mneme.distributed.config import ConfigError
from mneme.distributed.room import check_update, device_memory
from mneme.envs import check_sendable, facts_of, make_vector_env
from mneme.learner import remarks, resolve_device

_log = logging.getLogger(__name__)

_said: ContextVar[list[str] | None] = ContextVar("said", default=None)  # warnings of a short reach, if they are counted


def checked_blueprint(config: Config, local: bool) -> Blueprint[Config]:
    """What every part of a run is built from, of a configuration that can work here.

    Raises:
        ConfigError, EnvironmentFailure: it cannot.
    """
    if local and config.learner.replicas > 1:
        raise ConfigError(
            f"learner.replicas is {config.learner.replicas}, which needs Ray's actors; leave --local (local=True) out "
            f"or set learner.replicas=1"
        )
    if local and config.service.mode == "async":
        raise ConfigError(
            "service.mode is async, which needs Ray's actors; leave --local (local=True) out or set service.mode=sync"
        )
    blueprint = make_blueprint(config)
    if sentence := short_reach(blueprint):
        _warn_of_reach(sentence)
    if not local:
        _check_sendable(config)
    if local or config.service.cluster() is None:  # learning runs here
        try:
            controller, device = blueprint.policy().controller, resolve_device(config.learner.device)
            controller.check_backend(device)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        for sentence in remarks(config.learner, device, controller):
            _log.info(sentence)
    return blueprint


@contextmanager
def reach_warned_of_once() -> Iterator[None]:
    """Within, of the runs that are checked the first whose gradients go back too few steps is warned of, and no other:
    of a sweep or a suite that compares how far they go, some are meant to."""
    token = _said.set([])
    try:
        yield
    finally:
        _said.reset(token)


def _warn_of_reach(sentence: str) -> None:
    said = _said.get()
    if said is None:
        _log.warning(sentence)
    elif not said:
        said.append(sentence)
        _log.warning(f"{sentence}; of further runs this is not said")


def short_reach(blueprint: Blueprint[Config]) -> str | None:
    """Why nothing teaches the agent to store what its task, or the first stage of its curriculum, asks for later, as
    gradients go back too few steps; None if they do, if the task does not say how many it takes, or if the mode changes
    in the run."""
    s, facts, at_first = blueprint.config.learner, blueprint.facts, ""
    if blueprint.config.curriculum.stages:
        with closing(make_vector_env(blueprint.env(0), 1)) as env:
            facts, at_first = facts_of(env), " in its first stage"
    horizon = facts.memory_horizon if facts is not None else 0
    window = {"cached": 1, "truncated": s.max_bptt_length or s.bptt_length}.get(s.mode, blueprint.length)
    reach = min(window, blueprint.length)
    if (
        reach > horizon
        or s.mode == "traces"
        or s.mode_schedule != "constant"
        or not blueprint.policy().controller.initial()
    ):
        return None
    remedy = "learner.mode=full"
    if s.mode == "truncated":
        remedy += f" or a learner.bptt_length of {4 * horizon}"
    if blueprint.length <= horizon:
        remedy = f"a rollout.unroll_length above {horizon}, with learner.mode=full"
    return (
        f"gradients go back {reach} step{'s' * (reach > 1)}, and {blueprint.config.env.id} asks to remember "
        f"{horizon}{at_first}: nothing teaches the agent to store; use {remedy}, unless it is meant so"
    )


def check_memory(blueprint: Blueprint[Config], local: bool) -> None:
    """Refuse an update that does not fit, where learning runs here."""
    config = blueprint.config
    if not local and config.service.cluster() is not None:
        return
    device = resolve_device(config.learner.device)
    policy = blueprint.policy().to(device)
    policy.mixed_precision = config.learner.precision == "bf16"
    try:
        check_update(config, policy, blueprint.length, blueprint.fragment_bytes(policy), device_memory(device))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _check_sendable(config: Config) -> None:
    """Refuse code that Ray's workers cannot have."""
    try:
        check_sendable(config.env.id)
        given.check_sendable(config.policy.controller.kind)
    except ValueError as error:
        raise ConfigError(str(error)) from None
