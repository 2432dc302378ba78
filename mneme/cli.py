"""The command line: `mneme train`, `evaluate`, `replay`, `check`, `suite`, `dashboard`.

Every failure is one sentence on stderr and a non-zero status.
"""

import argparse
import difflib
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from textwrap import fill

from mneme.configuration.config import load_config, settings, suggest
from mneme.configuration.presets import described_presets, find_preset, preset_names
from mneme.distributed.config import ConfigError
from mneme.distributed.runners import ServiceError
from mneme.envs import EnvironmentFailure
from mneme.reporting.tracking.dashboard import serve_dashboard
from mneme.reporting.tracking.settings import TrackingSettings
from mneme.storage.checkpoint import CheckpointError
from mneme.storage.paths import local_path
from mneme.streams import forgiving_output

_TRUST = "import the modules that the run names, whoever wrote them, and look for them in the present folder too"
_TRUST_RESUMED = f"{_TRUST}; join the Ray cluster and open the MLflow store that it names"
_ALIKE = 0.7  # of two options, as difflib measures it
_USAGE_ERROR, _RUN_ERROR, _INTERRUPTED = 2, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit status."""
    with forgiving_output() as output:
        parser = _parser()
        options, rest = parser.parse_known_args(arguments)
        if rest and ("settings" not in options or any(word.startswith("-") for word in rest)):
            hint = _hint(sys.argv[1:] if arguments is None else arguments, rest, options)
            parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
        if "settings" in options:
            options.settings += rest  # argparse gives up on positionals that follow an option
        status = _run(options)
        output.flush()
        if status == 0 and options.command in _PRINTING and output.error and not isinstance(output.error, _ENOUGH):
            return _fail(f"the result could not be printed: {output.error}", _RUN_ERROR)
        return status


def _run(options: argparse.Namespace) -> int:
    try:
        if _uses_own_code(options):
            sys.path.append(os.getcwd())  # where a controller or an environment of one's own may lie
        else:
            os.environ.setdefault("PYTHONSAFEPATH", "1")  # nor do processes that are started from here look there
        if options.command not in (_train, _suite):  # which show themselves what is logged
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("mneme: %(message)s"))
            logging.getLogger("mneme").addHandler(handler)
            logging.getLogger("mneme").setLevel(logging.INFO)
        status: int = options.command(options)
        return status
    except (ConfigError, CheckpointError) as error:
        return _fail(error, _USAGE_ERROR)
    except ValueError as error:
        return _fail(error, _RUN_ERROR if options.command in (_train, _suite) else _USAGE_ERROR)
    except (ServiceError, EnvironmentFailure, FloatingPointError, OSError) as error:
        return _fail(error, _RUN_ERROR)
    except KeyboardInterrupt:
        return _fail("stopped at once; whatever checkpoints were written are whole", _INTERRUPTED)
    except SystemExit as error:
        return _fail(
            f"something that was run called sys.exit({error.code!r}), which ends no run well; whatever checkpoints "
            f"were written are whole",
            _RUN_ERROR,
        )


def _uses_own_code(options: argparse.Namespace) -> bool:
    """Whether the user's own words name the code to be run, not somebody's run."""
    own = options.command in (_train, _check, _suite) and not getattr(options, "resume", None)
    return own or getattr(options, "trust", False)


def _hint(arguments: Sequence[str], unknown: Sequence[str], options: argparse.Namespace) -> str:
    """What was meant by an option that is none: one that is spelt alike, or a setting."""
    option = next((word for word in unknown if word.startswith("--")), "")
    given, separator, value = option.partition("=")
    key = given.lstrip("-").replace("-", "_")
    if not key:
        return ""
    exact = key in {setting.key for setting in settings()}
    known = re.findall(r"--[\w-]+", options.usage)
    if not exact and (alike := difflib.get_close_matches(given.replace("_", "-").lower(), known, n=1, cutoff=_ALIKE)):
        return f"; did you mean {alike[0]}?"
    near = [key] if exact else suggest(key)
    if not near or "settings" not in options:
        return ""
    if not separator and option in arguments:
        behind = [*arguments[arguments.index(option) + 1 :], "-"][0]
        value = "" if behind.startswith("-") or "=" in behind else behind
    return f"; settings are written without dashes: {near[0]}={value or 'VALUE'}"


def _as_one_word(words: Sequence[str]) -> str:
    """How a setting is written, where its name and its value were given as words of their own."""
    known = {setting.key for setting in settings()}
    apart = [word.strip("=") for word in words if word.strip("=")]
    for name, value in pairwise([*apart, ""]):
        near = [name] if name in known else [] if "=" in name or name in preset_names() else suggest(name)
        if near:
            value = "VALUE" if not value or "=" in value or value in known else value
            return f"; a setting and its value are one word: {near[0]}={value}"
    return ""


def _fail(reason: object, status: int) -> int:
    print(f"mneme: {reason}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mneme", description="Reinforcement learning for agents that must remember.")
    parser.add_argument("--version", action="version", version=f"mneme {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train an agent",
        description="Train an agent through Ray rollout actors and a learner actor, or in one process with --local.",
        epilog=f"{_presets_help()}\n\n{_settings_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("preset", nargs="?", help="a preset such as delayed_cue, or a YAML file")
    train.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace the preset's")
    train.add_argument("--local", action="store_true", help="one process, without Ray")
    train.add_argument(
        "--resume", metavar="PATH", type=_path, help="go on with a run: its folder, or one of its checkpoints"
    )
    train.add_argument("--trust", action="store_true", help=_TRUST_RESUMED)
    train.set_defaults(command=_train)

    evaluate = commands.add_parser(
        "evaluate",
        help="run complete episodes with a trained agent",
        description="Run complete episodes through the training collector; print return and success, with 95 % "
        "intervals.",
    )
    evaluate.add_argument("checkpoint", type=_path, help="a run folder, or one of its checkpoints")
    evaluate.add_argument(
        "settings", nargs="*", metavar="env.key=value", help="play a changed task, such as env.kwargs.horizon=128"
    )
    evaluate.add_argument("--episodes", type=int, default=512, help="complete episodes (default 512)")
    evaluate.add_argument("--lanes", type=int, help="parallel environments (default: as many as the run had)")
    evaluate.add_argument("--seed", type=int, default=0, help="seed of the episodes (default 0)")
    evaluate.add_argument("--sample", action="store_true", help="sample actions instead of taking the most probable")
    evaluate.add_argument(
        "--reset-carry-at", type=int, metavar="T",
        help="forget everything at step T of every episode: an agent that needs its memory then falls to chance",
    )  # fmt: skip
    evaluate.add_argument(
        "--record", metavar="FILE", type=_path, help="write the episodes, memory included, to a new Parquet file"
    )
    evaluate.add_argument("--best", type=int, metavar="N", help="record only the N episodes of highest return")
    evaluate.add_argument(
        "--video", metavar="FOLDER", type=_path, help="film the first episodes: an animation and a strip of frames each"
    )
    evaluate.add_argument("--video-episodes", type=int, default=3, metavar="N", help="episodes to film (default 3)")
    evaluate.add_argument("--trust", action="store_true", help=_TRUST)
    evaluate.add_argument("--json", action="store_true", help="print one JSON object instead of a sentence")
    evaluate.set_defaults(command=_evaluate)

    replay = commands.add_parser(
        "replay",
        help="show recorded episodes",
        description="List the episodes of a recording, or print one of them step by step.",
    )
    replay.add_argument("recording", type=_path, help="what mneme evaluate --record wrote")
    replay.add_argument("--episode", type=int, metavar="I", help="show this one, counted from 0")
    replay.add_argument(
        "--plot", metavar="FILE.png", type=_path, help="draw it, with its memory over time (unless chosen: the first)"
    )
    replay.set_defaults(command=_replay)

    check = commands.add_parser(
        "check",
        help="hold a controller to the contract",
        description="Check that a controller keeps the contract of controllers, and measure what it costs. The exit "
        "status is 1 if it fails.",
    )
    check.add_argument("controller", help="a kind such as gru, or one of your own as module:Class")
    check.add_argument(
        "settings", nargs="*", metavar="key=value", help="as under policy.controller: hidden_size=64 kwargs.heads=2"
    )
    check.set_defaults(command=_check)

    suite = commands.add_parser(
        "suite",
        help="compare controllers on the memory tasks",
        description="Train every controller on every task for several seeds, each with its preset under configs/, and "
        "print what was solved. What is done is kept: the same --name goes on where it stopped.",
    )
    suite.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace the presets'")
    suite.add_argument("--tasks", type=_names, default=[], metavar="A,B", help="presets (default: the memory tasks)")
    suite.add_argument("--controllers", type=_names, default=[], metavar="A,B", help="kinds (default: all)")
    suite.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each (default %(default)s)")
    suite.add_argument("--name", default="suite", help="folder under runs/suites (default %(default)s)")
    suite.add_argument("--local", action="store_true", help="one process, without Ray")
    suite.add_argument("--table", action="store_true", help="only print what has been done")
    suite.set_defaults(command=_suite)

    dashboard = commands.add_parser(
        "dashboard", help="open MLflow on this machine", description="Serve the MLflow store on 127.0.0.1."
    )
    dashboard.add_argument("--store", default=TrackingSettings.uri, help="MLflow store (default %(default)s)")
    dashboard.add_argument("--port", type=_port, default=5000, help="port on 127.0.0.1 (default %(default)s)")
    dashboard.set_defaults(command=_dashboard)
    for command in commands.choices.values():
        command.set_defaults(usage=command.format_usage())
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _path(text: str) -> Path:
    try:
        return local_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port; give a number from 1 to 65535")
    return int(text)


def _version() -> str:
    try:
        return version("mneme-rl")
    except PackageNotFoundError:
        return "of a folder that is not installed"


def _presets_help() -> str:
    lines = ["presets (by name from any folder; a file of that name in the present folder comes first):", ""]
    for name, description in described_presets():
        lines += [f"  {name}", fill(description, width=100, initial_indent="      ", subsequent_indent="      ")]
    return "\n".join(lines)


def _settings_help() -> str:
    lines = ["settings (in YAML as sections, on the command line as key=value):", ""]
    for setting in settings():
        default = "unset" if setting.default is None else setting.default
        lines.append(f"  {setting.key}  ({setting.type}, default {default})")
        lines.append(fill(setting.help, width=100, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)


def _train(options: argparse.Namespace) -> int:
    from mneme.training import resume, train  # torch and its friends load only when there is work to do

    words = [word for word in (options.preset, *options.settings) if word is not None]
    files, overrides = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    if len(files) > 1:
        hint = _as_one_word(words) or "; give one, and settings as key=value"
        raise ConfigError(f"got {len(files)} presets ({', '.join(files)}){hint}")
    try:
        preset = find_preset(files[0]) if files else None
    except ConfigError as error:
        hint = _as_one_word(words)
        raise ConfigError(f"{files[0]} is no file and no preset{hint}" if hint else str(error)) from None
    if options.resume is None:
        result = train(load_config(preset, overrides), preset=preset, local=options.local)
    else:
        if preset or any(not override.startswith("train.total_steps=") for override in overrides):
            raise ConfigError("--resume goes on with the run's own settings; besides it, give only train.total_steps=N")
        total = load_config(None, overrides).train.total_steps if overrides else None
        result = resume(options.resume, total_steps=total, local=options.local, trust=options.trust)
    if result.interrupted:
        print(f"interrupted at step {result.steps:,}; go on with: mneme train --resume {result.folder}")
        return _INTERRUPTED
    print(f"done at step {result.steps:,}; evaluate with: mneme evaluate {result.folder}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from mneme.evaluation import evaluate_checkpoint
    from mneme.reporting.meter import describe_evaluation, json_evaluation

    evaluation = evaluate_checkpoint(
        options.checkpoint,
        changes=options.settings,
        episodes=options.episodes,
        lanes=options.lanes,
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


def _replay(options: argparse.Namespace) -> int:
    from mneme.reporting.episode_plot import draw_episode
    from mneme.reporting.replaying import Recording, show

    recording = Recording(options.recording)
    show(recording, options.episode)
    if options.plot is not None:
        index = options.episode or 0
        draw_episode(recording.episode(index), options.plot, f"episode {index}: {recording.description}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from mneme.experiments.checking import check_controller

    return 0 if check_controller(options.controller, options.settings) else _RUN_ERROR


def _suite(options: argparse.Namespace) -> int:
    from mneme.experiments.suite import run_suite, show_suite

    if options.table:
        show_suite(options.name)
        return 0
    complete = run_suite(
        options.tasks, options.controllers, options.seeds, name=options.name, local=options.local,
        overrides=options.settings,
    )  # fmt: skip
    return 0 if complete else _INTERRUPTED


def _dashboard(options: argparse.Namespace) -> int:
    serve_dashboard(options.store, options.port)
    return 0


_PRINTING = (_evaluate, _replay)  # whose result is what they print
_ENOUGH = BrokenPipeError  # whoever read had read enough
