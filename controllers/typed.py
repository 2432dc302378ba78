"""Values that are of the type their name declares, wherever they come from: YAML, the command line or Python."""

import math
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np


class Settings:
    """Base of the classes of settings, which are frozen dataclasses: on construction every value is `typed`.

    A subclass names the section of the configuration that it is, unless it adds to another one; messages then give
    each setting its whole name. One with checks of its own calls this `__post_init__` first.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}
    _section: ClassVar[str]

    def __init_subclass__(cls, section: str | None = None) -> None:
        super().__init_subclass__()
        if section is not None:
            cls._section = section

    def __post_init__(self) -> None:
        for name, hint in hints_of(type(self)).items():
            object.__setattr__(self, name, typed(self.key(name), getattr(self, name), hint))

    @classmethod
    def key(cls, name: str) -> str:
        """The whole name of a setting in the configuration."""
        return f"{cls._section}.{name}"

    def fault(self, name: str, remedy: str) -> ValueError:
        """To be raised: what a setting is, and what it must be."""
        return ValueError(f"{self.key(name)} is {getattr(self, name)!r}; {remedy}")

    def at_least(self, least: float, *names: str) -> None:
        """Check settings that are numbers, or unset.

        Raises:
            ValueError: one is less.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise self.fault(name, f"it must be at least {least}")


def hints_of(settings: Any) -> dict[str, Any]:
    """The type of each setting of a class."""
    return _hints_of(settings)


@cache
def _hints_of(settings: Any) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(settings).items() if get_origin(hint) is not ClassVar}


def typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` says: bool, int, float, str, Literal, tuple, dict, a class of settings; or None too.

    Only what loses nothing is converted: numpy's scalars to Python's, whole floats to int, int to float, lists to
    tuples. What other types `hint` may be is not looked into.

    Raises:
        ValueError: it is of another type, or a float that is not finite; one sentence that begins with `name`.
    """
    if hint is Any:
        return value
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    origin, options = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union) and len(options) == 2 and NoneType in options:
        (hint,) = (option for option in options if option is not NoneType)
        return None if value is None else typed(name, value, hint)
    if origin is Literal:
        if not any(type(value) is type(option) and value == option for option in options):
            *first, last = map(repr, options)
            choice = f"{', '.join(first)} or {last}" if first else last
            raise ValueError(f"{name} is {value!r}; use {choice}")
        return value
    if origin is tuple and options[-1] is Ellipsis:
        if not isinstance(value, list | tuple | np.ndarray):
            raise ValueError(f"{name} is {value!r}; it must be a list, such as [a, b]")
        return tuple(typed(f"{name}[{i}]", entry, options[0]) for i, entry in enumerate(value))
    if origin is dict and options[0] is str:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"{name} is {value!r}; it must be a mapping whose keys are text")
        return {str(key): typed(f"{name}.{key}", entry, options[1]) for key, entry in value.items()}
    if isinstance(hint, type) and is_dataclass(hint) and not isinstance(value, hint):
        held = next(iter(hints_of(hint)))
        raise ValueError(f"{name} is {value!r}; it is a section: set what it holds, such as {name}.{held}")
    if not (isinstance(hint, type) and hint in _CONVERT):
        return value
    convert, what = _CONVERT[hint]
    converted = convert(value)
    if converted is None:
        raise ValueError(f"{name} is {value!r}; it must be {what}")
    if hint is float and not math.isfinite(converted):
        raise ValueError(f"{name} is {value!r}; it must be finite")
    return converted


def _bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _int(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value % 1:
        return None
    return int(value)


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _str(value: Any) -> str | None:
    return str(value) if isinstance(value, str) else None


_CONVERT: Mapping[Any, tuple[Callable[[Any], Any], str]] = {
    bool: (_bool, "true or false"),
    int: (_int, "a whole number"),
    float: (_float, "a number"),
    str: (_str, "text"),
}
