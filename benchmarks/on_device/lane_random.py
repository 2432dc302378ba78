"""The stateless random numbers of `mneme.envs.lane_random` in torch: the same bits, on any device.

Words are int64, whose sums and products modulo 2**64 are those of uint64.

Legend: B environments, D draws, N steps of noise.
"""

import numpy as np
import torch
from torch import Tensor


def _signed(word: int) -> int:
    """The int64 of the same bits, modulo 2**64."""
    word %= 1 << 64
    return word - (1 << 64) if word >> 63 else word


_INCREMENT = _signed(0x9E3779B97F4A7C15)
_FACTOR_1, _FACTOR_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def words(keys: np.ndarray, device: torch.device) -> Tensor:
    """Keys, uint64, as int64 of the same bits."""
    return torch.from_numpy(keys.view(np.int64).copy()).to(device)


def fold_in(key: Tensor, counter: Tensor | int) -> Tensor:
    """New keys from keys and integer counters, which broadcast."""
    stride = (counter + 1) * _INCREMENT
    return _mixed(key + (_signed(stride) if isinstance(stride, int) else stride))


def lane_integers(key_B: Tensor, counter: int, high: int, draws: int) -> Tensor:
    """Integers in [0, high), int64 [..., D], for keys [...] at one counter."""
    children = fold_in(fold_in(key_B, counter).unsqueeze(-1), torch.arange(draws, device=key_B.device))
    return (_fraction(children) * high).long()


def lane_noise(key_B: Tensor, first_counter: int, steps: int, draws: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 [B, N, D]; at step t they are those of counter first_counter + t."""
    counter_N = first_counter + torch.arange(steps, device=key_B.device)
    keys_BN = fold_in(key_B[:, None], counter_N)
    return _fraction(fold_in(keys_BN[..., None], torch.arange(draws, device=key_B.device)))


def _mixed(word: Tensor) -> Tensor:
    word = (word ^ _shifted(word, 30)) * _FACTOR_1
    word = (word ^ _shifted(word, 27)) * _FACTOR_2
    return word ^ _shifted(word, 31)


def _shifted(word: Tensor, bits: int) -> Tensor:
    """To the right, with zeros for the sign."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _fraction(word: Tensor) -> Tensor:
    """The upper 53 bits of each word as a number in [0, 1)."""
    return _shifted(word, 11).double() * 2.0**-53
