"""Common parts of the Triton kernels of gated recurrences: dividing the work, and keeping the programs in step.

The product of the inputs with all steps is one matrix product before the kernel; the gradients of the weights are two
after it. What remains is h[t] U at every step, a product with few rows that is limited by reading U. Starting a kernel
takes longer than a step, so that one launch does all T steps.

A program has a block of environments and a block of units, for all steps. It needs every unit of its environments, so
that programs pass states on through the output of the scan: each writes its units of h[t], increments a counter, and
waits at the next step until all programs of the same environments have. No buffer is written twice, so that one wait a
step is enough. A program that has all units does not wait. U is read from the L2 cache at every step, in blocks along
its contiguous axis: an SM's 228 KB hold it in float32 up to 128 units only, and then leave no room for the pipeline.

Programs take their numbers from a counter, in the order of their environments. So the programs that one waits for have
started or are next to start, and no launch can deadlock, however many programs it has, if the programs of one block of
environments fit on the device at once. Where they do not, and in Triton's interpreter, which runs one program after
another, there is a launch for each step, and no waiting.

`tiles` chooses the division for which reading takes the least time by an estimate for an H200 (132 SMs, an L2 of about
5.5 TB/s), here for a GRU in float32. cuDNN, at two launches a step, is thought to take about 8 us where there are few
environments. None of this has been measured yet: `python -m benchmarks.gpu` does.

    B      H     forward: environments x units, programs, us a step    backward
    64     128   16 x 128     4     1.8                                16 x 128     4     2.0
    1024   128   32 x 128    32     1.9                                32 x 128    32     2.2
    64     512   32 x 16     64     3.9                                16 x 32     64     5.4
    256    512   64 x 32     64     5.8                                32 x 64     64     8.9
    1024   512   128 x 32   128    12.7                                64 x 64    128    20.3

What the estimate leaves out are registers. Compiled for Hopper by Triton 3.6, the kernels spill at LARGEST: forward up
to 24 bytes a thread in TF32 and 250 in float32, backward 40 to 540 and 480 to 1,112. At half of it none is spilled in
TF32, and in float32 at most 200. `python -m benchmarks.gpu` times tiles of both sizes.

Axis letters: T steps, B environments, H units.
"""

from itertools import product
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = (16, 32, 64, 128)  # 16 is the least of a tensor core's product; from 64 on Hopper's own instruction is used
UNITS = (16, 32, 64, 128)
LARGEST = 4096  # lanes x units: with 8 warps, 16 elements a thread of each of a dozen arrays, for 255 registers
STAGE_BYTES = 72 * 1024  # of tiles for one block of the product's inner axis; 3 are under way in an SM's 227 KB
COUNTER_STRIDE = tl.constexpr(32)  # int32s between two blocks' counters: a cache line each
KB_PER_MICROSECOND, SM_KB_PER_MICROSECOND = 5500.0, 112.0  # what all SMs together read from L2, and what one can
WAIT = 2.0  # microseconds: stores, an atomic addition and a read of it, one after another through L2


class Tiles(NamedTuple):
    """The division of environments ("lanes") and units among the programs of one launch."""

    lanes: int  # of a program
    units: int  # of a program
    lane_blocks: int
    columns: int  # programs that share a block of lanes
    inner: int  # of the product's inner axis at a time
    span: int  # steps of one launch
    warps: int  # of a program

    def constants(self) -> dict[str, int]:
        """The constants for which the kernels are compiled."""
        return {"COLUMNS": self.columns, "BL": self.lanes, "BU": self.units, "BK": self.inner}


def tiles(steps: int, batch: int, hidden: int, inner: int, products: int, itemsize: int, processors: int) -> Tiles:
    """The division that the estimate above finds fastest; the arguments are those of `ranked_tiles`."""
    return ranked_tiles(steps, batch, hidden, inner, products, itemsize, processors)[0]


def ranked_tiles(
    steps: int, batch: int, hidden: int, inner: int, products: int, itemsize: int, processors: int
) -> list[Tiles]:
    """Every division, the fastest first as far as the estimate knows.

    Args:
        steps: T.
        batch: B.
        hidden: H.
        inner: length of the inner axis of the recurrent product.
        products: values of the product for each unit.
        itemsize: bytes of a value.
        processors: programs that run at the same time for certain.
    """

    def microseconds(tile: tuple[int, int]) -> float:
        lanes, units = tile
        columns = triton.cdiv(hidden, units)
        programs = triton.cdiv(batch, lanes) * columns
        kilobytes = inner * (lanes + products * units) * itemsize / 1000
        reading = kilobytes / min(SM_KB_PER_MICROSECOND, KB_PER_MICROSECOND / max(1, min(programs, processors)))
        return triton.cdiv(programs, processors) * (reading + (WAIT if columns > 1 else 0.0))

    def divided(tile: tuple[int, int]) -> Tiles:
        lanes, units = tile
        columns = triton.cdiv(hidden, units)
        bytes_of_one = (lanes + products * units) * itemsize
        block = next(size for size in (64, 32, 16) if size * bytes_of_one <= STAGE_BYTES)
        span = steps if columns <= processors else 1
        return Tiles(lanes, units, triton.cdiv(batch, lanes), columns, block, span, 4 if lanes * units <= 1024 else 8)

    possible = [tile for tile in product(LANES, UNITS) if tile[0] * tile[1] <= LARGEST]
    return [divided(tile) for tile in sorted(possible, key=microseconds)]


def processors(device: torch.device) -> int:
    """The number of programs that run at once: one for each SM, or a single one in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _precision(dtype: torch.dtype) -> str:
    """Precision of products of float32: TF32 if torch's own may use it, else three passes that restore float32."""
    if dtype == torch.float64:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def to_be_summed(d_BH: Tensor) -> Tensor:
    """A contiguous copy of the type in which sums are computed."""
    dtype = torch.float64 if d_BH.dtype == torch.float64 else torch.float32
    return d_BH.to(dtype, copy=True, memory_format=torch.contiguous_format)


def launch(
    kernel: Any,
    cut: Tiles,
    steps: int,
    tensors: tuple[Tensor, ...],
    sizes: tuple[int, ...],
    *,
    back: bool = False,
    **constants: Any,
) -> None:
    """Run a kernel over all steps, from the last one if `back`.

    The kernel receives the tensors, counters at zero (of the programs that started, then of each block's arrivals), the
    first step and the one after the last, and the sizes.
    """
    first = tensors[0]
    spans = [(start, min(start + cut.span, steps)) for start in range(0, steps, cut.span)]
    with torch.cuda.device_of(first):
        for start, stop in reversed(spans) if back else spans:
            counters = first.new_zeros((1 + cut.lane_blocks) * COUNTER_STRIDE.value, dtype=torch.int32)
            kernel[cut.lane_blocks * cut.columns,](
                *tensors,
                counters,
                start,
                stop,
                *sizes,
                PRECISION=_precision(first.dtype),
                **cut.constants(),
                num_warps=cut.warps,
                enable_fp_fusion=True,
                **constants,
            )


def split_at_reset(d_BH: Tensor, reset_B: Tensor, stop_B: Tensor) -> tuple[Tensor, Tensor]:
    """Split the gradient [B, H] of the state before a step between the incoming state and the initial state [H]."""
    return d_BH.masked_fill(stop_B.unsqueeze(1), 0), d_BH.masked_fill(~reset_B.unsqueeze(1), 0).sum(0)


@triton.jit
def take_place(counters_ptr, B, H: tl.constexpr, COLUMNS: tl.constexpr, BL: tl.constexpr, BU: tl.constexpr):
    """This program's block of lanes, its lanes [BL] and units [BU], and which of those there are."""
    number = tl.atomic_add(counters_ptr, 1)
    block = number // COLUMNS
    lanes = block * BL + tl.arange(0, BL)
    units = (number % COLUMNS) * BU + tl.arange(0, BU)
    return block, lanes, units, lanes < B, units < H


@triton.jit
def arrive(counter_ptr, COLUMNS: tl.constexpr):
    """Publish what this program stored to the others of its environments."""
    tl.debug_barrier()  # all threads have stored
    if COLUMNS > 1:
        tl.atomic_add(counter_ptr, 1, sem="release")


@triton.jit
def wait(counter_ptr, steps, COLUMNS: tl.constexpr):
    """Wait until all programs of these environments have arrived `steps` times in this launch."""
    if COLUMNS > 1:
        while tl.atomic_add(counter_ptr, 0, sem="acquire") < steps * COLUMNS:
            pass


@triton.jit
def load_states(states_ptr, initial_ptr, reset, lanes, lane_there, k, H: tl.constexpr):
    """Units `k` [BK] of the states before a step, [BL, BK], past the cache that other programs' stores do not reach."""
    there = lane_there[:, None] & (k < H)[None, :]
    h_k = tl.load(states_ptr + lanes[:, None] * H + k[None, :], mask=there, other=0, cache_modifier=".cg")
    return tl.where(reset, tl.load(initial_ptr + k, mask=k < H, other=0)[None, :], h_k)


@triton.jit
def through_gates(
    dh,
    d_ptr,
    weights_ptr,
    lanes,
    lane_there,
    units,
    unit_there,
    STRIDE: tl.constexpr,
    INNER: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dh [BL, BU] and what a step's gradients d [B, INNER of STRIDE] bring back through weights [H, INNER]."""
    for first in range(0, INNER, BK):
        k = first + tl.arange(0, BK)
        d_there = lane_there[:, None] & (k < INNER)[None, :]
        d_k = tl.load(d_ptr + lanes[:, None] * STRIDE + k[None, :], mask=d_there, other=0, cache_modifier=".cg")
        u_there = (k < INNER)[:, None] & unit_there[None, :]
        u_k = tl.load(weights_ptr + k[:, None] + units[None, :] * INNER, mask=u_there, other=0)
        dh = tl.dot(d_k, u_k, dh, input_precision=PRECISION, out_dtype=dh.dtype)
    return dh


@triton.jit
def plus(a, b):
    """a + b, for reductions."""
    return a + b


@triton.jit
def sigmoid(a):
    """1 / (1 + exp(-a))."""
    return 1 / (1 + tl.exp(-a))


@triton.jit
def tanh(a):
    """The hyperbolic tangent, of the sigmoid."""
    return 2 * sigmoid(2 * a) - 1
