"""Delayed cue with a learner on the device, and environments there or on the host.

`host` has environments and acting on the CPU, as rollout workers do, and learning on the device. `device` has all of it
there, and `graph` replays the steps of a rollout as one CUDA graph.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from benchmarks.on_device.collector import DeviceCollector
from benchmarks.on_device.tasks import DeviceDelayedCue
from mneme.controllers import ControllerSettings, Policy, PolicySettings, build_policy
from mneme.controllers.scans.backends import chosen_backend
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import Learner, LearnerSettings
from mneme.learner.batch import SequenceBatch
from mneme.rollout_workers import Collector, policy_spec

CUES = 4
MOST_STEPS = 50_000_000  # after which a run counts as failed
_KERNELS = {"gru": "triton", "lstm": "triton", "mamba2": "mamba_ssm"}  # ours and the best there are, on a GPU


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The task and the network."""

    horizon: int
    hidden: int


def sizes(tiny: bool) -> Sizes:
    """Those of the benchmark, or of a try of it."""
    return Sizes(horizon=2, hidden=8) if tiny else Sizes(horizon=64, hidden=128)


class Run(NamedTuple):
    """What an item is about: `device/gru/triton/1024`."""

    place: str
    kind: str
    backend: str
    lanes: int

    @classmethod
    def of(cls, item: str) -> "Run":
        """The run that `str` gave."""
        place, kind, backend, lanes = item.split("/")
        return cls(place, kind, backend, int(lanes))

    def __str__(self) -> str:
        return "/".join(map(str, self))


def fast_backends(device: torch.device, kinds: list[str]) -> dict[str, str]:
    """The backend of each of three kinds, as far as they are among these: made for GPUs, or what runs on the CPU."""
    found = {}
    for kind in _KERNELS:
        if kind in kinds:
            wanted = _KERNELS[kind] if device.type == "cuda" else "auto"
            offered = _policy(kind, "auto", sizes(tiny=True)).controller.backends
            found[kind] = chosen_backend(wanted, device, offered)
    return found


def _env(lanes: int, size: Sizes) -> Any:
    kwargs = {"cues": CUES, "horizon": size.horizon}
    return make_vector_env(EnvSettings(id="mneme/DelayedCue-v0", kwargs=kwargs), lanes)


def _policy(kind: str, backend: str, size: Sizes) -> Policy:
    controller = ControllerSettings(kind=kind, hidden_size=size.hidden, backend=backend)
    return build_policy(policy_spec(_env(1, size)), PolicySettings(controller=controller), size.horizon, seed=0)


class Trainer:
    """Collects and learns, a whole episode of every lane at a time, as the preset `delayed_cue` does.

    Args:
        run: where, what and how much.
        device: of the learner.
        tiny: for a try.
        settings: of the learner, that are otherwise.
    """

    def __init__(self, run: Run, device: torch.device, tiny: bool, **settings: Any) -> None:
        torch.set_num_threads(1)
        self._run, self._size, self._device = run, sizes(tiny), device
        policy = _policy(run.kind, run.backend, self._size)
        chosen = LearnerSettings(gae_lambda=0.0, precision="tf32", device=str(device), **settings)
        self.learner = Learner(policy, chosen, seed=0, total_timesteps=MOST_STEPS)
        self.episode = self._size.horizon + 1
        self._host = self._on_host(run.lanes, 0, greedy=False)
        self._there = None if run.place == "host" else self._on_device(self._host, run.place == "graph")

    def _on_host(self, lanes: int, seed: int, greedy: bool) -> Collector:
        acting = _policy(self._run.kind, "auto", self._size)
        return Collector(_env(lanes, self._size), acting, self.episode, self.episode, seed=seed, greedy=greedy)

    def _on_device(self, host: Collector, graphed: bool) -> DeviceCollector:
        task = DeviceDelayedCue(host.env.unwrapped, self._device, CUES, self._size.horizon)
        return DeviceCollector(host, task, self.learner.policy, graphed)

    def collect(self) -> tuple[Any, float]:
        """A batch for `learn`, and the share of its episodes that succeeded."""
        if self._there is not None:
            return self._there.collect()
        self.learner.weights().load_into(self._host.policy)
        fragment, stats = self._host.collect(self.learner.version)
        return fragment, float(stats.successes.mean())

    def learn(self, batch: Any) -> None:
        """One update."""
        if isinstance(batch, SequenceBatch):
            self.learner.train_on(batch)
        else:
            self.learner.update([batch.to_arrow()])

    def probe(self, episodes: int, seed: int) -> float:
        """The share of so many episodes, run on the device, in which the greedy policy succeeds."""
        return self._on_device(self._on_host(episodes, seed, greedy=True), graphed=False).collect()[1]


def settle(device: torch.device) -> None:
    """Wait for all that the device was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int | None:
    """The most that tensors have held on a GPU since the process began, or since torch was told to forget."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
