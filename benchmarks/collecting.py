"""Measure how fast every controller collects, beside another version of this repository if one is given.

    git worktree add /tmp/before HEAD~10
    python -m benchmarks.collecting --before /tmp/before

Delayed cue, fragments of one episode, 128 units, one thread; steps per second of the processor, as the machine may have
other work to do. The two versions are processes of their own, for every controller, that take turns, fragment after
fragment.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

KINDS = ("mlp", "gru", "lstm", "nbrc", "mingru", "lru", "mamba", "mamba2", "mamba_gru", "pseudo_mamba", "transformer")
EPISODE, HIDDEN = 65, 128
HERE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Collecting with one controller."""

    kind: str
    lanes: int
    speed: float  # steps per second of the processor, the median of the rounds
    before: float | None  # likewise, of the other version
    ratios: list[float]  # over the other version, a round each


class Version:
    """A process that collects with the code of one checkout.

    Args:
        root: the checkout.
        hidden: widths of the layers in the encoder and in each head.
    """

    def __init__(self, root: Path, hidden: Sequence[int] = ()) -> None:
        # -P: this folder's own modules are none of the other version's
        command = [sys.executable, "-P", __file__, "--serve", "--hidden", *map(str, hidden)]
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, env=environment, cwd=root, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def seconds(self, kind: str, lanes: int) -> float:
        """Of the processor, for one fragment.

        Raises:
            RuntimeError: the process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(kind, lanes, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that collects with {kind} ended; what it said stands above")
        return float(answer)

    def close(self) -> None:
        """Let the process end."""
        self._process.communicate()


def serve(hidden: tuple[int, ...]) -> None:
    """Answer each line "kind lanes" with the seconds of a fragment, after one of that kind to warm up."""
    import torch  # here, as this and what follows is the other version's

    from mneme.controllers import ControllerSettings, PolicySettings, build_policy
    from mneme.envs import EnvSettings, make_vector_env
    from mneme.rollout_workers import Collector, policy_spec

    torch.set_num_threads(1)
    collectors: dict[tuple[str, int], Any] = {}
    for line in sys.stdin:
        kind, lanes = line.split()[0], int(line.split()[1])
        if (kind, lanes) not in collectors:
            env = make_vector_env(
                EnvSettings(id="mneme/DelayedCue-v0", kwargs={"cues": 4, "horizon": EPISODE - 1}), lanes
            )
            settings = PolicySettings(
                encoder=hidden, heads=hidden, controller=ControllerSettings(kind=kind, hidden_size=HIDDEN)
            )
            policy = build_policy(policy_spec(env), settings, horizon=EPISODE - 1, seed=0)
            collectors[kind, lanes] = Collector(env, policy, EPISODE, EPISODE, seed=0)
            collectors[kind, lanes].collect()
        clock = process_time()
        collectors[kind, lanes].collect()
        print(process_time() - clock, flush=True)


def measure(
    kinds: Sequence[str], lanes: Sequence[int], rounds: int, roots: Sequence[Path], hidden: Sequence[int] = ()
) -> list[Row]:
    """A row for each kind and number of lanes; of the roots the first is measured, and held against the second."""
    rows = []
    for kind in kinds:
        versions = [Version(root, hidden) for root in roots]  # anew, as another kind's memory stays in a process
        for number in lanes:
            speeds = [[number * EPISODE / version.seconds(kind, number) for version in versions] for _ in range(rounds)]
            now, *before = (median(column) for column in zip(*speeds, strict=True))
            ratios = [speed[0] / speed[1] for speed in speeds if len(speed) > 1]
            rows.append(Row(kind=kind, lanes=number, speed=now, before=next(iter(before), None), ratios=ratios))
            print(_told(rows[-1]), file=sys.stderr)
        for version in versions:
            version.close()
    return rows


def _told(row: Row) -> str:
    said = f"{row.kind}, {row.lanes} lanes: {row.speed:,.0f} steps/s"
    if row.before is None:
        return said
    return (
        f"{said}, before {row.before:,.0f}: × {median(row.ratios):.2f} [{min(row.ratios):.2f}, {max(row.ratios):.2f}]"
    )


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--lanes", nargs="+", type=int, default=[40, 256])
    parser.add_argument("--hidden", nargs="*", type=int, default=[], help="widths of layers in the encoder and heads")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--before", type=Path, help="a checkout of the other version")
    parser.add_argument("--name", default="collecting", help="of the JSON file under benchmarks/results/")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(tuple(arguments.hidden))
        return 0
    from mneme.experiments.machine import describe_machine, versions

    roots = [HERE] + ([arguments.before.resolve()] if arguments.before else [])
    rows = measure(arguments.kinds, arguments.lanes, arguments.rounds, roots, arguments.hidden)
    document = {
        "machine": describe_machine(), "versions": versions("torch", "numba", "numpy"),
        "hidden": arguments.hidden, "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    (HERE / "benchmarks" / "results" / f"{arguments.name}.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
