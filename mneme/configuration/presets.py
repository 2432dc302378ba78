"""The presets that come with Mneme, by name from any folder."""

import difflib
from collections.abc import Iterator
from pathlib import Path

from mneme.distributed.config import ConfigError

PRESETS = Path(__file__).parents[1] / "configs"


def preset_names() -> list[str]:
    """In alphabetical order."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def find_preset(word: str) -> Path:
    """The YAML file that a word of the command line means: a file of the user's, else a preset by its name.

    `delayed_cue`, `delayed_cue.yaml`, `configs/delayed_cue` and `configs/delayed_cue.yaml` are all the preset, unless
    a file of that name lies there.

    Raises:
        ConfigError: there is neither.
    """
    for path in _candidates(word):
        if path.is_file():
            return path
    names = preset_names()
    near = difflib.get_close_matches(Path(word).stem.lower(), names, n=1)
    hint = f"did you mean {near[0]}? There are" if near else "there are"
    raise ConfigError(f"there is no file {word}, and no preset of that name; {hint} {', '.join(names)}")


def described_presets() -> Iterator[tuple[str, str]]:
    """Each preset and the comment that it begins with."""
    for name in preset_names():
        first = (PRESETS / f"{name}.yaml").read_text().partition("\n")[0]
        yield name, first.lstrip("# ") if first.startswith("#") else ""


def _candidates(word: str) -> Iterator[Path]:
    given = Path(word)
    yield given
    if given.name and not given.suffix:  # . and / have no name
        yield given.with_name(f"{given.name}.yaml")
    if given.parent in (Path(), Path("configs")) and given.suffix in ("", ".yaml"):
        yield PRESETS / f"{given.stem}.yaml"
