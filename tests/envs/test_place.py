"""Settings that speak of lanes and workers."""

import socket
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from mneme.envs import EnvSettings, Place, make_vector_env
from mneme.envs.place import resolved, speaks_of_lanes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{lane}", 3),
        ("{worker}", 2),
        ("{47110 + lane}", 47113),
        ("{47110 + 10 * worker + lane % 2}", 47131),
        ("{-(lane - 1) // 1}", -2),
        ("logs/{worker}/{lane}.txt", "logs/2/3.txt"),
        ({"47110 + lane": None}, 47113),  # as YAML reads it without quotation marks
        ({"a": ["{lane}", ("{worker}", 1)]}, {"a": [3, (2, 1)]}),
        ("{frame}", "{frame}"),
        ("frame_{index:03d}.png", "frame_{index:03d}.png"),
        ("a{2,3}b", "a{2,3}b"),
        ("{x*2}", "{x*2}"),
        ("{3-1}", "{3-1}"),
        ("run-{1 + 1}-{lane}", "run-{1 + 1}-3"),
        ({"x": None}, {"x": None}),
        ('{"json": 1}', '{"json": 1}'),
        ("lane", "lane"),
        (1.5, 1.5),
    ],
)
def test_what_stands_in_braces_is_worked_out_where_it_speaks_of_lanes_or_workers(value: Any, expected: Any) -> None:
    assert resolved(value, lane=3, worker=2) == expected
    assert type(resolved(value, lane=3, worker=2)) is type(expected)


@pytest.mark.parametrize(
    "value",
    [
        "{47110 + lan}",
        "{lanes}",
        "{port + lane}",
        "{lane / 2}",
        "{lane.real}",
        "{lane:04d}",
        "{1 // lane}",
        "{lane + }",
    ],
)
def test_braces_that_cannot_be_worked_out_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"^env\.kwargs\.a\.b is '.*', and what stands in its braces cannot be worked"):
        resolved({"a": {"b": value}}, lane=0, worker=0)
    with pytest.raises(ValueError, match=r"^env\.kwargs\.horizon is '.*cannot be worked out"):
        make_vector_env(EnvSettings(kwargs={"horizon": value}), 2)


def test_what_differs_between_lanes_is_told_from_what_does_not() -> None:
    assert all(map(speaks_of_lanes, ["{lane}", "{lane // 100}", {"a": ["x{lane}"]}, {"1 + lane": None}]))
    assert not any(map(speaks_of_lanes, ["{worker}", "lane", "{frame}", {"lane": 1}, 3]))


class Listening(gym.Env[np.ndarray, np.int64]):
    """Listens on a port of its own, and observes it."""

    observation_space = spaces.Box(0, 2**16, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", port))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.array([self.port], np.float32), {}

    def step(self, action: np.int64) -> Any:
        return np.array([self.port], np.float32), 0.0, False, False, {}

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def listening() -> Iterator[str]:
    gym.register("mneme-test/Listening-v0", entry_point=Listening)
    yield "mneme-test/Listening-v0"
    del gym.registry["mneme-test/Listening-v0"]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_every_lane_gets_what_its_number_makes_of_the_setting(listening: str, vectorization: str) -> None:
    settings = EnvSettings(id=listening, kwargs={"port": "{47310 + lane}"}, vectorization_mode=vectorization)
    env = make_vector_env(settings, 3, place=Place(first_lane=4))
    assert env.reset()[0].ravel().tolist() == [47314, 47315, 47316]
    env.close()
    make_vector_env(settings, 3, place=Place(first_lane=4)).close()  # the ports are free again


def test_what_was_made_is_closed_again_where_a_later_lane_cannot_be_made(listening: str) -> None:
    settings = EnvSettings(id=listening, kwargs={"port": "{47320 + lane % 2}"})
    with pytest.raises(ValueError, match="Address already in use"):
        make_vector_env(settings, 3)
    make_vector_env(settings, 2).close()


def test_a_vector_form_gets_the_workers_number_and_gives_way_to_single_forms_for_the_lanes() -> None:
    settings = EnvSettings(kwargs={"horizon": "{5 + worker}"})
    assert make_vector_env(settings, 2, place=Place(worker=3)).unwrapped.facts.memory_horizon == 8
    env = make_vector_env(EnvSettings(kwargs={"horizon": "{5 + lane}"}), 2)
    assert isinstance(env.unwrapped, gym.vector.SyncVectorEnv)
    assert [guard.unwrapped.facts.memory_horizon for guard in env.unwrapped.envs] == [5, 6]
