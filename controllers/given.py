"""Controllers that are given as classes, which other processes may not be able to import."""

import sys
from collections.abc import Mapping
from itertools import count
from operator import attrgetter
from typing import Any

import cloudpickle

from mneme.controllers.controller import Controller
from mneme.controllers.settings import ControllerSettings

_given: dict[str, type[Controller]] = {}  # by kind; of this process


def kind_of(controller: type[Controller]) -> str:
    """The kind, `module:Class`, by which settings name a class, in this process and in those that are sent `pickled`.

    Raises:
        ValueError: it is not a subclass of `Controller`.
    """
    if not (isinstance(controller, type) and issubclass(controller, Controller)):
        raise ValueError(
            f"the controller is given as {controller!r}; give a kind such as gru, or a subclass of Controller"
        )
    kind = plain = f"{controller.__module__}:{controller.__qualname__}"
    for number in count(2):
        if _given.get(kind) is controller or (
            kind not in _given and _imported(kind) is controller and importable(kind)
        ):
            return kind
        if kind not in _given and (kind != plain or not importable(kind)):
            _given[kind] = controller
            return kind
        kind = f"{plain}#{number}"  # another class has that name
    raise AssertionError("numbers never end")


def importable(kind: str) -> bool:
    """True if any process can import this kind; modules are not imported to find out."""
    module = kind.partition(":")[0]
    if kind in _given or module == "__main__":
        return False
    return module not in sys.modules or _imported(kind) is not None


def _imported(kind: str) -> Any:
    """The object that an imported module holds under the name in a kind, or None."""
    module, _, name = kind.partition(":")
    try:
        return attrgetter(name)(sys.modules[module])
    except (KeyError, AttributeError):
        return None


def given(kind: str) -> type[Controller] | None:
    """A class that was given to this process."""
    return _given.get(kind)


def pickled(kind: str) -> dict[str, bytes]:
    """The code that another process needs for `take` besides the kind; empty if it needs none or none can be sent."""
    code = _code(kind)
    return {kind: code} if isinstance(code, bytes) else {}


def check_sendable(kind: str) -> None:
    """Refuse a class that only this process can have.

    Raises:
        ValueError: one sentence.
    """
    if isinstance(error := _code(kind), Exception):
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{ControllerSettings.key('kind')} is {kind!r}, whose code cannot be sent to other processes ({reason}); "
            f"put it into a module of its own, or train without Ray: --local"
        )


def _code(kind: str) -> bytes | Exception | None:
    """A class, pickled with all of the code that no other process can import; None where it need not be."""
    if ":" not in kind or importable(kind):
        return None
    module, _, name = kind.partition(":")
    try:
        code: bytes = cloudpickle.dumps(_given.get(kind) or attrgetter(name)(sys.modules[module]))
        return code
    except Exception as error:
        return error


def take(classes: Mapping[str, bytes]) -> None:
    """Know the classes that another process has pickled."""
    for kind, code in classes.items():
        if kind not in _given:
            _given[kind] = cloudpickle.loads(code)
