"""GELU as kernels have it."""

import math

import numpy as np
import pytest
import torch

from mneme.controllers.scans.rows.gelu import gelu_each


@pytest.mark.parametrize("dtype,close", [(np.float32, 2e-7), (np.float64, 1e-15)])
def test_it_is_exact_to_a_few_roundings(dtype: type, close: float) -> None:
    x = np.linspace(-13, 13, 100_001).astype(dtype)
    y, exact = x.copy(), torch.from_numpy(x).double()
    gelu_each(y)
    expected = 0.5 * exact * torch.erfc(-math.sqrt(0.5) * exact)
    error = (torch.from_numpy(y).double() - expected).abs()
    assert (error <= close * (1 + exact.abs())).all()
    assert (error[exact < -8] <= 1e-14).all()


def test_what_is_not_a_number_shows_and_what_is_huge_does_not_overflow() -> None:
    x = np.array([np.nan, 1e30, -1e30, 0], np.float32)
    gelu_each(x)
    assert np.isnan(x[0]) and x[1:].tolist() == [np.float32(1e30), pytest.approx(0, abs=1e-6), 0]
