"""Frame stacking: the network reads the present observation and those of a few steps before, all at once.

The steps before are in the carry, so that they travel, are stored and are reset as every other memory is.
Axis letters: T time, B environments, N frames, P = N - 1 frames before the present one.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mneme.controllers.controller import Carry
from mneme.controllers.observations import Observation

COUNT = "frames"
"""In the carry: how many of the frames in it are of the present episode, float32 [B, 1]."""


class FrameStack:
    """The last N observations of an episode; where it has not had as many, its first one stands for those before, as by
    default in `gymnasium.wrappers.FrameStackObservation`. No gradient goes back to a frame in the carry.

    Args:
        shapes: of each part of an observation.
        frames: N, at least 2.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], frames: int) -> None:
        self._past = frames - 1
        self._shapes = {f"{COUNT}.{name}": (self._past, *shape) for name, shape in shapes.items()}

    def initial(self, device: torch.device) -> Carry:
        """The frames before an episode: none, and room for P of each part, float32 [P, ...] a name."""
        shapes = {COUNT: (1,)} | self._shapes
        return {name: torch.zeros(shape, dtype=torch.float32, device=device) for name, shape in shapes.items()}

    def refuse_collision(self, kind: str, carry: Carry) -> None:
        """See that a controller's carry has no part of a name that the frames have.

        Raises:
            ValueError: it has.
        """
        for name in carry:
            if name == COUNT or name in self._shapes:
                raise ValueError(
                    f"policy.controller.kind is {kind!r}, whose carry has a part {name!r}, which is what spaces.stack "
                    f"calls its own; rename that part, or set spaces.stack=1"
                )

    def split(self, carry: Carry) -> tuple[Carry, Carry]:
        """The frames in a carry, and what is the controller's.

        Raises:
            ValueError: there are no frames, or they do not fit.
        """
        frames = {name: x for name, x in carry.items() if name == COUNT or name in self._shapes}
        wanted = {COUNT: (1,)} | self._shapes
        if {name: tuple(x.shape[1:]) for name, x in frames.items()} != wanted:
            raise ValueError(
                f"the carry holds {sorted(carry)}, and lacks frames of shapes {wanted}; pass what initial_carry or the "
                f"previous scan returned"
            )
        return frames, {name: x for name, x in carry.items() if name not in frames}

    def stacked(self, parts: Observation, reset_TB: Tensor, frames: Carry) -> tuple[Observation, Carry]:
        """Parts [T, B, ...] as float32 [T, B, N, ...], the oldest frame first, and the frames after the last step."""
        P, T = self._past, len(reset_TB)
        count_B = frames[COUNT][:, 0].detach()
        # Over the steps held and the new ones, which of them are the first of their episode.
        first_SB = torch.arange(P + 1, device=count_B.device)[:, None] == P - count_B
        first_SB = torch.cat([first_SB[:P], first_SB[P:] | reset_TB[:1], reset_TB[1:]])
        within_TB = torch.ones_like(reset_TB)
        within = [within_TB]  # whether a step's episode had begun so many steps before it
        for steps in range(1, P + 1):
            within_TB = within_TB & ~first_SB[P - steps + 1 : P - steps + 1 + T]
            within.append(within_TB)
        found, after = {}, {COUNT: torch.stack([x[-1] for x in within[:P]]).sum(0).float()[:, None]}
        for (name, x), held in zip(parts.items(), self._shapes, strict=True):
            x_SB = torch.cat([frames[held].detach().transpose(0, 1), x.float()])
            stack = [x_SB[P:]]
            for steps in range(1, P + 1):
                earlier = within[steps].view(*reset_TB.shape, *(1,) * (x.dim() - 2))
                stack.append(torch.where(earlier, x_SB[P - steps : P - steps + T], stack[-1]))
            found[name] = torch.stack(stack[::-1], 2)
            after[held] = found[name][-1, :, 1:]
        return found, after
