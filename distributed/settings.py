"""Settings of a run as a whole: its length, its curriculum and its service."""

import os
from dataclasses import dataclass
from typing import Any, Literal

from mneme.controllers import Settings


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings, section="train"):
    """The length of training, and its evaluations."""

    total_timesteps: int = 500_000
    """Environment steps to train on."""
    start_from: str | None = None
    """Run, checkpoint, or URI of either in a mirror, from whose weights a new run starts, with a fresh optimizer.
    Unset: from random ones."""
    start_part: Literal["all", "core"] = "all"
    """all: every weight, of a policy with the same layers. core: those of the sequence model, policy.controller; the
    encoder and the heads are new."""
    stop_success: float | None = None
    """Stop early once the success rates of two evaluations in a row, on different episodes, reach this. Unset: train
    for total_timesteps."""
    evaluate_every: int | None = None
    """Evaluate greedily every so many environment steps. Unset: at the end, and when stop_success seems reached."""
    probe_episodes: int | None = 32
    """Greedy episodes that show, between updates, if stop_success may be reached, long before sampled actions show it;
    at most one step of them for every eight of training. For tasks that declare their episodes' length. Unset: none."""
    evaluation_episodes: int = 512
    """Complete episodes in an evaluation."""
    evaluation_max_steps: int = 100_000
    """Steps after which an evaluation gives up on an episode; training goes on."""
    evaluation_timeout: float = 1800.0
    """Seconds after which an evaluation is given up; training goes on."""
    evaluation_environments: Literal["own", "training"] = "own"
    """own: an evaluation opens environments of its own beside those of training. training: it borrows those of
    training, where a second set cannot be opened; their episodes are then broken off, and begin anew afterwards."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "total_timesteps", "evaluate_every", "probe_episodes", "evaluation_episodes", "evaluation_max_steps",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"train.{name} is {value}; it must be at least 1")
        if self.start_part != "all" and self.start_from is None:
            raise self.fault("start_part", "it is a part of train.start_from; set that, or leave both unset")
        if not self.evaluation_timeout > 0:
            raise ValueError(f"train.evaluation_timeout is {self.evaluation_timeout}; it must be above 0")
        if self.stop_success is not None and not 0 < self.stop_success <= 1:
            raise ValueError(f"train.stop_success is {self.stop_success}; it must lie above 0 and at most at 1")


@dataclass(frozen=True, kw_only=True)
class CurriculumSettings(Settings, section="curriculum"):
    """Easier forms of the task to begin with."""

    stages: tuple[dict[str, Any], ...] = ()
    """Replacements for entries of env.kwargs, stage by stage, easiest first; after the last comes the task itself."""
    start: int | None = None
    """Horizon of the first stage, of stages that are made in place of `stages`: each is `growth` times as long as the
    one before, up to the task's own. For tasks that say which of their arguments is the horizon."""
    growth: float = 1.25
    """Factor from stage to stage, where `start` is set."""
    success: float = 0.9
    """Share of successful training episodes at which the next stage begins."""
    episodes: int = 512
    """Most recent episodes of a stage over which that share is taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.success <= 1:
            raise ValueError(f"curriculum.success is {self.success}; it must lie above 0 and at most at 1")
        if self.start is not None and self.start < 1:
            raise ValueError(f"curriculum.start is {self.start}; it must be at least 1")
        if not self.growth > 1:
            raise ValueError(f"curriculum.growth is {self.growth}; it must be above 1")
        if self.episodes < 1:
            raise ValueError(f"curriculum.episodes is {self.episodes}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ServiceSettings(Settings, section="service"):
    """The cooperation of rollout actors, replay and learner."""

    mode: Literal["sync", "async"] = "sync"
    """sync: collect, then learn; reproducible to the bit for a seed. async: both at once, under the lag bound."""
    max_lag: int = 1
    """Weights versions a fragment may be behind when it is trained on; older ones are dropped (async)."""
    replay_bytes: int = 1 << 30
    """Bytes of fragments that the replay keeps in the object store; the oldest are dropped beyond it."""
    address: str | None = None
    """Ray cluster to join, such as auto or ray://host:10001. Unset: RAY_ADDRESS, else a new one on this machine."""
    learner_gpus: float | None = None
    """GPUs reserved for each learner actor. Unset: one if the cluster has as many, a share if it has fewer, none if it
    has none."""
    learner_resource: str | None = None
    """Custom Ray resource that marks the nodes for learner actors, such as learner in cluster.yaml; each takes one."""
    learner_placement: Literal["packed", "spread"] = "packed"
    """Nodes of several learner.replicas: on as few as will hold them (packed), or on as many as there are (spread)."""
    learner_timeout: float = 600.0
    """Seconds after which a learner that has not answered, or whose replicas wait for each other, is lost."""
    learner_snapshot_every: int = 1
    """Updates after which the learner's state is taken. A learner that is lost begins anew from the last one, and makes
    the updates since then again, whose fragments are kept in the object store meanwhile."""
    worker_placement: Literal["packed", "spread"] = "spread"
    """Nodes of the rollout actors: on as many as have room for them (spread), or on few (packed)."""
    worker_cpus: float = 1.0
    """CPUs reserved for each rollout actor; less than 1 lets actors share a core."""
    collect_timeout: float = 600.0
    """Seconds after which a rollout actor that has not delivered is replaced; likewise one that is being built."""
    max_restarts: int = 5
    """Failures in a row after which a rollout actor, or the learner, ends the run."""
    wait_for_resources: float = 1800.0
    """Seconds that a run waits for the resources of its actors, as where a cluster has to grow, before it ends."""
    dashboard: bool = False
    """Serve Ray's dashboard on 127.0.0.1 (when a new Ray is started here)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("max_lag", 0), ("replay_bytes", 1), ("max_restarts", 0), ("learner_snapshot_every", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"service.{name} is {getattr(self, name)}; it must be at least {low}")
        if self.learner_gpus is not None and not self.learner_gpus >= 0:
            raise ValueError(f"service.learner_gpus is {self.learner_gpus}; it must be at least 0")
        for name in ("worker_cpus", "collect_timeout", "learner_timeout", "wait_for_resources"):
            if not getattr(self, name) > 0:
                raise ValueError(f"service.{name} is {getattr(self, name)}; it must be above 0")

    def cluster(self) -> str | None:
        """Address of the Ray cluster to join, by settings or environment; none for a new one on this machine."""
        address = self.address or os.environ.get("RAY_ADDRESS")
        return None if address in (None, "", "local") else address
