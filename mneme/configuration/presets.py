"""The presets that come with Mneme, by name from any folder, and how a preset's file is read."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mneme.configuration.records import read_yaml
from mneme.distributed.config import ConfigError

PRESETS = Path(__file__).parents[1] / "configs"
SWEEPS = PRESETS / "sweeps"
EXTENDS = "extends"


def preset_names() -> list[str]:
    """In alphabetical order."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def find_preset(word: str, folder: Path = Path(), but: Path | None = None) -> Path:
    """The YAML file that a word means: a file of the user's, else a preset by its name.

    `delayed_cue`, `delayed_cue.yaml`, `configs/delayed_cue` and `configs/delayed_cue.yaml` are all the preset, unless
    a file of that name lies there.

    Args:
        word: a name or a path.
        folder: where paths begin; the present one.
        but: a file that is not meant.

    Raises:
        ConfigError: there is neither.
    """
    for path in _candidates(word, folder):
        if path.is_file() and not (but is not None and path.samefile(but)):
            return path
    names = preset_names()
    near = difflib.get_close_matches(Path(word).stem.lower(), names, n=1)
    hint = f"did you mean {near[0]}? There are" if near else "there are"
    raise ConfigError(f"there is no file {word}, and no preset of that name; {hint} {', '.join(names)}")


def described_presets(folder: Path = PRESETS) -> Iterator[tuple[str, str]]:
    """The name of each file in a folder, and the comment that it begins with."""
    for path in sorted(folder.glob("*.yaml")):
        first = path.read_text().partition("\n")[0]
        yield path.stem, first.lstrip("# ") if first.startswith("#") else ""


def read_preset(path: Path) -> dict[str, Any]:
    """The settings of a preset's file, merged over those of the preset that it `extends`, by name or by a path from its
    own folder. Mappings are merged key by key; for everything else the nearer file counts.

    Raises:
        ConfigError: a file cannot be read, is no preset, or extends itself.
    """
    return _extended(path, ())


def _extended(path: Path, extending: tuple[Path, ...]) -> dict[str, Any]:
    if any(path.samefile(other) for other in extending):
        way = " which extends ".join(other.name for other in (*extending, path))
        raise ConfigError(f"presets extend each other in a circle: {way}; let one of them set all that it needs")
    tree = _read(path)
    if EXTENDS not in tree:
        return tree
    word = tree.pop(EXTENDS)
    if not isinstance(word, str):
        raise ConfigError(f"{EXTENDS} in {path} is {word!r}; name one preset, or a YAML file")
    try:
        base = find_preset(word, path.parent, but=path)
    except ConfigError as error:
        raise ConfigError(f"{path} cannot extend {word}: {error}") from None
    return merged(_extended(base, (*extending, path)), tree)


def merged(base: Mapping[str, Any], nearer: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over others: mappings key by key; for everything else the nearer counts."""
    both = dict(base)
    for key, value in nearer.items():
        below = base.get(key)
        both[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return both


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; give a YAML file, and settings as key=value"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds a {type(tree).__name__}; it must be a mapping of settings")
    return tree


def _candidates(word: str, folder: Path) -> Iterator[Path]:
    given = Path(word)
    yield folder / given
    if given.name and not given.suffix:  # . and / have no name
        yield folder / given.with_name(f"{given.name}.yaml")
    if given.parent in (Path(), Path("configs")) and given.suffix in ("", ".yaml"):
        yield PRESETS / f"{given.stem}.yaml"
