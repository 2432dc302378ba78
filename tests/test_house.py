"""Rules of the house that no linter knows."""

from pathlib import Path

import pytest

from mneme.arguments import make_parser

ROOT = Path(__file__).parents[1]
ROOMS = ("mneme", "envs", "controllers", "rollout_workers", "learner", "distributed", "benchmarks")
LONGEST = 350

COMMANDS = {
    "train": {"--local", "--resume", "--retries", "--trust"},
    "evaluate": {
        "--episodes", "--num-envs", "--seed", "--sample", "--reset-carry-at", "--record", "--best", "--video",
        "--video-episodes", "--trust", "--json",
    },
    "diagnose": {"--num-envs", "--seed", "--plot", "--trust"},
    "horizons": {"--horizons", "--episodes", "--num-envs", "--seed", "--plot", "--trust", "--json"},
    "export": {"--trust"},
    "replay": {"--episode", "--plot"},
    "reproduce": {"--trust"},
    "check": set(),
    "suite": {"--tasks", "--controllers", "--seeds", "--name", "--local", "--table"},
    "sweep": {"--name", "--table"},
    "report": {"--out", "--by", "--score", "--against", "--fail-below"},
    "runs": set(),
    "status": {"--address"},
    "dashboard": {"--store", "--port"},
}  # fmt: skip
"""The surface of the command line: who takes something away here takes it from users."""


@pytest.mark.parametrize("room", ROOMS)
def test_files_are_short_enough_to_be_read(room: str) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / room).rglob("*.py")}
    assert lengths
    assert {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > LONGEST} == {}


def test_the_command_line_has_the_commands_and_options_that_it_is_known_for() -> None:
    actions = [action for action in make_parser()._actions if action.choices]
    commands = dict(actions[0].choices or {})
    found = {
        name: {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
        for name, parser in commands.items()
    }
    assert found == {name: options | {"--help"} for name, options in COMMANDS.items()}
