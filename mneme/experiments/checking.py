"""`mneme check`: the contract run on one controller, and what it costs, as a report in the terminal."""

import math
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import Generator

from mneme.configuration.config import load_config
from mneme.controllers import Controller, ControllerSettings, build_controller
from mneme.controllers.compilation import compile_ahead
from mneme.controllers.contract import CHECKS, Build, Figures, Finding, findings, measure
from mneme.controllers.contract.figures import LANES, RESETS, STEPS
from mneme.distributed.config import ConfigError
from mneme.reporting.display import NOTHING

_CPU = torch.device("cpu")  # where it is checked
_HORIZON = 64  # steps that something has to be remembered for, where policy.controller.expected_horizon is unset


def check_controller(kind: str, overrides: Sequence[str], console: Console | None = None) -> bool:
    """Print how a controller keeps the contract and what it costs; whether it passes every check.

    Args:
        kind: as `policy.controller.kind`.
        overrides: `key=value` settings of `policy.controller`.
        console: where to print; standard output by default.

    Raises:
        ConfigError: a setting is wrong, or the controller cannot be built.
    """
    console = console or Console(highlight=False)
    torch.set_num_threads(1)
    under = "policy.controller."
    for word in overrides:
        if word.startswith(under):
            raise ConfigError(f"{word} is given to check, whose settings are all of {under[:-1]}; leave that out")
    settings = load_config(None, [f"{under}{word}" for word in (f"kind={kind}", *overrides)]).policy.controller
    build = _builder(settings)
    controller = build(1, Generator().manual_seed(0))
    console.print(
        f"[bold]{kind}[/bold], hidden_size {settings.hidden_size}, {settings.num_layers} layer(s), "
        f"backend {controller.backend_on(_CPU)}"
    )
    compile_ahead(controller, kind)
    failed, table = [], _table()
    for finding in findings(build):
        table.add_row(*_row(finding))
        if not finding.passed:
            failed.append(finding)
    console.print(table)
    for finding in failed:
        console.print(f"[red]{finding.name}[/red]: {finding.detail}", soft_wrap=True)
    left_out = len(CHECKS) - table.row_count
    if left_out:
        console.print(f"{left_out} more checks need results of the right shape, and were not run")
    else:
        console.print(_costs(measure(build, settings.hidden_size)))
    console.print(f"{len(failed)} of {table.row_count} checks failed" if failed else "all checks passed")
    return not failed


def _builder(settings: ControllerSettings) -> Build:
    def build(input_size: int, generator: Generator) -> Controller:
        return build_controller(settings, input_size, _HORIZON, generator)

    try:
        build(settings.hidden_size, Generator().manual_seed(0)).check_backend(_CPU)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return build


def _table() -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in ("check", "what it means"):
        table.add_column(heading)
    for heading in ("error", "tolerance"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    return table


def _row(finding: Finding) -> tuple[str, ...]:
    verdict = "[green]passed[/green]" if finding.passed else "[red]FAILED[/red]"
    tolerance = f"{finding.tolerance:.0e}" if finding.tolerance else "exact"
    error = NOTHING if not math.isfinite(finding.error) else f"{finding.error:.1e}" if finding.error else "0"
    return finding.name, finding.meaning, error, tolerance, verdict


def _costs(figures: Figures) -> Table:
    gru = f"torch.nn.GRU({figures.gru_hidden}), {figures.gru_parameters:,} parameters"
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for name, value in (
        ("parameters", f"{figures.parameters:,}"),
        ("carry", f"{figures.carry_bytes:,} bytes a lane"),
        ("scan, forward and backward", f"{figures.scan_speed:,.0f} steps/s, {figures.scan_ratio:.2f} of {gru}"),
        ("single steps, no gradient", f"{figures.step_speed:,.0f} steps/s, {figures.step_ratio:.2f} of the same"),
        (f"cost of {RESETS:.0%} resets", f"{figures.reset_cost:+.1%} of the scan's time"),
        ("measured with", f"T = {STEPS}, B = {LANES}, float32, 1 thread, in turn with the GRU, best of several"),
    ):
        table.add_row(name, value)
    return table
