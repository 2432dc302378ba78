"""The words that a command was given: its preset and its settings, and what a wrong one may have meant."""

import argparse
import difflib
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from mneme.configuration.config import settings, suggest
from mneme.configuration.hints import suggestions
from mneme.configuration.listing import settings_in
from mneme.configuration.presets import find_preset, preset_names
from mneme.distributed.config import ConfigError
from mneme.experiments.sweep.settings import SweepSettings

_ALIKE = 0.7  # of two options, as difflib measures it


def hint_of(arguments: Sequence[str], unknown: Sequence[str], options: argparse.Namespace) -> str:
    """A hint for an unknown option: an option that is spelt alike, or a setting; empty if nothing is near."""
    option = next((word for word in unknown if word.startswith("--")), "")
    given, separator, value = option.partition("=")
    key = given.lstrip("-").replace("-", "_")
    if not key:
        return ""
    own = [setting.key for setting in settings_in(SweepSettings)] if options.command == "sweep" else []
    exact = key in {setting.key for setting in settings()}
    known = re.findall(r"--[\w-]+", options.usage)
    if not exact and (alike := difflib.get_close_matches(given.replace("_", "-").lower(), known, n=1, cutoff=_ALIKE)):
        return f"; did you mean {alike[0]}?"
    near = [key] if exact else suggestions(key, own) or suggest(key)
    if not near or "settings" not in options:
        return ""
    if not separator and option in arguments:
        behind = [*arguments[arguments.index(option) + 1 :], "-"][0]
        value = "" if behind.startswith("-") or "=" in behind else behind
    return f"; settings are written without dashes: {near[0]}={value or 'VALUE'}"


def preset_and_settings(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The preset among the words of a command, if there is one, and the settings, which are the words with a `=`.

    Raises:
        ConfigError: there are several presets, or it is none.
    """
    files, overrides = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if len(files) > 1:
        hint = _as_one_word(words) or "; give one, and settings as key=value"
        raise ConfigError(f"got {len(files)} presets ({', '.join(files)}){hint}")
    try:
        return find_preset(files[0]) if files else None, overrides
    except ConfigError as error:
        hint = _as_one_word(words)
        raise ConfigError(f"{files[0]} is no file and no preset{hint}" if hint else str(error)) from None


def _as_one_word(words: Sequence[str]) -> str:
    """A hint to write a setting's name and value as one word, where they were given as two; empty if they were not."""
    known = {setting.key for setting in settings()}
    apart = [word.strip("=") for word in words if word.strip("=")]
    for name, value in pairwise([*apart, ""]):
        near = [name] if name in known else [] if "=" in name or name in preset_names() else suggest(name)
        if near:
            value = "VALUE" if not value or "=" in value or value in known else value
            return f"; a setting and its value are one word: {near[0]}={value}"
    return ""
