"""Compiled sums come out the same to the bit wherever their arrays happen to lie."""

import ast
from pathlib import Path

import mneme.controllers.scans
from mneme.controllers.scans.machine_code import copy, dot

FOLDER = Path(mneme.controllers.scans.__file__).parent
SOURCES = [FOLDER / "machine_code.py", *sorted(FOLDER.rglob("numba.py"))]


def decorated(source: str, name: str) -> list[ast.FunctionDef]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return [f for f in functions if any(isinstance(d, ast.Name) and d.id == name for d in f.decorator_list)]


def writes(function: ast.FunctionDef) -> bool:
    """Whether it assigns to an element, or calls what might: anything but `range`, `len` and `dtype.type`."""
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            return True
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name not in ("range", "len", "type"):
                return True
    return False


def test_what_may_add_up_in_any_order_writes_nothing() -> None:
    found = [function for path in SOURCES for function in decorated(path.read_text(), "sums")]
    assert len(found) >= 2
    assert [function.name for function in found if writes(function)] == []


def test_writing_is_seen() -> None:
    source = "@sums\ndef both(x, y):\n    for i in range(len(x)):\n        total += x[i]\n        y[i] = x[i]\n"
    (function,) = decorated(source, "sums")
    assert writes(function)
    assert decorated(source, "compiled") == []


def test_nothing_else_may_add_up_in_any_order() -> None:
    """A loop that writes is made vectors of only where its arrays turn out to lie apart, which must change no sum."""
    assert dot.targetoptions["fastmath"] == {"contract", "reassoc", "nsz"}
    assert copy.targetoptions["fastmath"] == {"contract"}
    assert sum(path.read_text().count('"reassoc"') for path in SOURCES) == 1
