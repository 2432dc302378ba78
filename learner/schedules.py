"""The settings that change over a run: the learning rate, the clip range, the weight of the entropy bonus; mode and K.

Each of the first three is the configured value times a share that is constant or falls to zero; the learning rate may
rise before.
"""

from dataclasses import replace

import numpy as np

from mneme.learner.annealing import Annealing, Shape
from mneme.learner.bptt import Bptt
from mneme.learner.settings import LearnerSettings
from mneme.rollout_workers.state import State

_LEARNING_RATE, _CLIP_RANGE, _ENT_COEF = "annealing", "annealing.clip_range", "annealing.ent_coef"
_WARMUP = "warmup"
_LEAST_CLIP = 1e-12  # at the end of its schedule, as no ratio can be clipped to nothing


class Schedules:
    """The scheduled settings, update by update.

    Args:
        settings: as configured.
        total_timesteps: environment steps at which what falls is zero.
    """

    def __init__(self, settings: LearnerSettings, total_timesteps: int) -> None:
        self._configured, self._end = settings, float(total_timesteps)
        self._warmup = settings.lr_warmup * total_timesteps  # environment steps at which the learning rate is whole
        self._warm = 1.0  # share of it in the last update
        schedules = {
            _LEARNING_RATE: settings.lr_schedule,
            _CLIP_RANGE: settings.clip_schedule,
            _ENT_COEF: settings.ent_schedule,
        }
        self._shapes: dict[str, Shape] = {n: schedule for n, schedule in schedules.items() if schedule != "constant"}
        self._ways = {
            name: Annealing(self._warmup if name == _LEARNING_RATE else 0.0, 1.0, self._end, 1.0)
            for name in self._shapes
        }
        self.bptt = Bptt(settings, total_timesteps)
        self.settings = self.bptt.settings  # as the last update has them, but for the learning rate
        self.learning_rate = settings.learning_rate

    def advance(self, env_steps: int, after: int) -> None:
        """Set what an update has that begins at `env_steps` and ends at `after`, both in environment steps.

        A share falls by what lies before the update. The learning rate's warm-up counts the update's own steps too, so
        that the first is not for nothing.
        """
        self._ways = {name: way.at(env_steps, self._shapes[name]) for name, way in self._ways.items()}
        self._warm = min(1.0, after / self._warmup) if self._warmup > 0 else 1.0
        self.learning_rate = self._configured.learning_rate * self._share(_LEARNING_RATE) * self._warm
        self.bptt.advance(env_steps)
        self.settings = self._present()

    def _present(self) -> LearnerSettings:
        clip_range = self._configured.clip_range * self._share(_CLIP_RANGE)
        ent_coef = self._configured.ent_coef * self._share(_ENT_COEF)
        return replace(self.bptt.settings, clip_range=max(clip_range, _LEAST_CLIP), ent_coef=ent_coef)

    def _share(self, name: str) -> float:
        return self._ways[name].share if name in self._ways else 1.0

    def state(self) -> State:
        """Where each schedule is; what is constant has none."""
        state = {name: np.array(way) for name, way in self._ways.items()} | self.bptt.state()
        return state | ({_WARMUP: np.array(self._warmup)} if self._configured.lr_warmup else {})

    def set_state(self, state: State, env_steps: int) -> None:
        """Continue where `state()` was taken, after so many environment steps, perhaps to another end."""
        for name in self._ways:
            self._ways[name] = Annealing(*map(float, state[name])).until(self._end, env_steps)
        if self._configured.lr_warmup:
            self._warmup = float(state[_WARMUP])
        self.bptt.set_state(state)
        self.settings = self._present()
