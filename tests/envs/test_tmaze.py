"""T-maze: against a plain walk on a map, by enumeration of all walks, and of all policies without memory."""

import itertools
from collections import Counter

import numpy as np
import pytest

from mneme.envs.tmaze import TMaze
from tests.envs.first_episodes import memoryless_returns, returns_of, seeds_of_each_content

_MOVES = {0: (1, 0), 1: (0, 1), 2: (-1, 0), 3: (0, -1)}
_LEFT = 2
_VIEWS = np.array([(0, 1), (0, -1), (0, 0), (1, 0), (1, 1), (1, -1)])


class _Oracle:
    """Fetches the hint, walks straight on, and turns where the hint said."""

    def __init__(self, env: TMaze, active: bool) -> None:
        self.walks = env.single_action_space.n == 4
        self.fetch = active
        self.hint_B = np.zeros(env.num_envs)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        at_junction_B = observation[:, 0] == 1
        self.hint_B = np.where(at_junction_B, self.hint_B, self.hint_B + observation[:, 1])
        if not self.walks:
            return (self.hint_B < 0).astype(np.int64)
        onward = _LEFT if self.fetch else 0
        self.fetch = False
        return np.where(at_junction_B, np.where(self.hint_B > 0, 1, 3), onward)


def _walk(length: int, active: bool, dense: bool, goal: int, actions: list[int]) -> tuple[list[list[int]], list[float]]:
    """Observations, the final one included, and rewards of one episode, on a map of (x, y) as in the paper."""
    start = 1 if active else 0
    far = start + length
    cells = {(x, 0) for x in range(far + 1)} | {(far, 1), (far, -1)}
    x, y, visited = start, 0, not active
    seen, paid = [[0, 0 if active else goal]], []
    for t, action in enumerate(actions, start=1):
        dx, dy = _MOVES[action]
        if (x + dx, y + dy) in cells:
            x, y = x + dx, y + dy
        hint = goal if x == 0 and not visited else 0
        visited = visited or x == 0
        seen.append([1, y] if x == far else [0, hint])
        late = dense and x < t - start
        paid.append(float(y == goal) if t == len(actions) else (-1.0 / length if late else 0.0))
    return seen, paid


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("reward", ["dense", "sparse"])
@pytest.mark.parametrize("length", [1, 2, 6])
def test_every_step_is_that_of_a_plain_walk_on_the_map(length: int, reward: str, active: bool) -> None:
    lanes, episode = 200, length + 3 if active else length + 1
    env = TMaze(lanes, length=length, active=active, reward=reward)
    observation, _ = env.reset(seed=4)
    for actions in np.random.default_rng(length).choice(4, (3, episode, lanes), p=[0.5, 0.2, 0.1, 0.2]):
        seen, paid = [observation], []
        for t, action in enumerate(actions, start=1):
            observation, reward_now, terminated, truncated, info = env.step(action)
            assert (terminated == (t == episode)).all() and not truncated.any()
            seen.append(observation if t < episode else np.stack(list(info["final_obs"])))
            paid.append(reward_now)
        for lane in range(lanes):
            walks = [_walk(length, active, reward == "dense", goal, actions[:, lane].tolist()) for goal in (1, -1)]
            assert ([view[lane].tolist() for view in seen], [r[lane] for r in paid]) in walks


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("reward", ["dense", "sparse"])
def test_an_episode_of_any_length_is_a_plain_walk_on_a_map_of_that_length(reward: str, active: bool) -> None:
    lanes, more = 300, 3 if active else 1
    env = TMaze(lanes, length=5, shortest_length=2, active=active, reward=reward)
    observation, _ = env.reset(seed=8)
    seen, paid, taken = ([[] for _ in range(lanes)] for _ in range(3))
    going_B = np.ones(lanes, dtype=np.bool_)
    for action in np.random.default_rng(5).choice(4, (5 + more, lanes), p=[0.5, 0.2, 0.1, 0.2]):
        before = observation
        observation, reward_now, terminated, _, info = env.step(action)
        for lane in np.flatnonzero(going_B):
            seen[lane].append(before[lane].tolist())
            paid[lane].append(reward_now[lane])
            taken[lane].append(int(action[lane]))
            if terminated[lane]:
                seen[lane].append(info["final_obs"][lane].tolist())
        going_B &= ~terminated
    assert not going_B.any()
    for lane in range(lanes):
        length = len(taken[lane]) - more
        walks = [_walk(length, active, reward == "dense", goal, taken[lane]) for goal in (1, -1)]
        assert (seen[lane], paid[lane]) in walks
    counts = np.bincount([len(t) - more for t in taken], minlength=6)
    assert (counts[:2] == 0).all()
    assert (abs(counts[2:] - lanes / 4) < 4 * np.sqrt(lanes * 3 / 16)).all()


def test_chance_with_many_lengths_is_the_mean_of_theirs() -> None:
    for kwargs in ({}, {"active": True}, {"reward": "sparse"}, {"walk": False}):
        each = [TMaze(1, length=length, **kwargs).facts.chance_return for length in (3, 4, 5)]
        assert TMaze(1, length=5, shortest_length=3, **kwargs).facts.chance_return == pytest.approx(np.mean(each))
    assert TMaze(1, length=5, shortest_length=3).facts.episode_length is None
    assert TMaze(1, length=5, shortest_length=5).facts == TMaze(1, length=5).facts


@pytest.mark.parametrize("kwargs", [{}, {"active": True}, {"walk": False}], ids=str)
@pytest.mark.parametrize("length", [1, 10, 10_000])
def test_oracle_earns_exactly_the_optimal_return(length: int, kwargs: dict[str, bool]) -> None:
    env = TMaze(8, length=length, **kwargs)
    returns = returns_of(env, _Oracle(env, active=kwargs.get("active", False)))
    assert (returns == env.facts.optimal_return).all()
    assert (returns == env.facts.success_return).all()


@pytest.mark.parametrize("kwargs", [{}, {"active": True}, {"walk": False}], ids=str)
def test_oracle_earns_it_at_lengths_of_all_kinds_too(kwargs: dict[str, bool]) -> None:
    env = TMaze(64, length=40, shortest_length=1, **kwargs)
    assert (returns_of(env, _Oracle(env, active=kwargs.get("active", False))) == 1.0).all()


@pytest.mark.parametrize("reward", ["dense", "sparse"])
@pytest.mark.parametrize("kwargs", [{}, {"active": True}, {"walk": False}], ids=str)
@pytest.mark.parametrize("length", [1, 2])
def test_no_policy_without_memory_beats_one_half(length: int, kwargs: dict[str, bool], reward: str) -> None:
    def make(lanes: int) -> TMaze:
        return TMaze(lanes, length=length, reward=reward, **kwargs)

    seeds = seeds_of_each_content(make, _LEFT if "walk" not in kwargs else 0)
    assert len(seeds) == 2
    assert memoryless_returns(make, seeds, _VIEWS).max() == make(1).facts.memoryless_return == 0.5


def _all_walks_mean(length: int, active: bool, reward: str) -> float:
    """Mean return over all sequences of actions and both goals, played by the environment."""

    def make(lanes: int) -> TMaze:
        return TMaze(lanes, length=length, active=active, reward=reward)

    seeds = seeds_of_each_content(make, _LEFT)
    walks = np.array(list(itertools.product(range(4), repeat=make(1).facts.episode_length)))
    steps = iter(np.repeat(walks, len(seeds), axis=0).T)
    return float(returns_of(make(len(seeds) * len(walks)), lambda _: next(steps), seeds * len(walks)).mean())


@pytest.mark.parametrize("reward", ["dense", "sparse"])
@pytest.mark.parametrize(("active", "length"), [(False, 1), (False, 2), (False, 5), (True, 1), (True, 2), (True, 4)])
def test_chance_is_the_mean_over_all_walks(active: bool, length: int, reward: str) -> None:
    chance = TMaze(1, length=length, active=active, reward=reward).facts.chance_return
    assert chance == pytest.approx(_all_walks_mean(length, active, reward), abs=1e-14)


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("length", [7, 40])
def test_chance_in_a_long_corridor_is_that_of_a_plain_recursion(length: int, active: bool) -> None:
    start, episode = (1, length + 3) if active else (0, length + 1)
    far = start + length
    cells = {(x, 0) for x in range(far + 1)} | {(far, 1), (far, -1)}
    chance, cost = Counter({(start, 0): 1.0}), 0.0
    for t in range(1, episode + 1):
        after: Counter[tuple[int, int]] = Counter()
        for (x, y), p in chance.items():
            for dx, dy in _MOVES.values():
                after[(x + dx, y + dy) if (x + dx, y + dy) in cells else (x, y)] += p / 4
        chance = after
        if t < episode:
            cost += sum(p for (x, _), p in chance.items() if x < t - start) / length
    dense, sparse = (TMaze(1, length=length, active=active, reward=r).facts.chance_return for r in ("dense", "sparse"))
    assert dense == pytest.approx(chance[far, 1] - cost, rel=1e-12)
    assert sparse == pytest.approx(chance[far, 1], rel=1e-12)


@pytest.mark.parametrize("reward", ["dense", "sparse"])
def test_walk_free_corridor_pays_for_the_answer_at_the_junction_only(reward: str) -> None:
    env = TMaze(64, length=3, walk=False, reward=reward)
    observation, _ = env.reset(seed=1)
    hint = observation[:, 1].copy()
    assert set(hint) == {-1.0, 1.0}
    for t in range(1, 4):
        observation, paid, terminated, *_ = env.step(np.full(64, t % 2))
        assert not paid.any() and not terminated.any()
        np.testing.assert_array_equal(observation, np.tile([t == 3, 0], (64, 1)))
    *_, paid, terminated, _, info = env.step(np.zeros(64, dtype=np.int64))
    np.testing.assert_array_equal(paid, hint == 1)
    assert terminated.all()
    np.testing.assert_array_equal(np.stack(list(info["final_obs"])), np.ones((64, 2)))
    assert env.facts.chance_return == 0.5


def test_goals_are_even_over_lanes_and_over_episodes() -> None:
    env = TMaze(1000, length=1)
    goals = []
    for episode in range(20):
        observation, _ = env.reset(seed=3 if episode == 0 else None)
        goals.append(observation[:, 1])
    goal = np.stack(goals)
    assert abs(goal.mean()) < 4 / np.sqrt(goal.size)
    assert abs((goal[1:] * goal[:-1]).mean()) < 4 / np.sqrt(goal.size)


def test_place_and_hint_survive_saving() -> None:
    env, action = TMaze(32, active=True, length=4), np.random.default_rng(0).integers(0, 4, (20, 32))
    env.reset(seed=0)
    for t in range(20):
        state = env.get_state()
        expected = env.step(action[t])
        other = TMaze(32, active=True, length=4)
        other.set_state(state)
        for ours, theirs in zip(other.step(action[t])[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    del state["cell"]
    with pytest.raises(ValueError, match="'cell' in the state of an environment with 32 lanes is missing"):
        env.set_state(state)


@pytest.mark.parametrize(("walk", "cell", "step"), [(False, 5, 0), (False, 1, 2), (True, 3, 2)])
def test_a_state_in_a_cell_that_its_step_cannot_have_reached_is_refused(walk: bool, cell: int, step: int) -> None:
    env = TMaze(2, length=3, walk=walk)
    env.reset(seed=0)
    state = env.get_state() | {"cell": np.array([0, cell]), "step": np.array([0, step])}
    with pytest.raises(ValueError, match=f"'cell' in a state is {cell}, where step {step} of an episode cannot be"):
        env.set_state(state)


@pytest.mark.parametrize(
    ("kwargs", "horizon", "episode"), [({}, 5, 6), ({"active": True}, 6, 8), ({"walk": False}, 5, 6)]
)
def test_hint_is_needed_again_at_the_junction(kwargs: dict[str, bool], horizon: int, episode: int) -> None:
    facts = TMaze(2, length=5, **kwargs).facts
    assert (facts.memory_horizon, facts.episode_length) == (horizon, episode)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"length": 0}, ValueError, "length is 0; it must be at least 1"),
        ({"shortest_length": 0}, ValueError, "shortest_length is 0; it must be at least 1"),
        ({"shortest_length": 11}, ValueError, "shortest_length is 11; it must be at most length, 10"),
        ({"active": "yes"}, ValueError, "active is 'yes'; it must be False or True"),
        ({"walk": None}, ValueError, "walk is None; it must be False or True"),
        ({"reward": "shaped"}, ValueError, "reward is 'shaped'; it must be 'dense' or 'sparse'"),
        (
            {"walk": False, "active": True},
            ValueError,
            "walk is False, but an active agent walks to the oracle; set walk=True or active=False",
        ),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        TMaze(2, **kwargs)  # type: ignore[arg-type]
