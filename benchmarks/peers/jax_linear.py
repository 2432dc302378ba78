"""minGRU, LRU and Mamba-2 in JAX, with Mneme's blocks around them.

Their recurrences are `lax.scan`. On a CPU `associative_scan`, which passes over everything many times, makes 0.87
to 0.94 (minGRU) and 0.72 to 0.74 (LRU) times as many steps per second of the processor. Autodiff would keep more than
it needs: as the gradient of a linear recurrence is one that runs back, it is made by the same scan.

Axis letters: T time, B lanes, D input features, H hidden units, N states, C convolved channels, I inner features.
"""

from collections.abc import Callable
from math import gcd

import jax
import jax.numpy as jnp
from jax import Array, lax

from benchmarks import measurement as m
from benchmarks.peers.jax_core import Carry, Core, Parameters, reset_to_zeros

NORM_EPSILON = 1e-5
MAX_PHASE = jnp.pi / 10
STATES, TAPS, HEAD, INNER = 16, 4, 32, 2 * m.HIDDEN  # of Mamba-2
CHUNK = 64

_Parts = tuple[Array, ...]  # a real array, or the real and imaginary parts of one
_orthogonal = jax.nn.initializers.orthogonal()


def _times(a: _Parts, b: _Parts) -> _Parts:
    if len(a) == 1:
        return (a[0] * b[0],)
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _plus(a: _Parts, b: _Parts) -> _Parts:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _conjugate(a: _Parts) -> _Parts:
    return a[0], *(-x for x in a[1:])


def _running(a: _Parts, b: _Parts, reverse: bool = False) -> _Parts:
    def one(h: _Parts, now: tuple[_Parts, _Parts]) -> tuple[_Parts, _Parts]:
        h = _plus(_times(now[0], h), now[1])
        return h, h

    return lax.scan(one, tuple(jnp.zeros_like(x[0]) for x in b), (a, b), reverse=reverse)[1]


@jax.custom_vjp
def recurrence(a: _Parts, b: _Parts) -> _Parts:
    """h_t = a_t h_(t-1) + b_t, over the first axis, from zero."""
    return _running(a, b)


def _forward(a: _Parts, b: _Parts) -> tuple[_Parts, tuple[_Parts, _Parts]]:
    h = _running(a, b)
    return h, (a, h)


def _backward(kept: tuple[_Parts, _Parts], dh: _Parts) -> tuple[_Parts, _Parts]:
    a, h = kept
    after = tuple(jnp.concatenate([x[1:], jnp.zeros_like(x[:1])]) for x in _conjugate(a))
    before = tuple(jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]]) for x in _conjugate(h))
    db = _running(after, dh, reverse=True)
    return _times(db, before), db


recurrence.defvjp(_forward, _backward)


def _states(a: _Parts, b: _Parts, reset_TB: Array, h: _Parts) -> _Parts:
    """The states [T, B, ...] of a recurrence that starts from h, and from zero at resets."""
    kept = jnp.where(reset_TB.reshape(*reset_TB.shape, *(1,) * (b[0].ndim - 2)), 0.0, 1.0)
    a = tuple(x * kept for x in a)
    first = _plus(tuple(x[0] for x in b), _times(tuple(x[0] for x in a), h))
    return recurrence(a, tuple(x.at[0].set(y) for x, y in zip(b, first, strict=True)))


def _standardized(x: Array) -> Array:
    return jax.nn.standardize(x, epsilon=NORM_EPSILON)


def _linear(key: Array, inputs: int, outputs: int) -> Array:
    return _orthogonal(key, (inputs, outputs))


def _time_constants(key: Array, horizon: int) -> Array:
    return jnp.log(jax.random.uniform(key, (m.HIDDEN,), minval=1.0, maxval=horizon - 1.0))


def _around(p: Parameters, x: Array, mixed: Array) -> Array:
    """The residual block, from its input and its mixer's output."""
    value, gate = jnp.split(jax.nn.gelu(mixed, approximate=False) @ p["w_mix"] + p["b_mix"], 2, -1)
    return x + value * jax.nn.sigmoid(gate)


def _entrance(p: Parameters, x: Array) -> tuple[Array, Array]:
    """The stream, and what a mixer reads of it."""
    x = x @ p["w_in"]
    return x, _standardized(x) * p["norm"]


def _block(key: Array, inputs: int) -> Parameters:
    k_in, k_mix = jax.random.split(key)
    return {
        "w_in": _linear(k_in, inputs, m.HIDDEN), "norm": jnp.ones(m.HIDDEN),
        "w_mix": _linear(k_mix, m.HIDDEN, 2 * m.HIDDEN), "b_mix": jnp.zeros(2 * m.HIDDEN),
    }  # fmt: skip


def _initial_mingru(key: Array, inputs: int, horizon: int) -> Parameters:
    around, gates, slowness = jax.random.split(key, 3)
    return _block(around, inputs) | {
        "w_gates": _linear(gates, m.HIDDEN, 2 * m.HIDDEN),
        "b_gates": jnp.zeros(2 * m.HIDDEN).at[: m.HIDDEN].set(_time_constants(slowness, horizon)),
        "state_gain": jnp.ones(m.HIDDEN), "state_bias": jnp.zeros(m.HIDDEN),
    }  # fmt: skip


def _mingru_gates(p: Parameters, u: Array) -> tuple[Array, Array]:
    k, n = jnp.split(u @ p["w_gates"] + p["b_gates"], 2, -1)
    keep = jax.nn.sigmoid(k)
    return keep, (1 - keep) * n


def _mingru_read(p: Parameters, x: Array, h: Array) -> Array:
    return _around(p, x, _standardized(h) * p["state_gain"] + p["state_bias"])


def _mingru_step(p: Parameters, x_BD: Array, reset_B: Array, carry: Carry) -> tuple[Array, Carry]:
    (h_BH,) = reset_to_zeros(carry, reset_B)
    x_BH, u_BH = _entrance(p, x_BD)
    keep, written = _mingru_gates(p, u_BH)
    h_BH = keep * h_BH + written
    return _mingru_read(p, x_BH, h_BH), (h_BH,)


def _mingru_scan(p: Parameters, x_TBD: Array, reset_TB: Array, carry: Carry) -> Array:
    x_TBH, u_TBH = _entrance(p, x_TBD)
    keep, written = _mingru_gates(p, u_TBH)
    return _mingru_read(p, x_TBH, *_states((keep,), (written,), reset_TB, carry))


def _initial_lru(key: Array, inputs: int, horizon: int) -> Parameters:
    around, slowness, phase, k_in, k_out, skip = jax.random.split(key, 6)
    decay_N = jax.nn.softplus(-_time_constants(slowness, horizon))
    return _block(around, inputs) | {
        "log_decay": jnp.log(decay_N),
        "log_phase": jnp.log(MAX_PHASE * jax.random.uniform(phase, (m.HIDDEN,), minval=1e-6)),
        "log_gamma": 0.5 * jnp.log(-jnp.expm1(-2 * decay_N)),
        "w_drive": _linear(k_in, m.HIDDEN, 2 * m.HIDDEN), "w_read": _linear(k_out, 2 * m.HIDDEN, m.HIDDEN),
        "skip": jax.random.normal(skip, (m.HIDDEN,)),
    }  # fmt: skip


def _lru_parts(p: Parameters, u: Array) -> tuple[_Parts, _Parts]:
    """The eigenvalues, and what is written."""
    size, angle = jnp.exp(-jnp.exp(p["log_decay"])), jnp.exp(p["log_phase"])
    drive = u @ (p["w_drive"] * jnp.tile(jnp.exp(p["log_gamma"]), 2))
    return (size * jnp.cos(angle), size * jnp.sin(angle)), tuple(jnp.split(drive, 2, -1))


def _lru_read(p: Parameters, x: Array, u: Array, h: _Parts) -> Array:
    return _around(p, x, jnp.concatenate(h, -1) @ p["w_read"] + p["skip"] * u)


def _lru_step(p: Parameters, x_BD: Array, reset_B: Array, carry: Carry) -> tuple[Array, Carry]:
    x_BH, u_BH = _entrance(p, x_BD)
    eigenvalues, drive = _lru_parts(p, u_BH)
    h = _plus(_times(eigenvalues, reset_to_zeros(carry, reset_B)), drive)
    return _lru_read(p, x_BH, u_BH, h), h


def _lru_scan(p: Parameters, x_TBD: Array, reset_TB: Array, carry: Carry) -> Array:
    x_TBH, u_TBH = _entrance(p, x_TBD)
    eigenvalues, drive = _lru_parts(p, u_TBH)
    a = tuple(jnp.broadcast_to(x, drive[0].shape) for x in eigenvalues)
    return _lru_read(p, x_TBH, u_TBH, _states(a, drive, reset_TB, carry))


def _initial_mamba2(key: Array, inputs: int, horizon: int) -> Parameters:
    k_embed, k_in, k_conv, k_step, k_out = jax.random.split(key, 5)
    channels, heads = INNER + 2 * STATES, INNER // HEAD

    def uniform(k: Array, *shape: int) -> Array:
        return jax.random.uniform(k, shape, minval=-(shape[0] ** -0.5), maxval=shape[0] ** -0.5)

    dt_H = jnp.exp(jax.random.uniform(k_step, (heads,), minval=jnp.log(0.1), maxval=0.0))
    return {
        "w_in": _linear(k_embed, inputs, m.HIDDEN), "norm": jnp.ones(m.HIDDEN),
        "w_project": uniform(k_in, m.HIDDEN, INNER + channels + heads),
        "taps": uniform(k_conv, TAPS, channels), "b_taps": jnp.zeros(channels),
        "b_dt": dt_H + jnp.log(-jnp.expm1(-dt_H)),
        "log_rate": -jnp.log(jnp.linspace(2 * horizon, 1, heads)[::-1] * dt_H),
        "skip": jnp.ones(heads), "gated_norm": jnp.ones(INNER), "w_out": uniform(k_out, INNER, m.HIDDEN),
    }  # fmt: skip


def _mamba2_inputs(p: Parameters, u: Array) -> tuple[Array, Array, Array]:
    """The gate, what is convolved, and the lengths of the steps."""
    z, xbc, dt = jnp.split(u @ p["w_project"], [INNER, 2 * INNER + 2 * STATES], -1)
    return z, xbc, jax.nn.softplus(dt + p["b_dt"])


def _mamba2_parts(xbc: Array) -> tuple[Array, Array, Array]:
    """x by heads, what it is written with, and what it is read with."""
    x, write, read = jnp.split(jax.nn.silu(xbc), [INNER, INNER + STATES], -1)
    return x.reshape(*x.shape[:-1], -1, HEAD), write, read


def _mamba2_read(p: Parameters, stream: Array, y: Array, x: Array, z: Array) -> Array:
    y = (y + p["skip"][:, None] * x).reshape(z.shape) * jax.nn.silu(z)
    y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + NORM_EPSILON) * p["gated_norm"]
    return stream + y @ p["w_out"]


def _mamba2_step(p: Parameters, x_BD: Array, reset_B: Array, carry: Carry) -> tuple[Array, Carry]:
    h, window = reset_to_zeros(carry, reset_B)
    stream, u = _entrance(p, x_BD)
    z, xbc, dt = _mamba2_inputs(p, u)
    window = jnp.concatenate([window, xbc[:, None]], 1)
    x, write, read = _mamba2_parts((window * p["taps"]).sum(1) + p["b_taps"])
    keep = jnp.exp(-jnp.exp(p["log_rate"]) * dt)
    h = keep[..., None, None] * h + (dt[..., None] * x)[..., None] * write[:, None, None]
    y = (h * read[:, None, None]).sum(-1)
    return _mamba2_read(p, stream, y, x, z), (h, window[:, 1:])


def _convolved(p: Parameters, xbc_TBC: Array, reset_TB: Array, window_BWC: Array) -> Array:
    padded = jnp.concatenate([window_BWC.swapaxes(0, 1), xbc_TBC])
    same, total = jnp.ones(reset_TB.shape), p["b_taps"]
    for back in range(TAPS):
        past = lax.slice_in_dim(padded, TAPS - 1 - back, TAPS - 1 - back + len(xbc_TBC))
        total = total + past * same[..., None] * p["taps"][TAPS - 1 - back]
        earlier = jnp.concatenate([jnp.zeros((back, reset_TB.shape[1])), reset_TB])[: len(reset_TB)]
        same = same * (1 - earlier)
    return total


def _mamba2_scan(p: Parameters, x_TBD: Array, reset_TB: Array, carry: Carry) -> Array:
    """Chunks of quadratic form, whose last states are a recurrence (Dao & Gu 2024, section 6)."""
    h, window = carry
    stream, u = _entrance(p, x_TBD)
    z, xbc, dt_TBH = _mamba2_inputs(p, u)
    x, write, read = _mamba2_parts(_convolved(p, xbc, reset_TB, window))
    length = gcd(len(x), CHUNK)

    def chunked(value: Array) -> Array:
        return value.reshape(-1, length, *value.shape[1:])

    log_keep = jnp.cumsum(chunked(-jnp.exp(p["log_rate"]) * dt_TBH), 1)  # [chunks, length, B, H]
    episode = jnp.cumsum(chunked(reset_TB), 1)
    written, write, read = chunked(dt_TBH[..., None] * x), chunked(write), chunked(read)
    allowed = jnp.tril(jnp.ones((length, length), bool))[..., None] & (episode[:, :, None] == episode[:, None])
    decay = jnp.where(allowed[..., None], log_keep[:, :, None] - log_keep[:, None], -jnp.inf)
    weight = jnp.einsum("ktbn,ksbn->ktsb", read, write)[..., None] * jnp.exp(decay)
    y = jnp.einsum("ktsbh,ksbhp->ktbhp", weight, written)
    last = jnp.where((episode == episode[:, -1:])[..., None], jnp.exp(log_keep[:, -1:] - log_keep), 0.0)
    ends = jnp.einsum("ksbh,ksbhp,ksbn->kbhpn", last, written, write)
    through = jnp.exp(log_keep[:, -1])[..., None, None]
    (after,) = _states((jnp.broadcast_to(through, ends.shape),), (ends,), episode[:, -1] > 0, (h,))
    before = jnp.concatenate([h[None], after[:-1]])
    reach = jnp.where((episode == 0)[..., None], jnp.exp(log_keep), 0.0)
    y = y + jnp.einsum("ktbn,kbhpn->ktbhp", read, before) * reach[..., None]
    return _mamba2_read(p, stream, y.reshape(x.shape), x, z)


def _zeros(*shapes: tuple[int, ...]) -> Callable[[int], Carry]:
    return lambda lanes: tuple(jnp.zeros((lanes, *shape)) for shape in shapes)


CORES = {
    "mingru": Core(_initial_mingru, _zeros((m.HIDDEN,)), _mingru_step, _mingru_scan),
    "lru": Core(_initial_lru, _zeros((m.HIDDEN,), (m.HIDDEN,)), _lru_step, _lru_scan),
    "mamba2": Core(
        _initial_mamba2,
        _zeros((INNER // HEAD, HEAD, STATES), (TAPS - 1, INNER + 2 * STATES)),
        _mamba2_step,
        _mamba2_scan,
    ),
}
