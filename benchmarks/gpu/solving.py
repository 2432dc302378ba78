"""Delayed cue until the greedy policy succeeds in 99 % of the episodes, and in 99 % of those of a fresh seed."""

from time import monotonic

import torch

from benchmarks.gpu.stages import Tell
from benchmarks.gpu.trainer import CUES, MOST_STEPS, Run, Trainer, fast_backends

SUCCESS = 0.99
LANES = {"device": 1024, "host": 256, "graph": 1024}
TINY_LANES, TINY_SUCCESS = 64, 0.9
EPISODES = 512  # of a probe
LEAVES_CHANCE = 1.5 / CUES  # of the sampled success, from which on it is worth probing


def items(device: torch.device, kinds: list[str], tiny: bool) -> list[str]:
    """Every place with the GRU, then the others where all is on the device."""
    fast = fast_backends(device, kinds)
    places = [place for place in LANES if place != "graph" or device.type == "cuda"]
    wanted = [*(("gru", place) for place in places), ("lstm", "device"), ("mamba2", "device")]
    lanes = dict.fromkeys(LANES, TINY_LANES) if tiny else LANES
    return [str(Run(place, kind, fast[kind], lanes[place])) for kind, place in wanted if kind in fast]


def work(item: str, device: torch.device, tiny: bool, tell: Tell) -> None:
    """Tell how far it has come every second, and when it has succeeded or come to `MOST_STEPS`."""
    trainer, wanted = Trainer(Run.of(item), device, tiny), TINY_SUCCESS if tiny else SUCCESS
    began, said, greedy = monotonic(), 0, 0.0
    while greedy < wanted and trainer.learner.env_steps < MOST_STEPS:
        batch, sampled = trainer.collect()
        trainer.learn(batch)
        if sampled > LEAVES_CHANCE and (greedy := trainer.probe(EPISODES, seed=1)) >= wanted:
            greedy = trainer.probe(EPISODES, seed=2 + trainer.learner.version)
        seconds = monotonic() - began
        if greedy >= wanted or seconds > said + 1:
            said = int(seconds)
            tell(
                {
                    "steps": trainer.learner.env_steps,
                    "seconds": seconds,
                    "sampled_success": sampled,
                    "greedy_success": greedy,
                    "solved": greedy >= wanted,
                }
            )
