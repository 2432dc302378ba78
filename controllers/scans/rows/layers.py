"""The layers of a residual block that have each row to themselves, by whichever implementation is asked for."""

import torch.nn.functional as F
from torch import Tensor

from mneme.controllers.layer_norm import LayerNorm, layer_norm
from mneme.controllers.precision import in_float32


@in_float32
def normed(x: Tensor, norm: LayerNorm, backend: str = "torch") -> Tensor:
    """The norm of x [..., H]. With the backend "numba" it can be differentiated once."""
    if backend == "numba":
        from mneme.controllers.scans.rows.norm import numba_layer_norm  # here, as numba may be missing

        return numba_layer_norm(x, norm.weight, norm.bias)
    return layer_norm(x, norm.weight, norm.bias)


def glu_beside(x: Tensor, m: Tensor, backend: str = "torch") -> Tensor:
    """x + GLU(m), [..., H], [..., 2H] -> [..., H]; GLU (Dauphin et al. 2017) is the first half of m times the sigmoid
    of the second. With the backend "numba" it can be differentiated once."""
    if backend == "numba":
        from mneme.controllers.scans.rows.glu import numba_glu_beside  # here, as numba may be missing

        return numba_glu_beside(x, m)
    return x + F.glu(m)
