"""Every setting there is, with its type, its default and its explanation, as pydantic reads them from the classes."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter

from mneme.controllers import KINDS, ControllerSettings, OwnSettings, Settings, hints_of


class Setting(NamedTuple):
    """One leaf of the configuration, for help and for finding near misses."""

    key: str  # dotted
    type: str
    default: Any
    help: str
    kinds: tuple[str, ...] = ()  # of controllers that have it; all, where there are none


def settings_of(config: type[BaseModel]) -> Iterator[Setting]:
    """The settings of a configuration in the order of the tree; then what only some kinds of controllers have."""
    schema = config.model_json_schema()
    yield from _leaves(schema, schema, "")
    kinds: dict[Setting, list[str]] = {}
    common = {field.name for field in dataclasses.fields(ControllerSettings)}
    for name, kind in {**KINDS, "module:Class": OwnSettings}.items():
        for setting in _of_kind(kind):
            if setting.key not in common:
                kinds.setdefault(setting._replace(key=ControllerSettings.key(setting.key)), []).append(name)
    for setting, names in kinds.items():
        yield setting._replace(kinds=tuple(names))


def texts_of(section: Any, prefix: str = "") -> Iterator[str]:
    """The keys of the settings that are texts, of a configuration or a part of it; from the types alone, which is soon
    done."""
    for name, hint in hints_of(section).items():
        if hint is ControllerSettings:
            for kind in (ControllerSettings, *KINDS.values(), OwnSettings):
                yield from texts_of(kind, f"{prefix}{name}.")
        elif dataclasses.is_dataclass(hint):
            yield from texts_of(hint, f"{prefix}{name}.")
        elif hint in (str, str | None):
            yield f"{prefix}{name}"


def settings_in(section: type[Settings]) -> Iterator[Setting]:
    """The settings of a class that is no part of a run's configuration, by their whole names."""
    schema = TypeAdapter(section).json_schema()
    for setting in _leaves(schema, schema, ""):
        yield setting._replace(key=section.key(setting.key))


def _of_kind(kind: type[ControllerSettings]) -> Iterator[Setting]:
    """Explained where they are declared, as pydantic knows no explanations that a class inherits."""
    schemas = [_schema(base) for base in kind.__mro__ if dataclasses.is_dataclass(base)]
    for setting in _leaves(schemas[0], schemas[0], ""):
        explained = (schema["properties"].get(setting.key, {}).get("description") for schema in schemas)
        yield setting._replace(help=next(filter(None, explained), ""))


@cache  # as the kinds have most of their classes in common, and each takes milliseconds
def _schema(base: type) -> Mapping[str, Any]:
    return TypeAdapter(base).json_schema()


def _leaves(node: Mapping[str, Any], root: Mapping[str, Any], prefix: str) -> Iterator[Setting]:
    for name, child in node["properties"].items():
        key = f"{prefix}{name}"
        target = _deref(child, root)
        if "properties" in target:
            yield from _leaves(target, root, f"{key}.")
        else:
            yield Setting(key, _type_name(child, root), child.get("default"), child.get("description", ""))


def _deref(node: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _type_name(node: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    node = _deref(node, root)
    if "enum" in node:
        return " | ".join(map(str, node["enum"]))
    if "anyOf" in node:
        return " | ".join(_type_name(option, root) for option in node["anyOf"] if option.get("type") != "null")
    return {
        "integer": "int",
        "number": "float",
        "boolean": "bool",
        "string": "text",
        "array": "list",
        "object": "mapping",
    }.get(node.get("type", ""), "any")
