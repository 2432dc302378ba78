"""Free-form settings as text that reads back equal, in value and in type: YAML for people, JSON for checkpoints.

Both hold plain data alone, and reading them runs no code: to what safe YAML knows (texts, whole numbers, floats that
need not be finite, dates, bytes, sets, keys of any of these) two tags are added, for tuples and for numpy's numbers.
"""

import json
import re
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import yaml

_TUPLE, _SET, _NUMPY = "tag:yaml.org,2002:python/tuple", "tag:yaml.org,2002:set", "!numpy"
_YAML = "!yaml"  # the only key of a JSON object that holds, as YAML, what JSON does not
_NUMBERS = "?bhilqBHILQefd"  # numpy's scalars that are kept, by their letters
_FLOAT = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")  # YAML 1.1 takes 3e-3 for a text


class RecordError(ValueError):
    """Data that text cannot hold as they are; the message is for the user."""


class _Loader(yaml.SafeLoader):
    """Reads settings and records. A key that stands twice is refused, as one of its values would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands there twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


class _RecordLoader(_Loader):
    """Reads what a checkpoint holds: without aliases, with which a few lines stand for more than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "a record holds no aliases", self.peek_event().start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _read_numpy(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> np.generic:
    name, value = loader.construct_sequence(node)
    kind = np.dtype(str(name))
    if kind.char not in _NUMBERS or not isinstance(value, bool | int | float):
        raise yaml.YAMLError(f"{name} {value!r} is no number of numpy's")
    number: np.generic = kind.type(value)
    return number


def _read_tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


def _write_numpy(dumper: yaml.SafeDumper, number: np.generic) -> yaml.Node:
    if number.dtype.char not in _NUMBERS:
        raise yaml.representer.RepresenterError("cannot represent an object", number)
    return dumper.represent_sequence(_NUMPY, [number.dtype.name, number.item()], flow_style=True)


def _write_tuple(dumper: yaml.SafeDumper, items: tuple[Any, ...]) -> yaml.Node:
    return dumper.represent_sequence(_TUPLE, items, flow_style=True)


def _write_set(dumper: yaml.SafeDumper, items: set[Any]) -> yaml.Node:
    return dumper.represent_mapping(_SET, dict.fromkeys(sorted(items, key=repr)))  # always in one order


_Loader.add_constructor(_TUPLE, _read_tuple)
_Loader.add_constructor(_NUMPY, _read_numpy)
_Dumper.add_representer(tuple, _write_tuple)
_Dumper.add_representer(set, _write_set)
_Dumper.add_multi_representer(np.generic, _write_numpy)  # type: ignore[type-abstract]
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def read_yaml(text: str, loader: type[yaml.SafeLoader] = _Loader) -> Any:
    """The data that a YAML text of settings or records describes.

    Raises:
        yaml.YAMLError: it is not YAML, or asks for more than plain data.
    """
    try:
        return yaml.load(text, Loader=loader)
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None  # such as the 31st of February


def write_yaml(data: Any) -> str:
    """The YAML of plain data, in ASCII; `read_yaml` gives them back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120)


def to_json(data: Any) -> Any:
    """`data` as JSON holds them; what it would change is put into text, the smallest part that does it."""
    if data is None or type(data) in (bool, int, str) or (type(data) is float and np.isfinite(data)):
        return data
    if type(data) is list:
        return [to_json(item) for item in data]
    if type(data) is dict and _YAML not in data and all(type(key) is str for key in data):
        return {key: to_json(item) for key, item in data.items()}
    return {_YAML: write_yaml(data)}


def from_json(data: Any) -> Any:
    """The inverse of `to_json`.

    Raises:
        yaml.YAMLError: a text in it is damaged.
    """
    if isinstance(data, list):
        return [from_json(item) for item in data]
    if isinstance(data, dict):
        if data.keys() == {_YAML}:
            return read_yaml(str(data[_YAML]), _RecordLoader)
        return {key: from_json(item) for key, item in data.items()}
    return data


def refuse_what_changes(tree: dict[str, Any]) -> None:
    """See that a tree of settings reads back equal from both forms.

    Raises:
        RecordError: it does not; the first part of it that is at fault is named.
    """
    try:
        fault = None if _kept(tree) else next(_faults("", tree))
    except RecursionError:
        raise RecordError("a setting holds itself, which no record can; give plain data") from None
    if fault is not None:
        key, value = fault
        raise RecordError(
            f"{key} is {value!r}, a {type(value).__name__}, which would not read back equal from a checkpoint; give "
            f"plain data: texts, numbers, booleans, dates, and lists, tuples, sets and mappings of them"
        )


def _faults(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The smallest parts of what is not kept."""
    parts: list[tuple[str, Any]] = []
    if type(value) is dict:
        parts = [(f"a key of {key}", name) for name in value] + [(f"{key}.{name}", value[name]) for name in value]
    elif type(value) in (list, tuple):
        parts = [(f"{key}[{i}]", item) for i, item in enumerate(value)]
    elif type(value) is set:
        parts = [(f"an element of {key}", item) for item in value]
    for name, part in parts:
        if not _kept(part):
            yield from _faults(name.removeprefix("."), part)
    yield key, value


def _kept(value: Any) -> bool:
    try:
        from_file, from_checkpoint = read_yaml(write_yaml(value)), from_json(json.loads(json.dumps(to_json(value))))
        return same(value, from_file) and same(value, from_checkpoint)
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, AttributeError):
        return False


def same(a: Any, b: Any) -> bool:
    """True if plain data are equal in value and type, at any depth; NaN is NaN, and -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, set):
        return same(sorted(a, key=repr), sorted(b, key=repr))
    return repr(a) == repr(b)
