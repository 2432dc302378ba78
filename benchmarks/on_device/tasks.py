"""The batched tasks of `mneme.envs` in torch: what numpy does there, without a copy to the host or a wait for it.

An episode's contents are a function of its key, so that those of all episodes that may begin in the next steps are
drawn at once, before them. Episodes end by termination alone.

Legend: B environments, E episodes of each, F features, L symbols.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from benchmarks.on_device.lane_random import fold_in, lane_integers, words
from mneme.envs import MemoryVectorEnv
from mneme.envs.delayed_cue import _DELAY


class DeviceTask(ABC):
    """B lanes of a task, which go on where an environment in numpy stands; that one is left alone.

    What steps read and write stays in the same tensors, so that a CUDA graph may be made of steps.

    Args:
        env: the environment, reset.
        device: where the lanes are to be.
        shortest: steps of the shortest episode.
    """

    def __init__(self, env: MemoryVectorEnv, device: torch.device, shortest: int) -> None:
        self.device, self._shortest = device, shortest
        state = env.get_state()
        self._key_B = words(state["key"], device)
        self.episode_B, self.step_B = (torch.from_numpy(state[name]).to(device) for name in ("episode", "step"))
        self._first_B = self.episode_B.clone()  # episode of the first contents
        self._contents: dict[str, Tensor] = {}

    def prepare(self, steps: int) -> None:
        """Draw the contents of every episode that may begin in the next so many steps, the same number every time."""
        self._first_B.copy_(self.episode_B)
        episodes = torch.arange(steps // self._shortest + 2, device=self.device)
        drawn = self.draw(fold_in(self._key_B[:, None], self._first_B[:, None] + episodes))
        for name, contents_BE in drawn.items():
            self._contents.setdefault(name, contents_BE).copy_(contents_BE)

    def step(self, action_B: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards float32 and terminations bool, [B] each; finished lanes start their next episode at once."""
        reward_B, terminated_B = self.transition(action_B)
        self.step_B.add_(1).masked_fill_(terminated_B, 0)
        self.episode_B.add_(terminated_B)
        return reward_B, terminated_B

    def present(self, name: str) -> Tensor:
        """What was drawn under this name for the present episodes, [B, ...]."""
        contents_BE = self._contents[name]
        index = (self.episode_B - self._first_B).view(-1, 1, *(1,) * (contents_BE.dim() - 2))
        return contents_BE.gather(1, index.expand(-1, 1, *contents_BE.shape[2:])).squeeze(1)

    @abstractmethod
    def draw(self, key_BE: Tensor) -> dict[str, Tensor]:
        """The contents [B, E, ...] of the episodes with these keys, by name."""

    @abstractmethod
    def transition(self, action_B: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards and terminations, [B] each, of acting at `step_B`."""

    @abstractmethod
    def observe(self) -> Tensor:
        """The observations at `step_B`, float32 [B, F]."""


class DeviceDelayedCue(DeviceTask):
    """`mneme.envs.delayed_cue.DelayedCue`, without distractors and noise.

    Args:
        env: it.
        device: where the lanes are to be.
        cues: as of `env`; so are the others.
        horizon: steps from cue to query at most.
        shortest_horizon: and at least.
    """

    def __init__(
        self, env: MemoryVectorEnv, device: torch.device, cues: int, horizon: int, shortest_horizon: int | None = None
    ) -> None:
        super().__init__(env, device, (horizon if shortest_horizon is None else shortest_horizon) + 1)
        self._cues, self._horizon = cues, horizon
        self._spread = 0 if shortest_horizon is None else horizon - shortest_horizon
        self._symbols = torch.arange(cues, device=device)

    def draw(self, key_BE: Tensor) -> dict[str, Tensor]:
        cue_BE = lane_integers(key_BE, 0, self._cues, 1)[..., 0]
        longer_BE = lane_integers(key_BE, _DELAY, self._spread + 1, 1)[..., 0]
        return {"cue": cue_BE, "query step": self._horizon - self._spread + longer_BE}

    def transition(self, action_B: Tensor) -> tuple[Tensor, Tensor]:
        query_B = self._queried()
        return (query_B & (action_B == self.present("cue"))).float(), query_B

    def observe(self) -> Tensor:
        cue_BC = (self.present("cue").unsqueeze(1) == self._symbols) & (self.step_B == 0).unsqueeze(1)
        return torch.cat([cue_BC, self._queried().unsqueeze(1)], 1).float()

    def _queried(self) -> Tensor:
        return self.step_B == self.present("query step")


class DeviceCopyMemory(DeviceTask):
    """`mneme.envs.copy_memory.CopyMemory`, with dense reward.

    Args:
        env: it, at the first step of its episodes.
        device: where the lanes are to be.
        symbols: as of `env`; so are the others.
        length: symbols in a sequence.
        delay: blank steps.
    """

    def __init__(self, env: MemoryVectorEnv, device: torch.device, symbols: int, length: int, delay: int) -> None:
        super().__init__(env, device, 2 * length + delay)
        self._length, self._first_question = length, length + delay
        self._symbols = torch.arange(symbols, device=device)

    def draw(self, key_BE: Tensor) -> dict[str, Tensor]:
        return {"symbols": lane_integers(key_BE, 0, len(self._symbols), self._length)}

    def transition(self, action_B: Tensor) -> tuple[Tensor, Tensor]:
        right_B = self._asked() & (action_B == self._symbol(self.step_B - self._first_question))
        return right_B.double().div(self._length).float(), self.step_B == self._first_question + self._length - 1

    def observe(self) -> Tensor:
        shown_B = self.step_B < self._length
        symbol_BS = (self._symbol(self.step_B).unsqueeze(1) == self._symbols) & shown_B.unsqueeze(1)
        waiting_B = ~shown_B & (self.step_B < self._first_question)
        return torch.cat([symbol_BS, torch.stack([shown_B, waiting_B, self._asked()], 1)], 1).float()

    def _asked(self) -> Tensor:
        return self.step_B >= self._first_question

    def _symbol(self, place_B: Tensor) -> Tensor:
        """The symbols at these places of the present sequences, [B]; the nearest one where there is none."""
        place_B1 = place_B.clamp(0, self._length - 1).unsqueeze(1)
        return self.present("symbols").gather(1, place_B1).squeeze(1)
