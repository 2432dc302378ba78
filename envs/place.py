"""The position of an environment's lanes among all lanes of a run, and expressions in `env.kwargs` that use it.

A text in `env.kwargs` may hold whole-number arithmetic over `lane` and `worker` in braces, such as "{47110 + lane}" or
"logs/{worker}/{lane}".
"""

import ast
import difflib
import operator
import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Place(NamedTuple):
    """The first lane of a vector environment among all of the run, the worker it belongs to, and their randomness."""

    first_lane: int = 0
    worker: int = 0
    seed: tuple[int, ...] = (0,)  # of what is drawn from the process's generators before the first reset


_NAMES = ("lane", "worker")
_BRACES = re.compile(r"\{([^{}]*)\}")
_OPERATORS: dict[type[ast.operator], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_NEAR = 0.75


def speaks_of_lanes(value: Any) -> bool:
    """True if something in `env.kwargs` may differ from lane to lane."""
    if isinstance(value, Mapping):
        return speaks_of_lanes(_unquoted(value) or list(value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(speaks_of_lanes, value))
    return isinstance(value, str) and any(re.search(r"\blane\b", braces) for braces in _BRACES.findall(value))


def resolved(value: Any, lane: int, worker: int, name: str = "env.kwargs") -> Any:
    """`value` with what stands in braces worked out, inside mappings, lists and tuples too.

    A text that is one pair of braces becomes a number. YAML reads such a text without quotation marks as a mapping,
    which is taken for what was meant. Braces around anything else are left alone.

    Raises:
        ValueError: braces that seem to speak of lanes or workers, and cannot be worked out.
    """
    if isinstance(value, Mapping):
        unquoted = _unquoted(value)
        if unquoted is not None:
            return resolved(unquoted, lane, worker, name)
        return {key: resolved(child, lane, worker, f"{name}.{key}") for key, child in value.items()}
    if type(value) in (list, tuple):
        return type(value)(resolved(child, lane, worker, name) for child in value)
    if not isinstance(value, str):
        return value
    names = {"lane": lane, "worker": worker}
    whole = _BRACES.fullmatch(value)
    if whole:
        number = _worked_out(whole[1], names, value, name)
        return value if number is None else number

    def number_of(braces: re.Match[str]) -> str:
        number = _worked_out(braces[1], names, value, name)
        return braces[0] if number is None else str(number)

    return _BRACES.sub(number_of, value)


def _unquoted(value: Mapping[Any, Any]) -> str | None:
    """The text in braces that YAML took for a mapping of one key without a value, or None."""
    if len(value) != 1:
        return None
    ((key, child),) = value.items()
    if child is not None or not isinstance(key, str) or not any(re.search(rf"\b{name}\b", key) for name in _NAMES):
        return None
    return f"{{{key}}}"


def _worked_out(expression: str, names: Mapping[str, int], text: str, name: str) -> int | None:
    """The number, or None where the expression is none of ours: it names neither lane nor worker, nor nearly so."""
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except SyntaxError:
        tree = None
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} if tree is not None else set()
    alike = {word for word in used if difflib.get_close_matches(word.lower(), _NAMES, n=1, cutoff=_NEAR)}
    if not (alike or re.search(r"\b(lane|worker)\b", expression)):
        return None
    try:
        return _value(tree, names)
    except (KeyError, TypeError, ZeroDivisionError):
        raise ValueError(
            f"{name} is {text!r}, and what stands in its braces cannot be worked out; they hold whole numbers, lane, "
            f"worker, + - * // % and parentheses, such as {{47110 + lane}}"
        ) from None


def _value(node: ast.AST | None, names: Mapping[str, int]) -> int:
    if isinstance(node, ast.BinOp):
        return int(_OPERATORS[type(node.op)](_value(node.left, names), _value(node.right, names)))
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, names)
    raise TypeError
