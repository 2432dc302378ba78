"""The outcome of a stage as lines for people, and whether anything in it is wrong."""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.stages import Outcome

MODULE = "torch.nn"  # the backend that the times of GRU and LSTM are held against
REPORTED = "bfloat16"  # the precision in which a scan may be as wrong as it is: some kinds do not run in it


def sound(outcome: Outcome) -> bool:
    """True unless an item failed, or a scan is wrong."""
    return not outcome.failures and not any(
        result.get("passed") is False and not item.endswith(f"/{REPORTED}")
        for item, results in outcome.results.items()
        for result in results
    )


def lines(stage: str, outcome: Outcome) -> Iterator[str]:
    """What to print of a stage."""
    if outcome.skipped:
        yield f"  skipped: {outcome.skipped}"
    for item, results in outcome.results.items():
        for result in results if stage in ("agreement", "timing", "recurrences", "speed") else results[-1:]:
            yield f"  {item:30} {_LINES[stage](item, result, outcome)}"
    for item, why in outcome.failures.items():
        yield f"  {item:30} FAILED: {why.splitlines()[-1]}"
    if outcome.left:
        yield f"  no time was left for {', '.join(outcome.left)}"
    yield f"  {outcome.seconds:.0f} s"


def _agreement(item: str, result: dict[str, Any], outcome: Outcome) -> str:
    shape = f"T, B, H = {', '.join(map(str, result['shape']))}"
    if "failure" in result:
        return f"{shape}: does not run: {result['failure']}"
    verdict = "right" if result["passed"] else "WRONG"
    return f"{shape}: {verdict}, error {result['error']:.1e} of {result['tolerance']:g} (in {result['where']})"


def _timing(item: str, result: dict[str, Any], outcome: Outcome) -> str:
    shape = f"T, B, H = {', '.join(map(str, result['shape']))}"
    if "failure" in result:
        return f"{shape}: {result['failure']}"
    kind, _, *precision = item.split("/")
    theirs = outcome.results.get("/".join((kind, MODULE, *precision)), [])
    same = [other for other in theirs if other["shape"] == result["shape"] and "both_ms" in other]
    cells = []
    for part, name in (("forward", "forward"), ("both", "with backward")):
        ratio = f", {result[f'{part}_ms'] / same[0][f'{part}_ms']:.2f} x {MODULE}" if same else ""
        cells.append(f"{name} {result[f'{part}_ms']:.3f} ms{ratio}, {100 * result[f'{part}_share']:.0f} % of the floor")
    return f"{shape}: {'; '.join(cells)}"


def _solving(item: str, result: dict[str, Any], outcome: Outcome) -> str:
    verdict = "solved" if result["solved"] else f"not solved, greedy success {result['greedy_success']:.0%},"
    return f"{verdict} after {result['steps']:,} steps and {result['seconds']:.1f} s"


def _speed(item: str, result: dict[str, Any], outcome: Outcome) -> str:
    if "kernels" in result:
        k = result["kernels"]
        return f"one update: {k['launched']:,} kernels, {k['in_kernels'] / k['seconds']:.0%} of {k['seconds']:.3f} s"
    busy = "unknown" if result["busy"] is None else f"{result['busy']:.0%}"
    shares = ", ".join(f"{name} {share:.0%}" for name, share in result["shares"].items())
    return f"{result['steps_per_second']:,.0f} trained steps/s in batches of {result['batch']:,}; {shares}; busy {busy}"


def _lengths(item: str, result: dict[str, Any], outcome: Outcome) -> str:
    fit = [known for known in outcome.results[item] if known["fits"]]
    if not fit:
        return f"{result['steps']:,} steps do not fit"
    end = "" if result["fits"] else f", {result['steps']:,} do not fit"
    memory = f", {fit[-1]['peak_bytes'] / 1e9:.1f} GB" if fit[-1]["peak_bytes"] else ""
    return f"{fit[-1]['steps']:,} steps in {fit[-1]['seconds']:.2f} s{memory}{end}"


_LINES = {
    "agreement": _agreement,
    "solving": _solving,
    "speed": _speed,
    "timing": _timing,
    "recurrences": _timing,
    "lengths": _lengths,
}
