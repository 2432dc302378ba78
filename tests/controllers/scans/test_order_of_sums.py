"""Compiled sums come out the same to the bit wherever their arrays happen to lie."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mneme.controllers.scans
import mneme.learner
from mneme.controllers.scans.machine_code import copy, dot

FOLDER = Path(mneme.controllers.scans.__file__).parent
NUMBA = [path for folder in (FOLDER, Path(mneme.learner.__file__).parent) for path in sorted(folder.rglob("numba.py"))]
SOURCES = [FOLDER / "machine_code.py", FOLDER / "gated.py", FOLDER / "products.py", *NUMBA]


def decorated(source: str, name: str) -> list[ast.FunctionDef]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return [f for f in functions if any(isinstance(d, ast.Name) and d.id == name for d in f.decorator_list)]


def writes(function: ast.FunctionDef) -> bool:
    """Whether it assigns to an element, or calls what might: anything but `range`, `len`, `fma` and `dtype.type`."""
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            return True
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name not in ("range", "len", "type", "fma"):
                return True
    return False


def test_what_may_add_up_in_any_order_writes_nothing() -> None:
    found = [function for path in SOURCES for function in decorated(path.read_text(), "sums")]
    assert len(found) >= 2
    assert [function.name for function in found if writes(function)] == []


def sums_of_products(source: str) -> list[str]:
    """Sums of two products in what is compiled."""

    def product(node: ast.AST) -> bool:
        while isinstance(node, ast.UnaryOp):
            node = node.operand
        return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)

    functions = [f for name in ("compiled", "sums", "kernel") for f in decorated(source, name)]
    nodes = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.BinOp)]
    added = [node for node in nodes if isinstance(node.op, (ast.Add, ast.Sub))]
    return [ast.unparse(node) for node in added if product(node.left) and product(node.right)]


def test_no_sum_of_two_products_is_left_to_the_compiler() -> None:
    """Either product may lose its rounding, and which one differs between compiling and finding it compiled."""
    assert [found for path in SOURCES for found in sums_of_products(path.read_text())] == []
    assert sums_of_products("@compiled\ndef f(a, b):\n    return a * b - -(b * a)\n") == ["a * b - -(b * a)"]


RUN = """
import sys, torch
from torch import Generator
from mneme.controllers import ControllerSettings, build_controller
generator = Generator().manual_seed(0)
controller = build_controller(ControllerSettings(kind=sys.argv[1], hidden_size=24), 5, 9, generator)
x = torch.randn(9, 3, 5, generator=generator)
reset = torch.rand(9, 3, generator=generator) < 0.2
y, last = controller.scan(x, reset, controller.initial_carry(3))
found = [y, *last.values(), *torch.autograd.grad(y.square().sum(), list(controller.parameters()), allow_unused=True)]
print([value.double().sum().item() for value in found if value is not None])
"""


@pytest.mark.parametrize(
    "kind",
    [
        "lstm",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("gru", "lru", "mamba", "mamba2", "mingru", "pseudo_mamba")),
    ],
)
def test_the_process_that_compiles_finds_what_the_next_one_finds(kind: str, tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", RUN, kind], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert first.stdout == second.stdout and first.stdout.startswith("[")


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
