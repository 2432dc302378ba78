"""The process's generators: seeded where they belong to one, kept apart where they are shared."""

from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
import torch  # noqa: F401  so that its generator is among them

from mneme.envs import EnvSettings, Place, make_vector_env
from mneme.envs.global_random import GlobalStreams, seed_process
from tests.envs.drawing import Drawing, DrawingVector, drawn


@pytest.fixture(params=["sync", "async", "vector"])
def settings(request: pytest.FixtureRequest) -> Iterator[EnvSettings]:
    form = {"vector_entry_point": DrawingVector} if request.param == "vector" else {"entry_point": Drawing}
    gym.register("mneme-test/Drawing-v0", **form)
    yield EnvSettings(
        id="mneme-test/Drawing-v0", vectorization_mode="auto" if form.keys() != {"entry_point"} else request.param
    )
    del gym.registry["mneme-test/Drawing-v0"]


def played(settings: EnvSettings, seed: int, place: Place | None = None) -> np.ndarray:
    """What two lanes observe in three steps, [4, 2, 5]."""
    env = make_vector_env(settings, 2, place=place)
    observations = [env.reset(seed=[seed, seed + 1])[0]]
    observations += [env.step(np.zeros(2, np.int64))[0] for _ in range(3)]
    env.close()
    return np.array(observations)


def test_what_lanes_draw_follows_from_the_seed_and_differs_from_lane_to_lane(settings: EnvSettings) -> None:
    a, b, other = played(settings, 1), played(settings, 1), played(settings, 3)
    np.testing.assert_array_equal(a, b)
    kinds = {"auto": [0, 1, 2], "sync": [0, 1, 2, 4], "async": [0, 1, 4]}[settings.vectorization_mode]
    numbers = np.concatenate([a[..., kinds], other[..., kinds]])
    assert len(np.unique(numbers)) == numbers.size


def test_what_is_drawn_in_making_follows_from_the_place(settings: EnvSettings) -> None:
    a = played(settings, 1, Place(0, 0, (7, 0)))
    np.testing.assert_array_equal(a, played(settings, 1, Place(0, 0, (7, 0))))
    others = [played(settings, 1, Place(0, 0, (7, 1))), played(settings, 1, Place(2, 1, (7, 0)))]
    made = [x[0, :, 3].tolist() for x in (a, *others)]
    assert len({number for pair in made for number in pair}) == (3 if settings.vectorization_mode == "auto" else 6)


def test_environments_in_this_process_leave_its_generators_and_each_other_alone(settings: EnvSettings) -> None:
    alone = played(settings, 1)
    seed_process(5)
    expected = [drawn() for _ in range(4)]
    seed_process(5)
    env = make_vector_env(settings, 2)
    found, observations = [drawn()], [env.reset(seed=[1, 2])[0]]
    for _ in range(3):
        played(settings, 9)  # as an evaluation does
        found.append(drawn())
        observations.append(env.step(np.zeros(2, np.int64))[0])
    env.close()
    assert found == expected
    np.testing.assert_array_equal(np.array(observations), alone)


def test_streams_go_on_where_they_were_and_begin_anew_when_seeded() -> None:
    streams = GlobalStreams((1, 2))
    with streams:
        first = drawn()
    with streams:
        second = drawn()
    streams.seed((1, 2))
    with streams:
        again = drawn(), drawn()
    assert again == (first, second)


def test_streams_are_put_back_when_what_runs_in_them_raises() -> None:
    seed_process(5)
    expected = drawn()
    seed_process(5)
    with pytest.raises(RuntimeError), GlobalStreams(0):
        drawn()
        raise RuntimeError
    assert drawn() == expected
