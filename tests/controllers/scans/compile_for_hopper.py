"""Compile our kernels with a loop over time for an H100 or H200, which needs no GPU: what runs interpreted may not.

A program of its own, as Triton decides once in a process whether it interprets. Prints a line of JSON a kernel.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mneme.controllers.scans.gru import triton as triton_gru
from mneme.controllers.scans.linear import triton as triton_linear
from mneme.controllers.scans.lstm import triton as triton_lstm
from mneme.controllers.scans.persistent import tiles
from mneme.controllers.scans.selective import triton as triton_selective

H200 = GPUTarget("cuda", 90, 32)
STEPS, LANES, UNITS, PROCESSORS, FLOAT = 128, 1024, 512, 132, 4


def main() -> None:
    for module, gates in ((triton_gru, 3), (triton_lstm, 4)):
        for kernel, inner, products in (
            (module._forward_kernel, UNITS, gates),
            (module._backward_kernel, gates * UNITS, 1),
        ):
            cut = tiles(STEPS, LANES, UNITS, inner, products, FLOAT, PROCESSORS)
            constants = {"H": UNITS, "KEEP": True, "PRECISION": "tf32x3", **cut.constants()}
            _compile(kernel, constants, cut.warps)
    for states in (16, 128):
        block = {"ACC": tl.float32, "BN": states, "BI": triton_selective.BLOCK_I}
        for kernel in (triton_selective._forward_kernel, triton_selective._backward_kernel):
            _compile(kernel, block, triton_selective.warps(states))
    block = {"ACC": tl.float32, "BLOCK_T": triton_linear.BLOCK_T, "BLOCK_C": triton_linear.BLOCK_C}
    for kernel in (triton_linear._forward_kernel, triton_linear._backward_kernel):
        _compile(kernel, block, 4)


def _compile(kernel: Any, constants: Mapping[str, object], warps: int) -> None:
    types = {parameter.name: _type(parameter.name, constants) for parameter in kernel.params}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind[0] == "*"}
    used = {name: value for name, value in constants.items() if name in types}
    source = ASTSource(kernel, types, used, aligned)
    compiled = triton.compile(source, target=H200, options={"num_warps": warps, "enable_fp_fusion": True})
    report = {
        "kernel": f"{kernel.fn.__module__}.{kernel.__name__}",
        "shared_bytes": compiled.metadata.shared,
        "spilled_bytes": _spilled(compiled.asm["cubin"]),
    }
    print(json.dumps(report))


def _spilled(cubin: bytes) -> int:
    """Bytes of each thread that have no room in its 255 registers, as the tool says that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    (stack,) = re.findall(r"STACK:(\d+)", said)
    return int(stack)


def _type(name: str, constants: Mapping[str, object]) -> str:
    if name in constants:
        return "constexpr"
    if "_" not in name:
        return "i32"
    return {"reset": "*i1", "stop": "*i1", "counters": "*i32"}.get(name.partition("_")[0], "*fp32")


if __name__ == "__main__":
    main()
