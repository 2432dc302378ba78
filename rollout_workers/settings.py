"""Settings of the collection of experience."""

from dataclasses import dataclass, field
from typing import Literal

from mneme.controllers import Settings

FLAT = "flat"


@dataclass(frozen=True, kw_only=True)
class SpaceSettings(Settings, section="spaces"):
    """The parts of an observation that the agent sees, and how its actions fill the environment's space."""

    keys: tuple[str, ...] | None = None
    """Parts of a Dict observation that the agent sees. Unset: all."""
    features: tuple[int, ...] | None = None
    """Features of a flat Box observation that the agent sees, counted from 0; hiding velocities, for example, makes a
    task need memory. Unset: all."""
    layout: dict[str, str] = field(default_factory=dict)
    """Axes of parts of the observation that are images, such as {image: HWC}, in letters: F frames, H height, W width,
    C channels; frames become channels. flat: no image, but numbers. An observation without parts is called
    observation. Unset: as the Box's shape, type and bounds suggest."""
    scale: dict[str, float] = field(default_factory=dict)
    """Factor by which the numbers of an image are multiplied, such as {image: 1.0}. Unset: 1/255 for bytes, and for
    others as their bounds suggest."""
    stack: int = 1
    """Observations of its episode that the agent sees at once, the present one included: a memory of so many steps
    beside that of the controller, and for mlp the only one. 1: the present one alone."""
    previous_action: bool = False
    """Show the agent its last action."""
    previous_reward: bool = False
    """Show the agent its last reward."""
    squash: bool = False
    """Squash the actions of a bounded Box with tanh, instead of clipping them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "stack")
        if self.features is not None and (not self.features or min(self.features) < 0):
            raise ValueError(f"spaces.features is {list(self.features)}; give one or more numbers from 0")
        if self.keys is not None and not self.keys:
            raise ValueError("spaces.keys is empty; name at least one part of the observation")
        for part, layout in self.layout.items():
            letters = set(layout)
            if layout != FLAT and not (len(letters) == len(layout) and set("HW") <= letters <= set("FHWC")):
                raise ValueError(
                    f"spaces.layout.{part} is {layout!r}; give each axis one of the letters F, H, W and C, such as "
                    f"HWC, CHW, HW or FHWC, or flat"
                )
        for part, scale in self.scale.items():
            if not scale > 0:
                raise ValueError(f"spaces.scale.{part} is {scale}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(Settings, section="rollout"):
    """The collection of experience."""

    num_envs: int = 128
    """Parallel environments in all, shared out evenly over the workers."""
    num_workers: int = 2
    """Rollout actors, at most; each steps num_envs / num_workers environments in one process."""
    min_workers: int | None = None
    """Rollout actors without which nothing is collected. With fewer than num_workers an update has fewer sequences;
    others join as nodes come. Unset: all of them to begin a run with, and then, if some are lost, as many as there
    are."""
    double_buffered: bool = False
    """Act for one half of a worker's environments while the other half steps, with env.vectorization_mode=async. It
    may pay where one process waits for slow environments, and cores are free."""
    unroll_length: int | None = None
    """Steps in one sequence; with batching=episodes better not less than in the longest episode. Unset: the task's
    episode length where it has a fixed one, else 128."""
    batching: Literal["sequences", "episodes"] = "sequences"
    """sequences: a sequence is what a lane did in unroll_length steps, wherever episodes begin and end. episodes: it is
    complete episodes end to end; those that have not ended wait, and longer ones are cut."""
    carry_stride: int | None = None
    """Store the carry every so many steps. Unset: as sparsely as the learner's mode allows."""
    warm_up: int | None = None
    """Steps of its past that each sequence brings along; the anchor pass runs over them to renew the carry that enters
    the sequence. Unset, in asynchronous service: twice the task's horizon, 64 at least and one sequence at most, but 0
    where every sequence begins with an episode. Unset, in synchronous service: 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "num_envs", "num_workers", "min_workers", "unroll_length", "carry_stride")
        self.at_least(0, "warm_up")
        if self.num_envs % self.num_workers:
            raise ValueError(
                f"rollout.num_envs is {self.num_envs}, which {self.num_workers} workers cannot share evenly; "
                f"use a multiple of rollout.num_workers"
            )
        if self.double_buffered and self.num_envs // self.num_workers % 2:
            raise ValueError(
                f"rollout.double_buffered is set, but rollout.num_envs, {self.num_envs}, gives each of "
                f"{self.num_workers} workers an odd number of environments, which has no halves; use a multiple of "
                f"{2 * self.num_workers}"
            )
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"rollout.min_workers is {self.min_workers}, above rollout.num_workers, {self.num_workers}; lower it"
            )
