"""The words of the command line: commands, options, and their help."""

import argparse
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mneme.help import sweep_help, train_help
from mneme.reporting.tracking.settings import TrackingSettings
from mneme.storage.paths import local_path
from mneme.storage.settings import CheckpointSettings
from mneme.storage.uri import as_uri

_TRUST = "import the modules that the run names, whoever wrote them, and look for them in the present folder too"
_TRUST_RESUMED = f"{_TRUST}; join the Ray cluster and open the MLflow store that it names"
_A_RUN = "its folder, or one of its checkpoints, or the URI of either in a mirror, as s3://BUCKET/runs/NAME"
_LONGEST = 10**9  # horizon
_HORIZONS = "64,128,256,512,1024,4096,16384,100000"


class _Command(argparse.ArgumentParser):
    """A command's parser. Its help ends in a listing, which is made only if help is asked for, as it takes a while."""

    def __init__(self, listing: Callable[[], str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._listing = listing

    def format_help(self) -> str:
        """Its help, with the listing."""
        if self._listing is not None:
            self.epilog, self.formatter_class = self._listing(), argparse.RawDescriptionHelpFormatter
        return super().format_help()


def make_parser() -> argparse.ArgumentParser:
    """The parser; what it returns has the command's name in `command` and its usage in `usage`."""
    parser = argparse.ArgumentParser(prog="mneme", description="Reinforcement learning for agents that must remember.")
    parser.add_argument("--version", action="version", version=f"mneme {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)

    train = commands.add_parser(
        "train",
        help="train an agent",
        description="Train an agent through Ray rollout actors and a learner actor, or in one process with --local.",
        listing=train_help,
    )
    train.add_argument("preset", nargs="?", help="a preset such as delayed_cue, or a YAML file")
    train.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace the preset's")
    train.add_argument("--local", action="store_true", help="one process, without Ray")
    train.add_argument(
        "--resume",
        metavar="PATH",
        type=_run,
        help=f"go on with a run: {_A_RUN}; train.total_timesteps, train.stop_success and learner.replicas may change",
    )
    train.add_argument(
        "--retries", metavar="N", type=_count,
        help="go on with the run name=..., if it has begun; start again from the last checkpoint when the process that "
        "trains is killed or loses Ray, up to N times without a new checkpoint between them",
    )  # fmt: skip
    train.add_argument("--trust", action="store_true", help=_TRUST_RESUMED)
    train.set_defaults(command="train")

    evaluate = commands.add_parser(
        "evaluate",
        help="run complete episodes with a trained agent",
        description="Run complete episodes through the training collector; print return and success, with 95 % "
        "intervals.",
    )
    evaluate.add_argument("checkpoint", type=_run, help=_A_RUN)
    evaluate.add_argument(
        "settings", nargs="*", metavar="env.key=value", help="play a changed task, such as env.kwargs.horizon=128"
    )
    evaluate.add_argument("--episodes", type=int, default=512, help="complete episodes (default 512)")
    evaluate.add_argument("--num-envs", type=int, help="parallel environments (default: as many as the run had)")
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
    evaluate.set_defaults(command="evaluate")

    diagnose = commands.add_parser(
        "diagnose",
        help="measure what a run's mode does to the gradient",
        description="Collect a batch with a run's newest weights; compare its gradient with that of full "
        "backpropagation through time, and print how far back gradients reach.",
    )
    diagnose.add_argument("checkpoint", type=_run, help=_A_RUN)
    diagnose.add_argument(
        "--num-envs", type=int, help="parallel environments (default: as many as the run, 64 at most)"
    )
    diagnose.add_argument("--seed", type=int, default=0, help="seed of the batch (default 0)")
    diagnose.add_argument("--plot", metavar="FILE", type=_path, help="draw the reach into a PNG or PDF")
    diagnose.add_argument("--trust", action="store_true", help=_TRUST)
    diagnose.set_defaults(command="diagnose")

    horizons = commands.add_parser(
        "horizons",
        help="evaluate an agent at horizons it never saw",
        description="Evaluate a trained agent in its task with other horizons, shorter and longer ones, and print its "
        "success at each, with the 95 % interval.",
    )
    horizons.add_argument("checkpoint", type=_run, help=_A_RUN)
    horizons.add_argument("--horizons", type=_horizons, default=_HORIZONS, metavar="A,B", help="default %(default)s")
    horizons.add_argument("--episodes", type=int, default=256, help="complete episodes at each (default %(default)s)")
    horizons.add_argument("--num-envs", type=int, help="parallel environments (default: as many as the run had)")
    horizons.add_argument("--seed", type=int, default=0, help="seed of the episodes (default 0)")
    horizons.add_argument("--plot", metavar="FILE", type=_path, help="draw success by horizon into a PNG or PDF")
    horizons.add_argument("--trust", action="store_true", help=_TRUST)
    horizons.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    horizons.set_defaults(command="horizons")

    export = commands.add_parser(
        "export",
        help="write a trained agent's step for other runtimes",
        description="Write one step of a trained agent, memory in and memory out, as ONNX or as a program of "
        "torch.export: docs/deployment.md has its inputs and outputs.",
    )
    export.add_argument("checkpoint", type=_run, help=_A_RUN)
    export.add_argument("file", type=_path, help="to be written; it ends in .onnx or .pt2, which decides what it is")
    export.add_argument("--trust", action="store_true", help=_TRUST)
    export.set_defaults(command="export")

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
    replay.set_defaults(command="replay")

    reproduce = commands.add_parser(
        "reproduce",
        help="see the update again that ended a run because its gradients were not finite",
        description="Make the update again that ended a run because its gradients were not finite, and print how it "
        "fails. The exit status is 1 if it does not.",
    )
    reproduce.add_argument("run", type=_path, help="the run's folder, or that of the update in it")
    reproduce.add_argument("--trust", action="store_true", help=_TRUST)
    reproduce.set_defaults(command="reproduce")

    check = commands.add_parser(
        "check",
        help="hold a controller to the contract",
        description="Check that a controller keeps the contract of controllers, and measure what it costs. The exit "
        "status is 1 if it fails.",
    )
    check.add_argument("controller", help="a kind such as gru, or one of your own as module:Class")
    check.add_argument(
        "settings", nargs="*", metavar="key=value", help="as under policy.controller: hidden_size=64 num_layers=2"
    )
    check.set_defaults(command="check")

    suite = commands.add_parser(
        "suite",
        help="compare controllers, modes or horizons on the memory tasks",
        description="Train every controller on every task for several seeds, each with its preset under configs/, and "
        "print what was solved; or, with the word modes in front, every mode of backpropagation; or, with the word "
        "horizons, see what each controller achieves at horizons that it was not trained at. What is done is kept: the "
        "same --name goes on where it stopped.",
    )
    suite.add_argument("contest", nargs="?", metavar="modes|horizons", help="compare these in place of controllers")
    suite.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace the presets'")
    suite.add_argument("--tasks", type=_names, default=[], metavar="A,B", help="presets (default: the memory tasks)")
    suite.add_argument("--controllers", type=_names, default=[], metavar="A,B", help="kinds (default: all of them)")
    suite.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each (default %(default)s)")
    suite.add_argument("--name", help="folder under runs/suites (default suite, modes or horizons)")
    suite.add_argument("--local", action="store_true", help="one process, without Ray")
    suite.add_argument("--table", action="store_true", help="only print what has been done")
    suite.set_defaults(command="suite")

    sweep = commands.add_parser(
        "sweep",
        help="search settings by Ray Tune",
        description="Train every configuration of a space of settings, or those that a search chooses, by Ray Tune, as "
        "many at once as there is room for; write a table, a picture and the best configuration as a preset into "
        "runs/sweeps/NAME. What is done is kept: the same command goes on where it stopped.",
        listing=sweep_help,
    )
    sweep.add_argument(
        "file", help="a YAML file: a preset with a section sweep; or the name of one that is listed below"
    )
    sweep.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace the file's")
    sweep.add_argument("--name", help="folder under runs/sweeps (default: the file's name)")
    sweep.add_argument("--table", action="store_true", help="only print what has been done")
    sweep.set_defaults(command="sweep")

    report = commands.add_parser(
        "report",
        help="compare runs as one HTML page",
        description="Compare runs by their task and by what else differs between them, over seeds: learning curves, "
        "performance profiles, probabilities of improvement, steps to solve. What is written opens without network.",
    )
    report.add_argument(
        "paths", nargs="+", type=_path, metavar="PATH", help="runs, or folders of them (suites, sweeps)"
    )
    report.add_argument("--out", type=_path, metavar="FOLDER", help="default: runs/reports/NAME, as the first path's")
    report.add_argument(
        "--by", type=_names, metavar="A,B", help="settings that make a method (default: all that differ within a task)"
    )
    report.add_argument(
        "--score", metavar="NAME", help="figure of evaluations (default: the normalised return, if known)"
    )
    report.add_argument(
        "--against", type=_path, action="append", metavar="PATH", help="runs of old, or the folder of their report"
    )
    report.add_argument(
        "--fail-below", type=float, metavar="SHARE",
        help="exit with status 1 if a group comes to less than this share of what it was, as 0.95",
    )  # fmt: skip
    report.set_defaults(command="report")

    runs = commands.add_parser(
        "runs", help="list the runs in a folder", description="List the runs in a folder and how each is."
    )
    runs.add_argument(
        "folder", nargs="?", type=_path, default=Path(CheckpointSettings.root), help="default: %(default)s"
    )
    runs.set_defaults(command="runs")

    status = commands.add_parser(
        "status",
        help="tell how one run is, or a Ray job",
        description="Tell how a run is from its folder, or how a Ray job is from its cluster's job server.",
    )
    status.add_argument("run", help="a run's folder, or with --address the identifier of a job")
    status.add_argument("--address", metavar="URL", help="the job server, such as http://127.0.0.1:8265")
    status.set_defaults(command="status")

    dashboard = commands.add_parser(
        "dashboard", help="open MLflow on this machine", description="Serve the MLflow store on 127.0.0.1."
    )
    dashboard.add_argument("--store", default=TrackingSettings.uri, help="MLflow store (default %(default)s)")
    dashboard.add_argument("--port", type=_port, default=5000, help="port on 127.0.0.1 (default %(default)s)")
    dashboard.set_defaults(command="dashboard")
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


def _horizons(text: str) -> tuple[int, ...]:
    if not all(word.strip().isdecimal() and 0 < int(word) <= _LONGEST for word in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text} are no horizons; give numbers from 1 to {_LONGEST:,}, as in 64,1000")
    return tuple(sorted({int(word) for word in text.split(",")}))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no number of times; give 0 or more")
    return int(text)


def _run(text: str) -> Path:
    return _path(text) if as_uri(text) is None else Path(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port; give a number from 1 to 65535")
    return int(text)


def _version() -> str:
    try:
        return version("mneme-rl")
    except PackageNotFoundError:
        return "of a folder that is not installed"
