"""Workers may fail and hang: what they had told stays, and the others go on."""

import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.stages import Outcome, Plan, run_stage

ROOT = Path(__file__).parents[3]
WORKER = """
import os, sys, time
sys.path.insert(0, {root!r})
from benchmarks.gpu.stages import serve

def work(item, tell):
    print("chatter")
    tell({{"item": item, "process": os.getpid()}})
    if item == "raises":
        raise RuntimeError("out of luck")
    if item == "dies":
        os.abort()
    if item == "hangs":
        time.sleep(600)
    tell({{"more": 1.5}})

serve(work)
"""


def run(*items: str, at_once: int = 1, item_seconds: float = 60.0, seconds: float = 120.0) -> tuple[Outcome, int]:
    """The outcome, and how often something was heard."""
    outcome, heard = Outcome(), list[float]()
    command = [sys.executable, "-c", WORKER.format(root=str(ROOT))]
    plan = Plan(items=items, at_once=at_once, item_seconds=item_seconds, starting_seconds=10.0)
    run_stage(plan, command, time.monotonic() + seconds, outcome, heard=lambda: heard.append(outcome.seconds))
    return outcome, len(heard)


def test_one_process_works_on_one_item_after_another() -> None:
    outcome, heard = run("a", "b", "c")
    assert outcome.failures == {} and outcome.left == []
    assert [len(results) for results in outcome.results.values()] == [2, 2, 2]
    assert len({results[0]["process"] for results in outcome.results.values()}) == 1
    assert heard == 9 and outcome.seconds > 0


def test_an_item_that_fails_costs_only_itself_and_keeps_what_it_told() -> None:
    outcome, _ = run("raises", "a", "dies", "b", at_once=2)
    assert outcome.failures.keys() == {"raises", "dies"}
    assert outcome.failures["raises"].splitlines()[-1] == "RuntimeError: out of luck"
    assert {item: len(results) for item, results in outcome.results.items()} == {"raises": 1, "a": 2, "dies": 1, "b": 2}


def test_an_item_that_hangs_is_ended_and_the_next_goes_on() -> None:
    outcome, _ = run("a", "hangs", "b", item_seconds=4.0)
    assert outcome.failures == {"hangs": "no end after 4 s"}
    assert [len(results) for results in outcome.results.values()] == [2, 1, 2]


def test_what_there_is_no_time_for_is_named() -> None:
    outcome, _ = run("hangs", "a", "b", seconds=0.5)
    assert outcome.failures.keys() == {"hangs"} and outcome.left == ["a", "b"]


@pytest.mark.parametrize("items", [(), ("a",)])
def test_a_stage_that_begins_too_late_does_nothing(items: tuple[str, ...]) -> None:
    outcome, heard = run(*items, seconds=-1.0)
    assert outcome.results == {} and outcome.left == list(items) and heard == 0
