"""Two halves of the lanes that take turns: the same bits as from halves that do not, and as from one collector."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from mneme.controllers import ControllerSettings, Policy, PolicySettings, build_policy
from mneme.envs import EnvironmentFailure, EnvSettings, Place, make_vector_env
from mneme.envs.guard import Guard
from mneme.rollout_workers import Collector, DoubleBuffered, EpisodeStats, Fragment, policy_spec
from mneme.rollout_workers.double_buffered import joined_fragments, joined_stats
from mneme.rollout_workers.lanes import Lanes
from tests.environments import Counted

LANES, LENGTH = 6, 11


class Eventful(gym.Wrapper[Any, Any, Any, Any]):
    """Counting, with a mask that forbids one action, and a lane that fails at every ninth step and in one reset."""

    life = resets = 0

    def __init__(self, lane: int, raises: bool = True) -> None:
        super().__init__(Counted(lane))
        self.raises = raises and lane == 4

    def reset(self, **how: Any) -> Any:
        self.resets += 1
        if self.raises and self.resets == 2:
            raise RuntimeError("the simulator did not come up")
        observation, _ = super().reset(**how)
        return observation, {"action_mask": np.array([True, self.life % 2 == 0])}

    def step(self, action: Any) -> Any:
        self.life += 1
        if self.raises and self.life % 9 == 0:
            raise RuntimeError("the simulator fell over")
        *found, _ = super().step(action)
        return *found, {"action_mask": np.array([True, self.life % 2 == 0]), "score": float(self.life)}


def policy_of(kind: str, masked: bool) -> Policy:
    with closing(SyncVectorEnv([lambda: Guard(Eventful(0), 5) if masked else Counted(0)])) as env:
        settings = PolicySettings(controller=ControllerSettings(kind=kind, hidden_size=16))
        return build_policy(policy_spec(env), settings, 5, seed=0)


def whole(collected: tuple[Fragment, EpisodeStats]) -> dict[str, Any]:
    """All that was collected but seconds, by name; infos of failures in any order."""
    fragment, stats = collected
    fragment.validate()
    told = stats._asdict() | {"seconds": None, "failures": sorted(stats.failures)}
    return {name: np.array(array) for name, array in fragment._columns().items()} | told


def halves(made: Any, policy: Policy, **options: Any) -> tuple[Collector, Collector]:
    """Collectors of each half of the lanes, of what `made` makes of a first lane and a number of lanes."""
    half = LANES // 2
    first, second = (
        Collector(made(lane, half), policy, LENGTH, 4, seed=3, first_lane=lane, success_return=9.0, **options)
        for lane in (0, half)
    )
    return first, second


def eventful(vector: type[Any], mode: AutoresetMode) -> Any:
    """Makes lanes that fail and have masks, in a guard each where a failure is to cut one episode alone."""
    guarded = mode is AutoresetMode.SAME_STEP

    def made(first: int, lanes: int) -> Any:
        makers = [
            lambda lane=lane: Guard(Eventful(lane), 5) if guarded else Eventful(lane, raises=False)
            for lane in range(first, first + lanes)
        ]
        return vector(makers, autoreset_mode=mode)

    return made


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # it is forked, and has threads
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        (AutoresetMode.SAME_STEP, {"warm_up": 15, "metrics": ("score",)}),
        (AutoresetMode.NEXT_STEP, {"reset_carry_at": 2, "greedy": True}),
    ],
)
def test_taking_turns_gives_what_each_half_gives_by_itself(mode: AutoresetMode, options: dict[str, Any]) -> None:
    policy = policy_of("gru", masked=True)
    apart = halves(eventful(SyncVectorEnv, mode), policy, **options)
    turns = DoubleBuffered(*halves(eventful(AsyncVectorEnv, mode), policy, **options))
    failures, cut = 0, 0
    for version in range(3):
        fragments, stats = zip(*(half.collect(version) for half in apart), strict=True)
        expected = joined_fragments(fragments), joined_stats(stats, [LANES // 2] * 2)
        np.testing.assert_equal(whole(turns.collect(version)), whole(expected))
        failures, cut = failures + len(expected[1].failures), cut + int(fragments[0].cut_short.sum())
    assert cut > 2
    assert failures == (4 if mode is AutoresetMode.SAME_STEP else 0)
    for half in (*turns.halves, *apart):
        half.env.close()


@pytest.fixture
def subprocesses() -> Iterator[Any]:
    """Makes counting lanes in subprocesses; they are closed in the end."""
    gym.register("mneme-test/Counted-v0", entry_point=Counted)
    settings = EnvSettings(id="mneme-test/Counted-v0", kwargs={"lane": "{lane}"}, vectorization_mode="async")
    made: list[Any] = []

    def make(first: int, lanes: int) -> Any:
        made.append(make_vector_env(settings, lanes, place=Place(first)))
        return made[-1]

    yield make
    for env in made:
        env.close()
    del gym.registry["mneme-test/Counted-v0"]


def in_one_process(first: int, lanes: int) -> SyncVectorEnv:
    makers = [lambda lane=lane: Guard(Counted(lane), 5) for lane in range(first, first + lanes)]
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.mark.parametrize("kind", ["gru", "lstm", "mingru", "mamba2", "pseudo_mamba"])
def test_it_is_the_fragment_of_one_collector_of_all_lanes(kind: str) -> None:
    """As compiled products have the same bits however many rows there are."""
    policy = policy_of(kind, masked=False)
    one = Collector(in_one_process(0, LANES), policy, LENGTH, 4, seed=3, success_return=9.0, warm_up=7)
    turns = DoubleBuffered(*halves(in_one_process, policy, warm_up=7))
    assert turns.blank().actions.shape == (LANES, LENGTH)
    for version in range(3):
        np.testing.assert_equal(whole(turns.collect(version)), whole(one.collect(version)))


def test_one_half_acts_while_the_other_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def note(name: str, own: Any) -> Any:
        def noted(lanes: Any, *given: Any) -> Any:
            calls.append(f"{name} {lanes.env.envs[0].unwrapped.lane}")
            return own(lanes, *given)

        return noted

    for name in ("send", "receive"):
        monkeypatch.setattr(Lanes, name, note(name, getattr(Lanes, name)))
    DoubleBuffered(*halves(in_one_process, policy_of("gru", masked=False))).collect()
    turn = ["receive 0", "send 0", "receive 3", "send 3"]
    assert calls == ["send 0", "send 3", *turn * (LENGTH - 1), "receive 0", "receive 3"]


@pytest.mark.filterwarnings("ignore:.*Calling `close` while waiting:UserWarning")
def test_a_half_that_dies_leaves_one_that_can_be_closed(subprocesses: Any) -> None:
    turns = DoubleBuffered(*halves(subprocesses, policy_of("gru", masked=False)))
    turns.collect()
    dying: Any = turns.halves[0].env
    dying.processes[1].kill()
    with pytest.raises(EnvironmentFailure, match="an environment's subprocess died"):
        turns.collect()
    for half in turns.halves:
        half.env.close()
