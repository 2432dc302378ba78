"""Fragments of made-up episodes whose every number says where it belongs, for tests of several packages.

Legend: B lanes, T steps.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from mneme.rollout_workers import Fragment

TERMINATED, TRUNCATED, FAILED = range(3)


def streams(
    lengths: Iterable[Iterator[tuple[int, int]]], T: int, stride: int, *, filler: bool = False, first_lane: int = 0
) -> Iterator[Fragment]:
    """Fragments without end, of lanes whose episodes have these lengths, and ends (TERMINATED, TRUNCATED, FAILED).

    Observed are the lane, the number of its episode and the step; the carry before a step holds the same. An episode
    that fails has one more step, which is not valid, and so is the filler that may follow any other.
    """
    lanes = [_steps(episodes, filler) for episodes in lengths]
    B, first = len(lanes), 0
    ahead = [next(lane) for lane in lanes]
    while True:
        rows = []
        for b, lane in enumerate(lanes):
            rows.append([ahead[b], *(next(lane) for _ in range(T))])
            ahead[b] = rows[-1][-1]
        table = np.array(rows)  # [B, T + 1, (episode, step, opens, end)]
        episode, step, opens, end = (table[..., i] for i in range(4))
        lane = np.broadcast_to(first_lane + np.arange(B)[:, None], episode.shape)
        seen = np.stack([lane, episode, step], -1).astype(np.float32)
        truncated = end[:, :T] == TRUNCATED
        final = seen[:, :T].copy()
        final[..., 2] += 1
        yield Fragment(
            observations={"observation": seen},
            actions=step[:, :T].astype(np.int64), log_probs=-step[:, :T].astype(np.float32),
            values=step.astype(np.float32), final_values=np.where(truncated, -1.0, 0.0).astype(np.float32),
            final_observations={"observation": final[truncated]}, rewards=step[:, :T].astype(np.float32),
            terminated=end[:, :T] == TERMINATED, truncated=truncated, valid=end[:, :T] != FAILED,
            resets=opens == 1, carries={"h": seen[:, :T:stride].copy()}, carry_stride=stride,
            weights_version=np.full(B, first // T), worker=np.full(B, 7), lane=lane[:, 0].copy(),
            first_step=np.full(B, first), seed=np.arange(B, dtype=np.uint64),
        )  # fmt: skip
        first += T


def _steps(episodes: Iterator[tuple[int, int]], filler: bool) -> Iterator[tuple[int, int, int, int]]:
    for number, (length, end) in enumerate(episodes):
        for step in range(length):
            last = step == length - 1 and end != FAILED
            yield number, step, step == 0, end if last else -1
        if end == FAILED:
            yield number, length, length == 0, FAILED
        elif filler:
            yield number, length, 1, FAILED
