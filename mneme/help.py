"""What stands below the options in `--help`: presets, sweeps, and every setting."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import fill

from mneme.configuration.config import settings
from mneme.configuration.listing import Setting, settings_in
from mneme.configuration.presets import PRESETS, SWEEPS, described_presets
from mneme.experiments.sweep.settings import SweepSettings


def train_help() -> str:
    """Presets, and the settings of a run."""
    presets = "presets (by name from any folder; a file of that name in the present folder comes first):"
    every, some = ([s for s in settings() if bool(s.kinds) is by_kind] for by_kind in (False, True))
    titles = (
        "settings (in YAML as sections, on the command line as key=value):",
        ("settings of some kinds of controllers alone:"),
    )
    return "\n\n".join((_presets(presets, PRESETS), _settings(titles[0], every), _settings(titles[1], some)))


def sweep_help() -> str:
    """Sweeps that come with Mneme, and the settings of a sweep."""
    sweeps = "sweeps that come with Mneme (by name from any folder):"
    title = "settings of a sweep (in YAML as the section sweep, on the command line as key=value):"
    return "\n\n".join((_presets(sweeps, SWEEPS), _settings(title, settings_in(SweepSettings))))


def _presets(title: str, folder: Path) -> str:
    return "\n".join([title, "", *(line for item in described_presets(folder) for line in _entry(*item))])


def _settings(title: str, listed: Iterable[Setting]) -> str:
    return "\n".join([title, "", *(line for setting in listed for line in _entry(_head(setting), setting.help))])


def _head(setting: Setting) -> str:
    default = "unset" if setting.default is None else setting.default
    of_kinds = f"; {', '.join(setting.kinds)}" if setting.kinds else ""
    return f"{setting.key}  ({setting.type}, default {default}{of_kinds})"


def _entry(head: str, text: str) -> Iterator[str]:
    yield f"  {head}"
    yield fill(text, width=100, initial_indent="      ", subsequent_indent="      ")
