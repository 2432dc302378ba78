"""Stateless random numbers: a value is a pure function of (lane key, counter, draw index).

As nothing but integers goes in, a lane's numbers do not change with how lanes are grouped into arrays or
processes, and to save the "random state" is to save counters. Counter-based generation: Salmon, Moraes, Dror
and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The mixing function and the increment are
those of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).

Legend: B environments, D draws, N steps of noise. Integer arithmetic is modulo 2**64.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Keys = NDArray[np.uint64]

NORMAL_BOUND = math.sqrt(2.0 * 53.0 * math.log(2.0))
"""No value of `lane_normal` is larger in magnitude (8.57), as its uniforms are multiples of 2**-53."""

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_FACTOR_1, _FACTOR_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def fold_in(key: Keys, counter: ArrayLike) -> Keys:
    """New keys from keys and integer counters, which broadcast; one key's children are all different."""
    ordinal: Keys = np.atleast_1d(counter).astype(np.uint64) + np.uint64(1)
    return _mixed(key + ordinal * _INCREMENT)


def lane_keys(seed: int, lanes: ArrayLike) -> Keys:
    """One key a lane, uint64 [B], from a seed of any size (taken modulo 2**64) and lane numbers [B]."""
    root = fold_in(np.array([seed % (1 << 64)], dtype=np.uint64), 0)
    return fold_in(root, lanes)


def lane_uniform(key_B: Keys, counter_B: ArrayLike, draws: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), float64 [B, draws], all multiples of 2**-53.

    Args:
        key_B: lane keys [B].
        counter_B: where each lane stands in its sequence: integers [B], or one for all lanes.
        draws: numbers a lane.
    """
    return _fraction(fold_in(fold_in(key_B, counter_B)[:, None], np.arange(draws)))


def lane_integers(key_B: Keys, counter_B: ArrayLike, high: int, draws: int) -> NDArray[np.int64]:
    """Integers in [0, high), int64 [B, draws], equally likely to within high / 2**53."""
    return (lane_uniform(key_B, counter_B, draws) * high).astype(np.int64)


def lane_normal(key_B: Keys, counter_B: ArrayLike, draws: int) -> NDArray[np.float64]:
    """Standard normal numbers, float64 [B, draws], within ±NORMAL_BOUND (Box and Muller 1958)."""
    pairs = -(-draws // 2)
    uniform_BD = lane_uniform(key_B, counter_B, 2 * pairs)
    radius_BD = np.sqrt(-2.0 * np.log(1.0 - uniform_BD[:, :pairs]))
    angle_BD = 2.0 * np.pi * uniform_BD[:, pairs:]
    return np.concatenate((radius_BD * np.cos(angle_BD), radius_BD * np.sin(angle_BD)), axis=1)[:, :draws]


def lane_noise(key_B: Keys, first_counter: int, steps: int, draws: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), float64 [B, steps, draws]; at step t they are those of counter first_counter + t."""
    counter_N = first_counter + np.arange(steps)
    return _fraction(fold_in(fold_in(key_B[:, None], counter_N)[..., None], np.arange(draws)))


def _mixed(word: Keys) -> Keys:
    """SplitMix64's finaliser, a bijection of 64-bit words; overwrites and returns `word`."""
    word ^= word >> _SHIFT_1
    word *= _FACTOR_1
    word ^= word >> _SHIFT_2
    word *= _FACTOR_2
    word ^= word >> _SHIFT_3
    return word


def _fraction(word: Keys) -> NDArray[np.float64]:
    """The upper 53 bits of each word as a number in [0, 1)."""
    return (word >> np.uint64(11)).astype(np.float64) * 2.0**-53
