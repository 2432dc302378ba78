"""Does it learn? Trains a preset once for each seed and reports k of n. Run as `python -m benchmarks.seeds PRESET`.

Every run goes through the Ray service; afterwards the agent is evaluated again with its carry reset in the middle of
every episode. Seconds are those of training and evaluation, with Ray started once for all seeds.
"""

import argparse
import json
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measurement import cores
from distributed.config import Config, load_config
from distributed.evaluation import evaluate_checkpoint
from distributed.ray_runner import start_ray
from distributed.training import train

RESULTS = Path(__file__).parent / "results"


def run_seed(config: Config, seed: int, root: str) -> dict[str, Any]:
    """Train with one seed; what came of it."""
    started = perf_counter()
    result = train(config.model_copy(update={"seed": seed}).changed("checkpoint", root=root))
    seconds = perf_counter() - started
    assert result.evaluation is not None
    assert result.evaluation.success_interval is not None
    length = int(result.evaluation.lengths.max())
    forgetful = evaluate_checkpoint(result.folder, episodes=512, lanes=128, seed=seed, reset_carry_at=length // 2)
    return {
        "seed": seed,
        "steps": result.steps,
        "seconds": round(seconds, 1),
        "episodes": result.evaluation.episodes,
        "success": result.evaluation.success_rate,
        "success_low": result.evaluation.success_interval[0],
        "success_with_carry_reset": forgetful.success_rate,
    }


def main() -> None:
    """Train every seed, print a table, store JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--name", help="of the JSON under benchmarks/results (default: the preset's)")
    args = parser.parse_args()
    config = load_config(args.preset, ["tracking.enabled=false", *args.settings])
    target = config.train.stop_success or 0.99
    start_ray(config.service, config.rollout.workers)
    rows = [run_seed(config, seed, "runs/seeds") for seed in range(args.seeds)]
    solved = sum(row["success"] >= target for row in rows)

    table = Table(title=f"{args.preset} {' '.join(args.settings)}: {solved} of {len(rows)} seeds reach {target:.0%}")
    for heading in ("seed", "steps", "seconds", "success", "95 % low", "carry reset"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row["seed"]), f"{row['steps']:,}", f"{row['seconds']:.0f}", f"{row['success']:.1%}",
            f"{row['success_low']:.1%}", f"{row['success_with_carry_reset']:.1%}",
        )  # fmt: skip
    Console().print(table)
    document = {
        "preset": str(args.preset), "settings": args.settings, "target": target, "solved": solved, "runs": rows,
        "machine": {"platform": platform.platform(), "cores": cores(), "date": str(date.today())},
        "versions": {name: version(name) for name in ("torch", "ray", "numpy", "gymnasium")},
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.name or args.preset.stem}.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
