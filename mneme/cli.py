"""The command line: `mneme train`, `evaluate`, `diagnose`, `horizons`, `export`, `replay`, `reproduce`, `check`,
`suite`, `sweep`, `report`, `runs`, `status`, `dashboard`.

Every failure is one sentence on stderr and a non-zero status.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from mneme.arguments import make_parser
from mneme.comparing import INTERRUPTED, report, suite, sweep
from mneme.configuration.config import load_config
from mneme.distributed.config import ConfigError
from mneme.envs import EnvironmentFailure
from mneme.given_words import hint_of, preset_and_settings
from mneme.reporting.tracking.dashboard import serve_dashboard
from mneme.storage.checkpoint import CheckpointError, existing
from mneme.storage.fetching import source_of
from mneme.storage.paths import local_path, pasted
from mneme.storage.run_folder import RunFolder
from mneme.storage.trust import needs_trust
from mneme.streams import forgiving_output, kept_for_the_result
from mneme.supervision import LOST, become_supervisor

if TYPE_CHECKING:
    from mneme.training import Run

_USAGE_ERROR, _RUN_ERROR = 2, 1
_TRAINING = ("train", "suite", "sweep")
"""Commands that train, and show what is logged themselves."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit status."""
    with forgiving_output() as output:
        parser = make_parser()
        options, rest = parser.parse_known_args(arguments)
        if rest and ("settings" not in options or any(word.startswith("-") for word in rest)):
            hint = hint_of(sys.argv[1:] if arguments is None else arguments, rest, options)
            sentence = f"unrecognized arguments: {' '.join(rest)}{hint}"
            parser.exit(_USAGE_ERROR, f"{options.usage}mneme {options.command}: error: {sentence}\n")
        if "settings" in options:
            options.settings += rest  # argparse gives up on positionals that follow an option
        options.words = list(sys.argv[1:] if arguments is None else arguments)
        status = _run(options)
        output.flush()
        if status == 0 and options.command in _PRINTING and output.error and not isinstance(output.error, _ENOUGH):
            return _fail(f"the result could not be printed: {output.error}", _RUN_ERROR)
        return status


def _run(options: argparse.Namespace) -> int:
    try:
        listening = nullcontext() if options.command in _TRAINING else _sentences_on_stderr()
        with _search_path(_uses_own_code(options)), listening:
            if "checkpoint" in options:
                _refuse_absent(options.checkpoint)
            return _COMMANDS[options.command](options)
    except (ConfigError, CheckpointError) as error:
        return _fail(error, _USAGE_ERROR)
    except ValueError as error:
        return _fail(error, _RUN_ERROR if options.command in _TRAINING else _USAGE_ERROR)
    except ModuleNotFoundError as error:
        return _fail(f"this needs {error.name}, which is not installed: pip install mneme-rl[train]", _USAGE_ERROR)
    except (EnvironmentFailure, FloatingPointError, OSError) as error:
        return _fail(error, _RUN_ERROR)
    except RuntimeError as error:
        from mneme.distributed.runners import ServiceError, ServiceLost  # only here: it loads torch

        if not isinstance(error, ServiceError):
            raise
        again = isinstance(error, ServiceLost) and getattr(options, "retries", None) is not None
        return _fail(error, LOST if again else _RUN_ERROR)
    except KeyboardInterrupt:
        return _fail("stopped at once; whatever checkpoints were written are whole", INTERRUPTED)
    except SystemExit as error:
        return _fail(
            f"something that was run called sys.exit({error.code!r}), which ends no run well; whatever checkpoints "
            f"were written are whole",
            _RUN_ERROR,
        )


@contextmanager
def _search_path(own_code: bool) -> Iterator[None]:
    """Look in the present folder for a controller or an environment of one's own; without any, in no process."""
    path, safe = [*sys.path], "PYTHONSAFEPATH" in os.environ
    if own_code:
        sys.path.append(os.getcwd())
    elif not safe:
        os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        sys.path[:] = path
        if not safe:
            os.environ.pop("PYTHONSAFEPATH", None)


@contextmanager
def _sentences_on_stderr() -> Iterator[None]:
    """Show what is logged on standard error, as the command's own messages."""
    logger, handler = logging.getLogger("mneme"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("mneme: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _uses_own_code(options: argparse.Namespace) -> bool:
    """True if the user's own arguments name the code to be run, or vouch for it with `--trust`."""
    own = options.command in (*_TRAINING, "check") and not getattr(options, "resume", None)
    own = own or bool(getattr(options, "retries", None))  # the process that it starts will see for itself
    return own or getattr(options, "trust", False)


def _fail(reason: object, status: int) -> int:
    print(f"mneme: {reason}", file=sys.stderr)
    return status


def _train(options: argparse.Namespace) -> int:
    given = preset_and_settings([word for word in (options.preset, *options.settings) if word is not None])
    run = _begun(options, *given) if options.resume is None else _resumed(options, *given)
    if run.interrupted:
        local = " --local" if options.local else ""
        trust = _trust(run.folder, options.local)
        print(f"interrupted at step {run.steps:,}; go on with: mneme train --resume {pasted(run.folder)}{local}{trust}")
        return INTERRUPTED
    trust = _trust(run.folder, None)
    print(f"done at step {run.steps:,}; evaluate with: mneme evaluate {pasted(run.folder)}{trust}")
    return 0


def _trust(run: Path, local: bool | None) -> str:
    """The option that a command for a run needs, if it does; none where somebody has taken the folder away."""
    config = RunFolder(run).config
    return " --trust" if config.exists() and needs_trust(load_config(config), run, local=local) else ""


def _begun(options: argparse.Namespace, preset: Path | None, overrides: list[str]) -> "Run":
    config = load_config(preset, overrides)
    if options.retries:
        become_supervisor(RunFolder.named(config).path, options.retries, options.words)
    from mneme.training import train  # torch and its friends load only when there is work to do

    return train(config, preset=preset, local=options.local, go_on=options.retries is not None)


def _resumed(options: argparse.Namespace, preset: Path | None, overrides: list[str]) -> "Run":
    from mneme.resumption import refuse_other_changes

    if preset is not None:
        word = next(word for word in (options.preset, *options.settings) if "=" not in word)
        raise ConfigError(f"{word} is given, but a run goes on with its own settings; leave {word} out")
    refuse_other_changes(overrides)
    if options.retries is not None and (source := source_of(options.resume)):
        raise ConfigError(
            f"--retries goes on in a folder, and {source.uri} is a mirror; give name={source.name} and its "
            f"checkpoint.mirror, with the settings of the run, and what is not here is brought home"
        )
    load_config(None, overrides)  # which refuses what cannot be before there is a parent
    _refuse_absent(options.resume)
    if options.retries:
        become_supervisor(RunFolder.of(options.resume).path, options.retries, options.words)
    from mneme.training import resume

    return resume(options.resume, *overrides, local=options.local, trust=options.trust)


def _refuse_absent(run: Path) -> None:
    """Refuse a run of this machine that is not there, before torch is loaded to make something of it."""
    if source_of(run) is None:
        existing(run)


def _evaluate(options: argparse.Namespace) -> int:
    from mneme.evaluation import evaluate_checkpoint, refuse_other_settings
    from mneme.reporting.meter import describe_evaluation, json_evaluation

    refuse_other_settings(options.settings)
    if options.settings:
        logging.getLogger(__name__).info(f"the task is changed: {' '.join(options.settings)}")
    with kept_for_the_result(options.json):
        evaluation = evaluate_checkpoint(
            options.checkpoint,
            changes=options.settings,
            episodes=options.episodes,
            num_envs=options.num_envs,
            seed=options.seed,
            greedy=not options.sample,
            reset_carry_at=options.reset_carry_at,
            record=options.record,
            best=options.best,
            video=options.video,
            video_episodes=options.video_episodes,
            trust=options.trust,
        )
    if options.json:
        asked = {"seed": options.seed, "greedy": not options.sample, "reset_carry_at": options.reset_carry_at}
        print(json.dumps({"changes": options.settings} | asked | json_evaluation(evaluation), allow_nan=False))
        return 0
    changed = f" of a changed task ({' '.join(options.settings)})" if options.settings else ""
    print(f"{describe_evaluation(evaluation)}{changed}")
    return 0


def _diagnose(options: argparse.Namespace) -> int:
    from mneme.experiments.diagnosing import diagnose, draw_reach

    found = diagnose(options.checkpoint, seed=options.seed, num_envs=options.num_envs, trust=options.trust)
    for line in found.lines():
        print(line)
    if options.plot is not None:
        draw_reach(found, options.plot)
        print(f"drawn in {options.plot}")
    return 0


def _horizons(options: argparse.Namespace) -> int:
    from mneme.experiments.horizons import draw_horizons, horizons_of, keep_horizons
    from mneme.reporting.curves import check_picture
    from mneme.reporting.meter import json_evaluation

    if options.plot is not None:
        check_picture(options.plot)
    with kept_for_the_result(options.json):
        found = horizons_of(
            options.checkpoint, options.horizons, episodes=options.episodes, seed=options.seed,
            num_envs=options.num_envs, trust=options.trust, tell=None if options.json else print,
        )  # fmt: skip
    keep_horizons(found, options.checkpoint)
    if options.json:
        points = [{"horizon": point.horizon} | json_evaluation(point.evaluation) for point in found.points]
        print(json.dumps({"setting": found.setting, "trained": found.trained, "points": points}, allow_nan=False))
    if options.plot is not None:
        draw_horizons(found, options.plot, options.checkpoint.name)
        if not options.json:
            print(f"drawn in {options.plot}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from mneme.agent import load_policy
    from mneme.exporting import export_policy

    inputs = export_policy(load_policy(options.checkpoint, options.trust).policy, options.file)
    print(f"wrote {options.file}, {options.file.stat().st_size:,} bytes; it takes {', '.join(inputs)}")
    return 0


def _replay(options: argparse.Namespace) -> int:
    from mneme.reporting.episode_plot import draw_episode
    from mneme.reporting.replaying import Recording, show

    recording = Recording(options.recording)
    show(recording, options.episode)
    if options.plot is not None:
        index = options.episode or 0
        draw_episode(recording.episode(index), options.plot, f"episode {index}: {recording.description}")
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    from mneme.reproduction import reproduce

    sentence = reproduce(options.run, trust=options.trust)
    if sentence is None:
        return _fail(
            "every gradient of this update is finite here; elsewhere, by other versions or kinds of processors, or "
            "with another learner.num_threads or without the run's learner.replicas, the last bits differ",
            _RUN_ERROR,
        )
    print(sentence)
    return 0


def _check(options: argparse.Namespace) -> int:
    from mneme.experiments.checking import check_controller

    return 0 if check_controller(options.controller, options.settings) else _RUN_ERROR


def _runs(options: argparse.Namespace) -> int:
    from mneme.reporting.runs import show_runs

    show_runs(options.folder)
    return 0


def _status(options: argparse.Namespace) -> int:
    from mneme.reporting.runs import show_job, show_status

    if options.address is None:
        show_status(RunFolder.of(local_path(options.run)).path)
    else:
        show_job(options.run, options.address)
    return 0


def _dashboard(options: argparse.Namespace) -> int:
    serve_dashboard(options.store, options.port)
    return 0


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "diagnose": _diagnose,
    "horizons": _horizons,
    "export": _export,
    "replay": _replay,
    "reproduce": _reproduce,
    "check": _check,
    "suite": suite,
    "sweep": sweep,
    "report": report,
    "runs": _runs,
    "status": _status,
    "dashboard": _dashboard,
}
_PRINTING = ("evaluate", "report", "diagnose", "horizons", "replay", "reproduce", "runs", "status")
"""Commands whose result is what they print."""
_ENOUGH = BrokenPipeError  # whoever read had read enough
