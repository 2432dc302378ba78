"""The commands of many runs: `mneme suite`, `mneme sweep`, `mneme report`. Each returns the process's exit status."""

import argparse

from mneme.distributed.config import ConfigError

INTERRUPTED = 130


def suite(options: argparse.Namespace) -> int:
    """`mneme suite`."""
    from mneme.experiments.suite.contest import CONTROLLERS_CONTEST
    from mneme.experiments.suite.horizons import HORIZONS_CONTEST
    from mneme.experiments.suite.modes import MODES_CONTEST
    from mneme.experiments.suite.running import run_suite, show_suite

    contests = {"modes": MODES_CONTEST, "horizons": HORIZONS_CONTEST}
    words = [word for word in (options.contest, *options.settings) if word is not None]
    overrides, named = [word for word in words if "=" in word], [word for word in words if "=" not in word]
    if len(named) > 1 or not {*named} <= contests.keys():
        raise ConfigError(
            f"{', '.join(named)} is no suite; give one of {', '.join(contests)}, or none to compare controllers, and "
            f"settings as key=value"
        )
    what = named[0] if named else "suite"
    contest, name = contests.get(what, CONTROLLERS_CONTEST), options.name or what
    if options.table:
        show_suite(name, contest=contest)
        return 0
    complete = run_suite(
        options.tasks, options.controllers, options.seeds, name=name, local=options.local, overrides=overrides,
        contest=contest,
    )  # fmt: skip
    return 0 if complete else INTERRUPTED


def sweep(options: argparse.Namespace) -> int:
    """`mneme sweep`."""
    from mneme.experiments.sweep.running import run_sweep, show_sweep

    if options.table:
        show_sweep(options.file, options.name)
        return 0
    done = run_sweep(options.file, options.settings, name=options.name)
    return INTERRUPTED if done.interrupted else 0


def report(options: argparse.Namespace) -> int:
    """`mneme report`; the status is 1 if the runs do not hold against those of old."""
    from mneme.experiments.report.writing import write_report

    if options.fail_below is not None and not options.against:
        raise ConfigError("--fail-below is a share of what runs of old came to; name them with --against")
    done = write_report(
        options.paths, options.out, by=options.by, score=options.score, against=options.against or (),
        share=1.0 if options.fail_below is None else options.fail_below,
    )  # fmt: skip
    print(f"wrote {done.page}, and its pictures and tables beside it")
    for held in done.held:
        print(held.line())
    return 0 if done.passed or options.fail_below is None else 1
