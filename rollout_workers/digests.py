"""Which episodes are alike: a digest of what the environment showed and paid in each.

Legend: B environments, T steps of a fragment, E episodes.
"""

from hashlib import blake2b

import numpy as np

from mneme.controllers import PREVIOUS_ACTION
from mneme.rollout_workers.fragment import Fragment


class EpisodeDigests:
    """Follows each lane's present episode over fragments, wherever these cut it.

    Args:
        num_envs: B.
    """

    def __init__(self, num_envs: int) -> None:
        self._present: list[dict[str, blake2b]] = [{} for _ in range(num_envs)]  # by column

    def add(self, fragment: Fragment) -> np.ndarray:
        """Digests [E] uint64 of the episodes that ended in the next fragment, in the order of `EpisodeStats`: by the
        step at which they ended, then by lane. Equal digests: the same observations and rewards, actions aside."""
        columns = {name: part for name, part in fragment.observations.items() if name != PREVIOUS_ACTION}
        columns[""] = fragment.rewards  # no part of an observation is named so
        ended = (fragment.terminated | fragment.truncated) & fragment.valid
        found: list[tuple[int, int, int]] = []  # step, lane, digest
        for lane, hashes in enumerate(self._present):
            start = 0
            for end in [*(np.flatnonzero(fragment.resets[lane, 1:]) + 1).tolist(), fragment.length]:
                for name, column in columns.items():
                    steps = np.ascontiguousarray(column[lane, start:end])
                    hashes.setdefault(name, blake2b(digest_size=8)).update(steps.data)
                if fragment.resets[lane, end] and start < end:
                    if ended[lane, end - 1]:
                        whole = blake2b(b"".join(h.digest() for h in hashes.values()), digest_size=8)
                        found.append((end - 1, lane, int.from_bytes(whole.digest(), "little")))
                    hashes.clear()
                start = end
        return np.array([digest for _, _, digest in sorted(found)], dtype=np.uint64)
