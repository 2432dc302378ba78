"""What the slots of `pseudo_mamba` add to Mamba-2: `python -m benchmarks.slots`.

Associative recall with more pairs than the preset has, a million steps each. Beside Mamba-2 alone stands one with four
times the states, which has as many parameters as the slots make it. Pictured is success against the mean write gate at
the end, for both rules and several prices of writing. What the file of results holds is not trained again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from mneme.configuration.config import load_config
from mneme.configuration.presets import find_preset
from mneme.experiments.seeds import provenance
from mneme.reporting.curves import picture, plain_numbers
from mneme.training import train

RESULTS = Path(__file__).parent / "results"
STEPS = 1_000_000
LAST = 20  # updates over whose gates the mean is taken
SETTINGS = (
    "learner.gae_lambda=0", "rollout.num_envs=128", "learner.num_threads=1", "train.evaluation_episodes=512",
    "tracking.enabled=false",
)  # fmt: skip
TASKS = {
    "6 pairs, delay 8": "env.kwargs={keys: 8, values: 8, pairs: 6, delay: 8}",
    "6 pairs, delay 64": "env.kwargs={keys: 8, values: 8, pairs: 6, delay: 64}",
    "12 pairs, delay 8": "env.kwargs={keys: 16, values: 8, pairs: 12, delay: 8}",
}
CONTROLLERS = {
    "mamba2": "{kind: mamba2}",
    "mamba2, 64 states": "{kind: mamba2, d_state: 64}",
    "pseudo_mamba": "{kind: pseudo_mamba}",
    "classic": "{kind: pseudo_mamba, rule: classic}",
    "published": "{kind: pseudo_mamba, rule: classic, query: state}",
    "gate_coef 0": "{kind: pseudo_mamba, gate_coef: 0}",
    "gate_coef 1": "{kind: pseudo_mamba, gate_coef: 1}",
    "gate_coef 10": "{kind: pseudo_mamba, gate_coef: 10}",
}
Row = dict[str, Any]


def main() -> int:
    """Train what is missing, print, store, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--controllers", nargs="+", choices=CONTROLLERS, default=list(CONTROLLERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--name", default="slots", help="of the files in benchmarks/results")
    arguments = parser.parse_args()
    path = RESULTS / f"{arguments.name}.json"
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    done = {(row["task"], row["controller"], row["seed"]) for row in rows}
    for seed, task, name in product(range(arguments.seeds), arguments.tasks, arguments.controllers):
        if (task, name, seed) not in done:
            rows.append({"task": task, "controller": name, "seed": seed} | trained(task, name, seed))
            print(rows[-1], file=sys.stderr)
            document = provenance() | {"settings": SETTINGS, "steps": STEPS, "rows": rows}
            path.write_text(json.dumps(document, indent=1) + "\n")
    Console(width=120).print(table(rows))
    draw(rows, path.with_suffix(".png"))
    return 0


def trained(task: str, name: str, seed: int) -> Row:
    """Success in the end, the steps that were trained, and the mean write gate where there is one."""
    with TemporaryDirectory() as folder:
        own = [TASKS[task], f"policy.controller={CONTROLLERS[name]}", f"train.total_timesteps={STEPS}", f"seed={seed}"]
        run = train(
            load_config(find_preset("associative_recall"), [*SETTINGS, *own, f"checkpoint.root={folder}"]),
            local=True, progress=False,
        )  # fmt: skip
        history, evaluation = run.history(), run.evaluation
    assert evaluation is not None
    gates = history["signal/gate"].drop_null().to_pylist() if "signal/gate" in history.column_names else []
    gate = fmean(gates[-LAST:]) if gates else None
    return {"steps": history["step"][-1].as_py(), "success": evaluation.success_rate, "gate": gate}


_FORMS = {"success": "{:.1%}".format, "steps": "{:,}".format, "gate": "{:.3f}".format}


def table(rows: Sequence[Row]) -> Table:
    """Every seed, by task and controller."""
    shown = Table("task", "controller", "success, each seed", "steps", "gate", title="What the slots add")
    for task, name in product(TASKS, CONTROLLERS):
        own = [row for row in rows if (row["task"], row["controller"]) == (task, name)]
        if own:
            columns = ([form(row[key]) for row in own if row[key] is not None] for key, form in _FORMS.items())
            shown.add_row(task, name, *(", ".join(column) or "–" for column in columns))
    return shown


def draw(rows: Sequence[Row], path: Path) -> None:
    """Success against the mean write gate, a picture for each task."""
    gated = [row for row in rows if row["gate"] is not None]
    tasks = [task for task in TASKS if any(row["task"] == task for row in gated)]
    with picture(path, 4 * len(tasks), 3.5) as figure:
        for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            for name in CONTROLLERS:
                own = [row for row in gated if (row["task"], row["controller"]) == (task, name)]
                if own:
                    axes.plot([row["gate"] for row in own], [row["success"] for row in own], "o", label=name)
            axes.set(title=task, xscale="log", xlabel="mean write gate", ylabel="success")
            axes.set(xlim=(0.01, 1), ylim=(-0.03, 1.03))
            plain_numbers(axes.xaxis)
            axes.legend(fontsize=7)


if __name__ == "__main__":
    sys.exit(main())
