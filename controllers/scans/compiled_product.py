"""Matrix products inside compiled kernels, for recurrences that take one at every step.

A tile of the product stays in registers while it is summed up. The right factor comes in panels, of as many columns as
a tile is wide, so that what is read lies in order and stays in the nearest cache for all rows of the left one.

Axis letters: B rows of the left factor, M columns of it, N of the right one, P panels, W width of a tile.
"""

import torch
from torch import Tensor

from mneme.controllers.scans.compiled import compiled
from mneme.controllers.scans.tiles import TileShape, load_down, load_row, store, zeros


def panels(w_MN: Tensor, tiles: TileShape) -> Tensor:
    """The right factor as [P, M, W]; the last panel begins early where N is no multiple of W."""
    N = w_MN.shape[1]
    starts = torch.arange(0, N, tiles.width).clamp(max=N - tiles.width)
    columns_PW = starts.unsqueeze(1) + torch.arange(tiles.width)
    return w_MN.detach()[:, columns_PW].transpose(0, 1).contiguous()


@compiled
def multiply(left, right, out, tiles):
    """out [B, N] = left [B, M] times right, in its panels [P, M, W]."""
    (B, N), M = out.shape, left.shape[1]
    for p in range(len(right)):
        panel, column = right[p], min(p * tiles.width, N - tiles.width)
        for b in range(0, B, tiles.rows):
            row = min(b, B - tiles.rows)
            tile = zeros(out.dtype, tiles)
            for m in range(M):
                tile = tile + load_down(left, row, m, tiles) * load_row(panel, m, 0, tiles)
            store(out, row, column, tile)
