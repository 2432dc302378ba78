"""GRU and LSTM in JAX, with the gates of Mneme's, as a scan that is as fast as XLA makes one on a CPU.

The product with the input is made for all steps at once, before the scan, and so is the gradient of the recurrent
weights, after the scan back: left to itself JAX would add it up step by step.

Axis letters: T time, B lanes, H hidden units, G gates.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from benchmarks import measurement as m
from benchmarks.peers.jax_core import Carry, Core, Parameters
from benchmarks.peers.jax_core import reset_to_zeros as _reset


class Cell(NamedTuple):
    """A recurrent cell, without its products; the first array that it carries is its output, each is [B, H]."""

    gates: int
    carry: int  # arrays that it carries
    update: Callable[[Array, Array, Carry], Carry]  # from what input and output before give to the gates, [B, G]


def _gru(from_x: Array, from_h: Array, carry: Carry) -> Carry:
    (h,) = carry
    x_r, x_z, x_n = jnp.split(from_x, 3, -1)
    h_r, h_z, h_n = jnp.split(from_h, 3, -1)
    n = jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n)
    return (n + jax.nn.sigmoid(x_z + h_z) * (h - n),)


def _lstm(from_x: Array, from_h: Array, carry: Carry) -> Carry:
    i, f, g, o = jnp.split(from_x + from_h, 4, -1)
    c = jax.nn.sigmoid(f) * carry[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _step(cell: Cell, w_HG: Array, b_G: Array, from_x_BG: Array, reset_B: Array, carry: Carry) -> Carry:
    """The carry after a step; where `reset_B` is true it starts from zeros."""
    carry = _reset(carry, reset_B)
    return cell.update(from_x_BG, carry[0] @ w_HG + b_G, carry)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(cell: Cell, w_HG: Array, b_G: Array, from_x_TBG: Array, reset_TB: Array, carry: Carry) -> Array:
    """The outputs [T, B, H] of as many steps."""

    def one(carry: Carry, inputs: tuple[Array, Array]) -> tuple[Carry, Array]:
        carry = _step(cell, w_HG, b_G, *inputs, carry)
        return carry, carry[0]

    return lax.scan(one, carry, (from_x_TBG, reset_TB))[1]


def _forward(
    cell: Cell, w_HG: Array, b_G: Array, from_x_TBG: Array, reset_TB: Array, carry: Carry
) -> tuple[Array, tuple[Any, ...]]:
    def one(carry: Carry, inputs: tuple[Array, Array]) -> tuple[Carry, tuple[Array, Carry, Array]]:
        from_x, reset = inputs
        carry = _reset(carry, reset)
        from_h = carry[0] @ w_HG + b_G
        after = cell.update(from_x, from_h, carry)
        return after, (after[0], carry, from_h)

    _, (y_TBH, before, from_h_TBG) = lax.scan(one, carry, (from_x_TBG, reset_TB))
    return y_TBH, (w_HG, from_x_TBG, reset_TB, before, from_h_TBG)


def _backward(cell: Cell, kept: tuple[Any, ...], dy_TBH: Array) -> tuple[Array | Carry | None, ...]:
    w_HG, from_x_TBG, reset_TB, before, from_h_TBG = kept

    def one(dcarry: Carry, inputs: tuple[Any, ...]) -> tuple[Carry, tuple[Array, Array]]:
        dy, from_x, reset, carry, from_h = inputs
        _, pull = jax.vjp(cell.update, from_x, from_h, carry)
        dfrom_x, dfrom_h, (dh, *rest) = pull((dcarry[0] + dy, *dcarry[1:]))
        return _reset((dh + dfrom_h @ w_HG.T, *rest), reset), (dfrom_x, dfrom_h)

    none = tuple(jnp.zeros_like(part_TBH[0]) for part_TBH in before)
    inputs = dy_TBH, from_x_TBG, reset_TB, before, from_h_TBG
    dcarry, (dfrom_x, dfrom_h) = lax.scan(one, none, inputs, reverse=True)
    dw_HG = jnp.einsum("tbh,tbg->hg", before[0], dfrom_h)
    return dw_HG, dfrom_h.sum((0, 1)), dfrom_x, None, dcarry


_scan.defvjp(_forward, _backward)


def _initial(kind: str, cell: Cell, key: Array, inputs: int, horizon: int) -> Parameters:
    hidden, keys = m.HIDDEN, jax.random.split(key, 3)
    bound, orthogonal = hidden**-0.5, jax.nn.initializers.orthogonal
    slowness = jnp.log(jax.random.uniform(keys[2], (hidden,), minval=1.0, maxval=horizon - 1.0))
    b_x = jnp.zeros((cell.gates, hidden)).at[1].set(slowness)
    recurrent = [orthogonal()(k, (hidden, hidden)) for k in jax.random.split(keys[1], cell.gates)]
    return {
        "w_x": jax.random.uniform(keys[0], (inputs, cell.gates * hidden), minval=-bound, maxval=bound),
        "b_x": (b_x.at[0].set(-slowness) if kind == "lstm" else b_x).reshape(-1),
        "w_h": jnp.concatenate(recurrent, -1),
        "b_h": jnp.zeros(cell.gates * hidden),
    }


def _core(kind: str, cell: Cell) -> Core:
    def step(p: Parameters, x_BD: Array, reset_B: Array, carry: Carry) -> tuple[Array, Carry]:
        carry = _step(cell, p["w_h"], p["b_h"], x_BD @ p["w_x"] + p["b_x"], reset_B, carry)
        return carry[0], carry

    def scan(p: Parameters, x_TBD: Array, reset_TB: Array, carry: Carry) -> Array:
        return _scan(cell, p["w_h"], p["b_h"], x_TBD @ p["w_x"] + p["b_x"], reset_TB, carry)

    def carry(lanes: int) -> Carry:
        return tuple(jnp.zeros((lanes, m.HIDDEN)) for _ in range(cell.carry))

    return Core(partial(_initial, kind, cell), carry, step, scan)


CORES = {"gru": _core("gru", Cell(3, 1, _gru)), "lstm": _core("lstm", Cell(4, 2, _lstm))}
