"""The best configuration of a sweep as a preset."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mneme.configuration.config import Config, parse_config
from mneme.configuration.records import same, write_yaml
from mneme.experiments.suite.results import replace_file

_OF_A_RUN = ("seed", "name", "checkpoint", "tracking")
"""Sections that say nothing about what is learned."""


def write_preset(config: Config, path: Path, comment: str) -> None:
    """Write what differs from the defaults as a YAML file that `mneme train` takes.

    Args:
        config: of a run.
        path: the file.
        comment: its first line, one sentence.
    """
    tree = preset_of(config)
    replace_file(path, f"# {comment}\n{write_yaml(tree)}")


def preset_of(config: Config) -> dict[str, Any]:
    """The settings that differ from the defaults, those of its run alone left out."""
    kind = config.policy.controller.kind
    plain, defaults = config.to_dict(), parse_config({"policy": {"controller": {"kind": kind}}}).to_dict()
    defaults["policy"]["controller"]["kind"] = None  # named even where it is the default
    differing = {name: _differing(value, defaults[name]) for name, value in plain.items() if name not in _OF_A_RUN}
    return {name: value for name, value in differing.items() if value}


def _differing(value: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that differ; sections are looked into, a mapping that is a setting is taken whole."""
    found = {}
    for name, entry in value.items():
        if name == "controller":
            found[name] = _differing(entry, default[name])
        elif name not in default or not same(entry, default[name]):
            found[name] = entry
    return found
