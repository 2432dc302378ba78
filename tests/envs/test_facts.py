"""What is known about a task beforehand."""

from contextlib import closing

import gymnasium as gym
import pytest

from mneme.envs import EnvSettings, horizon_of, make_vector_env


@pytest.mark.parametrize(
    "id,kwargs,expected",
    [
        ("DelayedCue-v0", {}, ("horizon", 64)),
        ("DelayedCue-v0", {"horizon": 9}, ("horizon", 9)),
        ("RepeatPreviousMedium-v0", {}, ("k", 32)),
        ("RepeatPreviousMedium-v0", {"k": 5}, ("k", 5)),
        ("MemorySize-v0", {}, ("length", 2)),
        ("Counting-v0", {}, None),
    ],
)
def test_a_task_says_which_argument_is_its_horizon(
    id: str, kwargs: dict[str, int], expected: tuple[str, int] | None
) -> None:
    for mode in ("auto", "sync"):
        with closing(make_vector_env(EnvSettings(id=f"mneme/{id}", kwargs=kwargs, vectorization_mode=mode), 1)) as env:
            assert horizon_of(env, kwargs) == expected


def test_a_horizon_that_is_no_argument_or_no_number_is_not_known() -> None:
    class Own(gym.Env[int, int]):
        horizon_argument = "steps"

        def __init__(self, **kwargs: object) -> None: ...

    assert horizon_of(Own(), {}) is None
    assert horizon_of(Own(), {"steps": "many"}) is None
    assert horizon_of(Own(), {"steps": 7}) == ("steps", 7)
