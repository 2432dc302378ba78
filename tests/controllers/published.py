"""mamba_ssm, the published implementation, as much of it as runs without CUDA: its modules and its pure references."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import pytest

Stubs = Mapping[str, Mapping[str, Any]]
"""What is in a module that stands in for another, by the other's name."""


@contextmanager
def mamba_ssm(stubs: Stubs) -> Iterator[None]:
    """Let `mamba_ssm.…` be imported inside, past its own __init__, which imports what needs CUDA.

    Skips the test where mamba_ssm, einops or triton, all of which it imports, is not installed.
    """
    specification = find_spec("mamba_ssm")
    if specification is None or not find_spec("einops") or not find_spec("triton"):
        pytest.skip("mamba_ssm, einops or triton is not installed; `make setup` installs them on Linux")
    modules = {"mamba_ssm": module_from_spec(specification)}
    for name, contents in stubs.items():
        modules[name] = ModuleType(name)
        vars(modules[name]).update(contents)
    before = dict(sys.modules)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name in modules or name.startswith("mamba_ssm")]:
            if name in before:
                sys.modules[name] = before[name]
            else:
                del sys.modules[name]


def module(name: str) -> Any:
    """A module of mamba_ssm, by its name below it."""
    return import_module(f"mamba_ssm.{name}")


SELECTIVE_SCAN: Stubs = {
    "selective_scan_cuda": {},
    "mamba_ssm.ops.triton.layer_norm": dict.fromkeys(
        ("_layer_norm_fwd", "RMSNorm", "layer_norm_fn", "rms_norm_fn"),
    ),
    "mamba_ssm.ops.triton.selective_state_update": {"selective_state_update": None},
}
"""For `ops.selective_scan_interface` and `modules.mamba_simple`."""

SSD: Stubs = {
    "mamba_ssm.ops.triton.ssd_combined": dict.fromkeys(
        ("mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined"),
    ),
}
"""For `modules.ssd_minimal` and, with more, for `modules.mamba2`."""
