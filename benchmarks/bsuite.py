"""bsuite's memory experiments, scored as bsuite does: `python -m benchmarks.bsuite`.

memory_len has 23 lengths and memory_size 17 sizes (Osband et al. 2020, "Behaviour suite for reinforcement learning").
Of each, one run of 10,000 episodes in training, whose actions are drawn: it counts as solved where the errors in all of
them, the first included, are less than 0.75 times what guessing makes, that is, more than 62.5 % of the answers are
right (`bsuite/experiments/memory_len/analysis.py`). bsuite's agents play one episode after the other; ours play a few
side by side.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from mneme.configuration.config import load_config
from mneme.envs.memory_chain import BSUITE
from mneme.experiments.seeds import provenance
from mneme.training import train

RESULTS = Path(__file__).parent / "results"
EPISODES, LEARNED, GUESSED = 10_000, 0.75, 0.5
SETTINGS = (
    "env.id=mneme/MemoryLen-v0", "rollout.num_envs=32", "rollout.num_workers=1", "learner.gae_lambda=0",
    "policy.controller.hidden_size=64", "learner.num_threads=1", "train.evaluation_episodes=128",
    "tracking.enabled=false",
)  # fmt: skip


def right(experiment: str, seed: int, overrides: list[str]) -> float:
    """The share of right answers in the first 10,000 episodes of training."""
    length, bits = BSUITE[experiment]["length"], BSUITE[experiment]["bits"]
    sizes = [f"env.kwargs={{length: {length}, bits: {bits}}}", f"train.total_timesteps={EPISODES * (length + 1)}"]
    with TemporaryDirectory() as folder:
        config = load_config(None, [*SETTINGS, *sizes, f"seed={seed}", f"checkpoint.root={folder}", *overrides])
        history = train(config, local=True, progress=False).history()
    counts, shares = history["episodes"].to_pylist(), history["success"].to_pylist()
    left, perfect = EPISODES, 0.0
    for count, share in zip(counts, shares, strict=True):
        if count and share is not None:
            perfect += min(count, left) * share
            left -= min(count, left)
    return perfect / (EPISODES - left)


def main() -> int:
    """Train every experiment, print a table, store JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--experiments", nargs="+", choices=list(BSUITE), default=list(BSUITE))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="bsuite", help="of the JSON under benchmarks/results")
    args = parser.parse_args()
    runs = []
    for experiment in args.experiments:
        share = right(experiment, args.seed, args.settings)
        ratio = (1 - share) / GUESSED
        runs.append(
            {"experiment": experiment, **BSUITE[experiment], "right": share, "regret": ratio, "solved": ratio < LEARNED}
        )
        print(f"{experiment}: {share:.1%} right, regret {ratio:.2f} of guessing", file=sys.stderr, flush=True)
    table = Table(title="bsuite's score: experiments whose regret is below 0.75 of guessing")
    for heading in ("experiments", "solved", "not solved"):
        table.add_column(heading)
    for group in dict.fromkeys(str(run["experiment"]).partition("/")[0] for run in runs):
        own = [run for run in runs if str(run["experiment"]).startswith(group)]
        left = ", ".join(str(run["experiment"]) for run in own if not run["solved"])
        table.add_row(group, f"{sum(bool(run['solved']) for run in own)} of {len(own)}", left or "–")
    Console().print(table)
    document = provenance() | {"settings": [*SETTINGS, *args.settings], "seed": args.seed, "runs": runs}
    (RESULTS / f"{args.name}.json").write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
