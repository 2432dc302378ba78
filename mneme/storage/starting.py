"""Weights of another run that a new one starts from."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mneme.configuration.config import Config
from mneme.controllers import Weights
from mneme.distributed.blueprint import Blueprint
from mneme.distributed.config import ConfigError
from mneme.learner import weights_in
from mneme.storage.checkpoint import CheckpointError, find_checkpoint
from mneme.storage.fetching import brought_home, source_of
from mneme.storage.paths import CHECKPOINTS
from mneme.storage.uri import as_uri, below, split_options

_log = logging.getLogger(__name__)

_CORE = "controller."  # before the names of what is the sequence model's


class Start(NamedTuple):
    """What a new run starts from."""

    named: str  # the very checkpoint, by its full path or its URI
    weights: Weights  # of version 0


def started(blueprint: Blueprint[Config]) -> Blueprint[Config]:
    """The blueprint of a new run with the weights that `train.start_from` names, and there the very checkpoint; see
    `start_of`. A run that goes on has weights of its own."""
    start = start_of(blueprint)
    if start is None:
        return blueprint
    what = "the weights" if blueprint.config.train.start_part == "all" else "the sequence model"
    _log.info(f"this run starts from {what} of {start.named}, with a fresh optimizer")
    config = blueprint.config.changed("train", start_from=start.named)
    return blueprint._replace(config=config, weights=start.weights)


def start_of(blueprint: Blueprint[Config]) -> Start | None:
    """The weights that `train.start_from` names; None if it is unset.

    Nothing but numbers is read, so nothing of the other run is imported.

    Raises:
        ConfigError: there are none, or they do not fit; the sentence names the first that does not.
    """
    train = blueprint.config.train
    if train.start_from is None:
        return None
    given = Path(train.start_from)
    try:
        path, saved = find_checkpoint(brought_home(given))
        source = source_of(given)
        there = weights_in(saved.arrays["learner"]).arrays
    except (CheckpointError, KeyError) as error:
        what = error if isinstance(error, CheckpointError) else f"the checkpoint holds no {error}"
        raise ConfigError(f"train.start_from is {train.start_from}: {what}") from None
    named = str(path.absolute()) if source is None else below(source.uri, CHECKPOINTS, path.name)
    fresh = Weights.from_module(blueprint.policy(), 0)
    taken = {name: array for name, array in there.items() if train.start_part == "all" or name.startswith(_CORE)}
    if misfit := _misfit(taken, fresh.arrays, train.start_part):
        raise ConfigError(f"train.start_from is {train.start_from}, whose weights do not fit: {misfit}")
    return Start(named, Weights(0, {**fresh.arrays, **taken}))


def with_known(config: Config, starts: Mapping[str, str]) -> Config:
    """The configuration with the very checkpoint that was found for its `train.start_from`, where one was.

    Args:
        config: of one of several runs.
        starts: very checkpoints by what `train.start_from` may be, so that all start alike, though that run goes on.
    """
    given = config.train.start_from
    return config if given is None or given not in starts else config.changed("train", start_from=starts[given])


def as_begun(config: Config, begun: Config) -> Config:
    """The configuration with the very checkpoint that its run began from, where it names that or the run it is of."""
    given, used = config.train.start_from, begun.train.start_from
    if given is None or used is None:
        return config
    (run, options), (checkpoint, others) = _place(given), _place(used)
    same = options == others and f"{checkpoint}/".startswith(f"{run}/")
    return config.changed("train", start_from=used) if same else config


def _place(given: str) -> tuple[str, str]:
    """A full path, or a URI without its options, and these."""
    uri = as_uri(given)
    return (str(Path(given).absolute()), "") if uri is None else split_options(uri)


def _misfit(there: Mapping[str, np.ndarray], here: Mapping[str, np.ndarray], part: str) -> str | None:
    """What keeps arrays from being the weights of a policy, and the remedy; None if nothing does."""
    misfits = dict(_misfits(there, here, part))
    if misfits:
        remedy = "give this run the policy, the observations and the actions of that one"
        if part == "core":
            remedy = "give this run the policy.controller of that one, and inputs as wide: with the same "
            remedy += "policy.encoder they are"
        elif not any(name.startswith(_CORE) for name in misfits):
            remedy += ", or set train.start_part=core to take its sequence model alone"
        name, why = next(iter(misfits.items()))
        return f"{name} {why}; {remedy}"
    for name, array in there.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"{name} holds numbers that are not finite; choose another checkpoint"
    return None


def _misfits(there: Mapping[str, np.ndarray], here: Mapping[str, np.ndarray], part: str) -> Iterator[tuple[str, str]]:
    """The names of the arrays that only one side has, or that differ in shape or type, each with which it is."""
    for name in here:
        if name not in there and (part == "all" or name.startswith(_CORE)):
            yield name, "is missing there"
    for name, array in there.items():
        if name not in here:
            yield name, "is not of this policy"
        elif array.shape != here[name].shape:
            yield name, f"is {list(array.shape)} there and {list(here[name].shape)} here"
        elif array.dtype != here[name].dtype:
            yield name, f"is {array.dtype} there and {here[name].dtype} here"
