"""What is found out before a run starts: that its parts fit each other, this machine, and Ray."""

import logging

from mneme.configuration.config import Config
from mneme.controllers import given
from mneme.distributed.blueprint import Blueprint, make_blueprint
from mneme.distributed.config import ConfigError
from mneme.distributed.room import check_update, device_memory
from mneme.envs import check_sendable
from mneme.learner import remarks, resolve_device

_log = logging.getLogger(__name__)


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
