"""Ask a GPU everything at once, in six minutes: `python -m benchmarks.gpu`. Needs no Ray.

Stage by stage, each with its own time: are the scans right, does it learn, how fast does it train, how fast are the
scans, how long may sequences be? Processes of their own do the work, so that a kernel that fails or hangs costs only
itself, and what is known is stored after every answer. Torch and numpy are enough for the scans; training needs
gymnasium and pyarrow too, kernels triton, and those of Mamba-2 mamba_ssm and einops.
"""

import argparse
import json
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.gpu.report import lines, sound
from benchmarks.gpu.stages import Outcome, Plan, run_stage
from benchmarks.gpu.work import STAGES, Options
from mneme.experiments.machine import cores, describe_machine, versions

RESULT = Path(__file__).parents[1] / "results" / "gpu.json"
EXTRAS = {
    name: name.replace("pynvml", "nvidia-ml-py")
    for name in ("triton", "mamba_ssm", "einops", "gymnasium", "pyarrow", "pynvml")
}
"""What some of it needs: module -> distribution."""
MINUTES = 5.6  # and what it takes to start


def main() -> int:
    """Run the stages; 1 if something failed or is wrong, 2 if nothing could be asked."""
    arguments = _parse()
    if missing := [name for name in ("torch", "numpy") if find_spec(name) is None]:
        print(f"{' and '.join(missing)} must be installed for this")
        return 2
    try:
        document = _described(arguments.device)
    except (RuntimeError, ValueError) as error:
        print(error)
        return 2
    if absent := [distribution for module, distribution in EXTRAS.items() if find_spec(module) is None]:
        print(f"not installed, so that what needs it is left out: {', '.join(absent)}", flush=True)
    kinds = tuple(arguments.kinds or document["kinds"])
    options = Options(device=arguments.device, tiny=arguments.tiny, kinds=kinds)
    document |= {"options": asdict(options), "stages": {}}
    path = arguments.output or (None if arguments.tiny or not arguments.device.startswith("cuda") else RESULT)
    chosen = {name: stage for name, stage in STAGES.items() if name in (arguments.stages or STAGES)}
    deadline, second = monotonic(), 60 * arguments.minutes / sum(stage.seconds for stage in chosen.values())
    for name, stage in chosen.items():
        print(stage.title, flush=True)
        deadline += second * stage.seconds
        outcome = Outcome()
        document["stages"][name] = outcome
        if missing := stage.missing():
            outcome.skipped = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        else:
            at_once = min(stage.at_once, cores())
            plan = Plan(items=options.items(name), at_once=at_once, item_seconds=second * stage.item_seconds)
            command = [sys.executable, "-m", "benchmarks.gpu.work", name, *options.words()]
            run_stage(plan, command, deadline, outcome, heard=lambda: _store(document, path))
        _store(document, path)
        for line in lines(name, outcome):
            print(line, flush=True)
    if path is not None:
        print(f"stored in {path}")
    return 0 if all(sound(outcome) for outcome in document["stages"].values()) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a try (with --tiny)")
    parser.add_argument("--tiny", action="store_true", help="small sizes: does everything run?")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="of controllers; all by default")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"that it may take (default {MINUTES})")
    parser.add_argument("--output", type=Path, help="the JSON file (default benchmarks/results/gpu.json, for a GPU)")
    return parser.parse_args()


def _described(name: str) -> dict[str, Any]:
    """The machine, the device, the versions, and the kinds of controllers that there are.

    Raises:
        ValueError, RuntimeError: there is no such device.
    """
    import torch  # here, as it may be missing

    from benchmarks.gpu.scans import every_kind
    from mneme.learner.device import resolve_device

    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("torch finds no GPU on this machine; to try the command without one, use --device cpu --tiny")
    device = resolve_device(name)
    there = {distribution: _version(distribution) for module, distribution in EXTRAS.items() if find_spec(module)}
    known = versions("torch", "numpy") | there
    document = {"machine": describe_machine(), "versions": known, "kinds": every_kind()}
    if device.type != "cuda":
        return document | {"device": device.type}
    properties = torch.cuda.get_device_properties(device)
    return document | {
        "device": properties.name,
        "processors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # a folder that was carried there
        return "unknown"


def _store(document: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        plain = {**document, "stages": {name: asdict(outcome) for name, outcome in document["stages"].items()}}
        path.write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
