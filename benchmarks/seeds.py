"""Does it learn? Trains a preset once for each seed and reports k of n. Run as `python -m benchmarks.seeds PRESET`.

Every run goes through the Ray service; afterwards the agent is evaluated again with its carry reset in the middle of
every episode. Seconds are those of training and evaluation, with Ray started once for all seeds.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mneme.configuration.config import load_config
from mneme.distributed.ray_runner import start_ray
from mneme.experiments.seeds import DEFAULT_TARGET, provenance, run_seed

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Train every seed, print a table, store JSON; 130 if it was interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--name", help="of the JSON under benchmarks/results (default: the preset's)")
    args = parser.parse_args()
    config = load_config(args.preset, ["tracking.enabled=false", "checkpoint.root=runs/seeds", *args.settings])
    target = config.train.stop_success or DEFAULT_TARGET
    document = provenance()
    start_ray(config.service, config.rollout.num_workers)
    runs = []
    for seed in range(args.seeds):
        run = run_seed(config.model_copy(update={"seed": seed}))
        if run is None:
            return 130
        runs.append(run)
    solved = sum(run.success >= target for run in runs)

    table = Table(title=f"{args.preset} {' '.join(args.settings)}: {solved} of {len(runs)} seeds reach {target:.0%}")
    for heading in ("seed", "steps", "seconds", "success", "95 % low", "sampled", "carry reset"):
        table.add_column(heading, justify="right")
    for run in runs:
        table.add_row(
            str(run.seed), f"{run.steps:,}", f"{run.seconds:.0f}", f"{run.success:.1%}", f"{run.success_low:.1%}",
            "–" if run.sampled_success is None else f"{run.sampled_success:.1%}", f"{run.success_with_carry_reset:.1%}",
        )  # fmt: skip
    Console().print(table)
    document |= {
        "preset": str(args.preset), "settings": args.settings, "target": target, "solved": solved,
        "runs": [run._asdict() for run in runs],
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.name or args.preset.stem}.json").write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
