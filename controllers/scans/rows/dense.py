"""Linear layers, each followed by ReLU, compiled by numba for acting: a kernel a layer.

Axis letters: B lanes, H features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mneme.controllers.layer_norm import LayerNorm
from mneme.controllers.scans.layer_step import LANES
from mneme.controllers.scans.machine_code import arrays, compiled, kernel, scratch
from mneme.controllers.scans.products import multiply, padded, panels
from mneme.controllers.scans.rows.norm import norm_rows


class DenseLayers:
    """Layers with weights that were laid out once; they must not change meanwhile.

    Args:
        layers: weight [outputs, inputs] and bias [outputs] of each, one at least.
        norm: what stands before them, if anything does.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], norm: LayerNorm | None = None) -> None:
        own = [arrays(weight, bias) for weight, bias in layers]
        self._layers = [(panels(weight.T), bias) for weight, bias in own]
        self._norm = () if norm is None else arrays(norm.weight, norm.bias)
        self._like, inputs = layers[0][0], layers[0][0].shape[1]
        self._sizes, self._lanes = (inputs, *(len(bias) for _, bias in own)), -1
        self._n, self._wide = scratch(self._like, (inputs,), (LANES, padded(max(self._sizes), self._like.dtype)))

    def __call__(self, x_BI: Tensor) -> Tensor:
        """The last layer's outputs [B, outputs] of inputs [B, inputs], good until the next call."""
        (x,) = arrays(x_BI)
        if len(x) != self._lanes:
            self._lanes = len(x)
            self._normed, *self._outputs = scratch(self._like, *((len(x), size) for size in self._sizes))
            self._y_BH = torch.from_numpy(self._outputs[-1])
        if self._norm:
            norm_rows(x, *self._norm, self._normed, self._n)
            x = self._normed
        for (weight, bias), y in zip(self._layers, self._outputs, strict=True):
            _layer(x, weight, bias, y, self._wide)
            x = y
        return self._y_BH


@kernel
def _layer(x, weight, bias, y, wide):
    for start in range(0, len(x), LANES):
        stop = min(start + LANES, len(x))
        multiply(x[start:stop], 0, x.shape[1], weight, 0, len(weight), wide, 0, False)
        for b in range(start, stop):
            _rectify(wide[b - start], bias, y[b])


@compiled
def _rectify(sums, bias, y):
    """Fill in ReLU of the sums and biases; what is no number stays none."""
    zero = y.dtype.type(0)
    for i in range(len(y)):
        total = sums[i] + bias[i]
        y[i] = zero if total < zero else total
