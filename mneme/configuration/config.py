"""The configuration of a run: one tree of settings, checked before anything starts.

Each package declares its own settings; this module puts them together, reads YAML and `key=value` overrides, and turns
what is wrong into one sentence that names the key, the value and the remedy.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml
from pydantic import ValidationError, field_validator

from mneme.configuration.hints import suggestions
from mneme.configuration.listing import Setting, settings_of, texts_of
from mneme.configuration.passwords import passwordless
from mneme.configuration.presets import read_preset
from mneme.configuration.records import RecordError, read_yaml, refuse_what_changes, same
from mneme.configuration.renamed import RENAMED, new_name
from mneme.controllers import hints_of
from mneme.distributed.config import ConfigError, ServiceConfig
from mneme.reporting.tracking.settings import TrackingSettings
from mneme.storage.paths import no_folder
from mneme.storage.settings import CheckpointSettings


class Config(ServiceConfig):
    """Everything that defines a run."""

    name: str | None = None
    """Name of the run and of its folder. Unset: the preset's name, the controller's kind, the date and the seed."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    tracking: TrackingSettings = TrackingSettings()

    if not TYPE_CHECKING:  # which take the fields for the signature

        def __init__(self, **settings: Any) -> None:
            """Check the settings.

            Raises:
                ConfigError: one sentence for each thing that is wrong.
            """
            try:
                super().__init__(**settings)
            except ValidationError as error:
                raise ConfigError("\n".join(dict.fromkeys(_sentence(detail) for detail in error.errors()))) from None

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str | None) -> str | None:
        if name is not None and (why := no_folder(name)):
            raise ValueError(f"name is {name!r}; {why}; choose another")
        return name

    def changed(self, section: str, **values: Any) -> Self:
        """This configuration with some settings of one section replaced.

        Raises:
            ConfigError: one is given under a name of old.
        """
        keys = [f"{section}.{name}" for name in values]
        if old := [new_name(key) for key in keys if key in RENAMED]:
            raise ConfigError("\n".join(old))
        return super().changed(section, **values)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries and lists; what stands in a free-form mapping is left as it is."""
        return {name: _plain(value) for name, value in self}

    def without_password(self) -> Self:
        """This configuration without the password that `tracking.uri` may hold, as every file and store keeps it."""
        return super().changed("tracking", uri=passwordless(self.tracking.uri))

    def as_recorded(self) -> "Config":
        """This configuration as it will be read back from the run's folder and its checkpoints, a password besides.

        Raises:
            ConfigError: a setting would change on the way.
        """
        tree = self.to_dict()
        try:
            refuse_what_changes(tree)
        except RecordError as error:
            raise ConfigError(str(error)) from None
        return parse_config(tree)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The defaults, changed by a YAML file, changed by `key=value` overrides.

    Raises:
        ConfigError: one sentence for each thing that is wrong.
    """
    return parse_config(overridden(read_preset(path) if path is not None else {}, overrides))


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A configuration, changed by `key=value` overrides.

    Raises:
        ConfigError: one sentence for each thing that is wrong.
    """
    tree = deepcopy(config.to_dict())
    controller = config.policy.controller
    for field in dataclasses.fields(controller):  # what another kind may not have, and this one has anyway
        if field.name != "kind" and getattr(controller, field.name) == field.default:
            del tree["policy"]["controller"][field.name]
    return parse_config(overridden(tree, overrides))


def difference(config: Config, other: Config) -> str | None:
    """The first setting in which two configurations differ, as `key=` and its value in `other`, not in `config`."""
    return next(_differences("", config.to_dict(), other.to_dict()), None)


def _differences(key: str, one: Any, other: Any) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in dict.fromkeys([*one, *other]):
            yield from _differences(f"{key}.{name}" if key else name, one.get(name), other.get(name))
    elif not same(one, other):
        yield f"{key}={other}, not {one}"


def overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A nested dictionary of settings, changed in place by `key=value` overrides.

    Raises:
        ConfigError: one cannot be read.
    """
    texts = {*texts_of(Config)} if overrides else set()
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                f"cannot read the override {override!r}; write it as key=value without spaces, such as seed=1"
            )
        insert(tree, key.strip(), _parse(override, text, key.strip() in texts))
    return tree


def parse_config(tree: Mapping[str, Any]) -> Config:
    """Check a nested dictionary.

    Raises:
        ConfigError: one sentence for each thing that is wrong.
    """
    return Config(**{str(key): value for key, value in tree.items()})


@cache
def settings() -> tuple[Setting, ...]:
    """Every setting there is, in the order of the tree; then what only some kinds of controllers have."""
    return tuple(settings_of(Config))


def _parse(override: str, text: str, verbatim: bool) -> Any:
    """The value of an override, read as a whole: what YAML would take for a comment belongs to it.

    A setting that is a text (`verbatim`) is what stands there, unless it is quoted or null.
    """
    if verbatim and not text.startswith(("'", '"')):
        return None if text in ("", "null") else text
    try:
        value = read_yaml(text)
        return text if _has_comment(text) else value
    except yaml.YAMLError:
        raise ConfigError(
            f"cannot read the value in {override!r}; write it as YAML, and quote special characters"
        ) from None


def _has_comment(text: str) -> bool:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    return "#" in (text if node is None else text[node.end_mark.index :])


def insert(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set what a dotted key names in a nested dictionary, in place.

    Raises:
        ConfigError: part of the key names something else than a section.
    """
    *parents, leaf = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"cannot set {key}: {parent} is {child!r}, not a section")
        tree = child
    tree[leaf] = value


def _sentence(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    value = detail.get("input")
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return "\n".join(_unknown(key, value))
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    message = detail["msg"].removeprefix("Input should be ")
    return f"{key} is {value!r}; it must be {message}"


def _unknown(key: str, value: Any) -> Iterator[str]:
    """A sentence for each setting that is given under a name which is not ours."""
    if isinstance(value, Mapping) and value:
        for name, child in value.items():
            yield from _unknown(f"{key}.{name}", child)
        return
    if key in RENAMED:
        yield new_name(key)
        return
    section, _, rest = key.partition(".")
    if kinds := [kind for setting in settings() if setting.key == key for kind in setting.kinds]:
        yield f"{key} is {value!r}, but is a setting of {', '.join(kinds)} alone"
        return
    if near := suggest(key):
        hint = f"did you mean {' or '.join(near)}?"
    elif section in Config.model_fields:
        hint = "see mneme train --help for all settings"
    else:
        of_task = "" if rest else f", and what the task itself takes is env.kwargs.{key}"
        hint = f"the sections are {', '.join(_sections())}{of_task}"
    yield f"unknown setting {key} (given {value!r}); {hint}"


def suggest(key: str) -> list[str]:
    """The settings and sections that may be meant by a name which is none."""
    return suggestions(key, dict.fromkeys([*(setting.key for setting in settings()), *_sections()]))


def _sections() -> list[str]:
    return [name for name, kind in hints_of(Config).items() if dataclasses.is_dataclass(kind)]
