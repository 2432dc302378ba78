"""State-space duality by the Triton kernels of the package mamba_ssm (Dao & Gu 2024, its published implementation).

    h[t] = exp(-rate dt[t]) h[t-1] + dt[t] x[t] B[t]^T        y[t] = h[t] C[t]

Its kernels take an index for every step, `seq_idx`, and pass nothing between steps whose indices differ. The index is
the number of resets so far. The incoming state belongs to index 0, so that a reset at the first step discards it.
Outputs, last state and all gradients are those of `scans.ssd.torch.chunked_scan` for any length, as the tests check.
What the kernels cannot do, the PyTorch form does:

- After a reset they start from zeros, so that a learned initial state is impossible.
- They have no float64.
- Products of float32 are rounded to TF32, whatever torch allows, unless TRITON_F32_DEFAULT is tf32x3 or ieee before
  anything is compiled. See `rounds_as_allowed`.

Gradients are summed with atomic additions, so that they differ in the last bits from run to run, unless
torch.use_deterministic_algorithms(True) was called before the first scan.

Axis letters: T steps, B environments, H heads, P head size, N state size.
"""

import os
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from threading import Lock
from typing import Any

import torch
from torch import Tensor

CHUNK = 64  # steps at least: the kernels' tiles are of 32 to 128
MOST_CHUNKS = 65535  # of all lanes together: what a launch has room for
_importing = Lock()


def rounds_as_allowed(dtype: torch.dtype) -> bool:
    """True if the kernels round products of this type no more than torch's own products may be rounded."""
    if dtype == torch.float32:
        precise = os.environ.get("TRITON_F32_DEFAULT") in ("ieee", "tf32x3")
        return precise or torch.backends.cuda.matmul.allow_tf32
    return dtype in (torch.float16, torch.bfloat16)


def mamba_ssm_scan(
    x_TBHP: Tensor,
    dt_TBH: Tensor,
    rate_H: Tensor,
    write_TBN: Tensor,
    read_TBN: Tensor,
    reset_TB: Tensor,
    h_BHPN: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """`ssd_scan` of x dt with the log decays -rate dt, and zeros for the initial state.

    Steps' lengths and rates are positive. `chunk` is taken as a lower bound.

    Raises:
        ValueError: there are more chunks than a launch has room for.
    """
    (T, B), chunk = reset_TB.shape, max(chunk, CHUNK)
    if (chunks := B * -(-T // chunk)) > MOST_CHUNKS:
        raise ValueError(
            f"{B} lanes of {T} steps are {chunks} chunks of {chunk} steps, but mamba_ssm's kernels take {MOST_CHUNKS}; "
            f"use more minibatches, or policy.controller.backend=torch"
        )
    y_BTHP, last_BHPN = _kernels().mamba_chunk_scan_combined(
        x_TBHP.transpose(0, 1),
        dt_TBH.transpose(0, 1),
        -rate_H,
        write_TBN.transpose(0, 1).unsqueeze(2),
        read_TBN.transpose(0, 1).unsqueeze(2),
        chunk,
        initial_states=h_BHPN,
        seq_idx=reset_TB.t().cumsum(1, dtype=torch.int32),
        return_final_states=True,
    )
    return y_BTHP.transpose(0, 1), last_BHPN.to(h_BHPN.dtype)


@cache
def _kernels() -> Any:
    """The module that has them, without its package's __init__, which wants CUDA extensions and language models."""
    name = "mamba_ssm.ops.triton.ssd_combined"
    with _importing:
        if "mamba_ssm" in sys.modules:
            return import_module(name)
        specification = find_spec("mamba_ssm")
        assert specification is not None, "a backend is chosen where its package is installed"
        sys.modules["mamba_ssm"] = module_from_spec(specification)
        try:
            return import_module(name)
        finally:
            del sys.modules["mamba_ssm"]  # whoever imports it gets all of it
