"""Spaces to policies and back: every kind of observation and action, masks, and what is refused."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from mneme.controllers import Bernoulli, Categorical, Gaussian, Image, Joint, OneHot, Vector
from mneme.rollout_workers import SpaceSettings, policy_spec
from mneme.rollout_workers.spaces import SpaceAdapter, adapter_of
from tests.environments import Everything


class Shaped(gym.Env[Any, Any]):
    """An environment of any spaces that never ends."""

    def __init__(self, observation: gym.Space[Any], action: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(0)
        return self.observation_space.sample(), {}


def made(env: gym.vector.VectorEnv[Any, Any, Any], settings: SpaceSettings, masked: bool) -> SpaceAdapter:
    return SpaceAdapter(env.single_observation_space, env.single_action_space, settings, masked)


def vector(observation: gym.Space[Any], action: gym.Space[Any], lanes: int = 2) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: Shaped(observation, action)] * lanes)


BOX, TWO = spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2)
NOBODY = np.zeros(2, np.bool_)


@pytest.mark.parametrize(
    ("space", "layout", "part"),
    [
        (spaces.Box(0, 1, (7, 7, 20), np.uint8), None, Image((7, 7, 20), True, 1.0)),
        (spaces.Box(0, 1, (20, 7, 7), np.uint8), None, Image((20, 7, 7), False, 1.0)),
        (spaces.Box(0, 1, (7, 7, 20), bool), None, Image((7, 7, 20), True, 1.0)),
        (spaces.Box(0, 10, (7, 7, 3), np.int64), None, Image((7, 7, 3), True, 1 / 10)),
        (spaces.Box(0, 255, (210, 160, 3), np.float32), None, Image((210, 160, 3), True, 1 / 255)),
        (spaces.Box(0, 255, (3, 210, 160), np.uint8), None, Image((3, 210, 160), False, 1 / 255)),
        (spaces.Box(-np.inf, np.inf, (6, 8, 3)), None, Image((6, 8, 3), True, 1.0)),
        (spaces.Box(0, 1, (3, 12, 12), np.float64), None, Image((3, 12, 12), False, 1.0)),
        (spaces.Box(0, 255, (4, 16, 20, 3), np.uint8), None, Image((16, 20, 12), True, 1 / 255)),
        (spaces.Box(0, 255, (4, 3, 16, 20), np.uint8), None, Image((12, 16, 20), False, 1 / 255)),
        (spaces.Box(0, 1, (9, 8), np.uint8), None, Vector(72)),
        (spaces.Box(0, 1, (9, 8)), "HW", Image((9, 8, 1), True, 1.0)),
        (spaces.Box(0, 1, (7, 9, 20)), "CHW", Image((7, 9, 20), False, 1.0)),
        (spaces.Box(0, 1, (7, 9, 20)), "HWC", Image((7, 9, 20), True, 1.0)),
        (spaces.Box(0, 1, (7, 7, 20)), "flat", Vector(980)),
        (spaces.Box(0, 255, (16, 20, 3, 4), np.uint8), "HWCF", Image((16, 20, 12), True, 1 / 255)),
    ],
)
def test_an_image_its_layout_and_its_scale_follow_from_type_bounds_shape_and_setting(
    space: gym.Space[Any], layout: str | None, part: Any
) -> None:
    settings = SpaceSettings(layout={} if layout is None else {"observation": layout})
    assert policy_spec(vector(space, TWO), settings).observations == {"observation": part}


def test_frames_become_channels_in_their_order() -> None:
    env = vector(spaces.Box(0, 255, (2, 4, 5, 3), np.uint8), TWO)
    adapter = adapter_of(env, SpaceSettings())
    x = np.random.default_rng(0).integers(0, 256, (2, 2, 4, 5, 3), dtype=np.uint8)
    seen = adapter.observe(x, {}, adapter.no_action(2), np.zeros(2), NOBODY)["observation"]
    assert seen.dtype == np.uint8
    for frame in range(2):
        np.testing.assert_array_equal(seen[..., frame * 3 : frame * 3 + 3], x[:, frame])


def test_how_an_observation_is_read_is_said_and_filled_in() -> None:
    seen = spaces.Dict({"grid": spaces.Box(0, 10, (7, 7, 3), np.uint8), "day": spaces.Discrete(4), "x": BOX})
    adapter = adapter_of(vector(seen, TWO), SpaceSettings(scale={"grid": 0.5}))
    assert sorted(adapter.described) == [
        "day () int64 as 4 categories", "grid (7, 7, 3) uint8 as image HWC × 1/2", "x (3,) float32 as 3 numbers"
    ]  # fmt: skip
    assert (adapter.settings.layout, adapter.settings.scale) == ({"grid": "HWC"}, {"grid": 0.5})


@pytest.mark.parametrize(
    ("space", "part"),
    [
        (spaces.Box(-1, 1, (3,), np.float64), Vector(3)),
        (spaces.Box(-1, 1, (2, 4)), Vector(8)),
        (spaces.Box(-1, 1, ()), Vector(1)),
        (spaces.Box(0, 9, (4,), np.int64), Vector(4)),
        (spaces.Box(0, 255, (128,), np.uint8), Vector(128)),
        (spaces.Box(0, 255, (84, 84, 3), np.uint8), Image((84, 84, 3), True, 1 / 255)),
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), Image((4, 84, 84), False, 1 / 255)),
        (spaces.Box(0, 255, (40, 60), np.uint8), Image((40, 60, 1), True, 1 / 255)),
        (spaces.Box(0.0, 1.0, (9, 9, 2)), Image((9, 9, 2), True, 1.0)),
        (spaces.Box(0.0, 1.0, (2, 2, 2)), Vector(8)),
        (spaces.Discrete(5, start=-2), OneHot((5,))),
        (spaces.MultiDiscrete([2, 7]), OneHot((2, 7))),
        (spaces.MultiBinary((2, 3)), Vector(6)),
    ],
)
def test_observation_spaces_become_parts(space: gym.Space[Any], part: Any) -> None:
    assert policy_spec(vector(space, TWO)).observations == {"observation": part}


@pytest.mark.parametrize(
    ("space", "distribution"),
    [
        (spaces.Discrete(5, start=3), Categorical(5)),
        (spaces.MultiDiscrete([2, 3], start=[4, 5]), Joint((Categorical(2), Categorical(3)))),
        (spaces.MultiBinary(4), Bernoulli(4)),
        (spaces.Box(-1.0, 1.0, (2, 2)), Gaussian(4, squash=False)),
        (spaces.Tuple((TWO, spaces.MultiBinary(2))), Joint((Categorical(2), Bernoulli(2)))),
    ],
)
def test_action_spaces_become_distributions(space: gym.Space[Any], distribution: Any) -> None:
    assert policy_spec(vector(BOX, space)).actions == distribution


NONE = spaces.Box(-1, 1, (3, 0))


@pytest.mark.parametrize(
    ("seen", "acted", "sentence"),
    [
        (
            spaces.Discrete(10**9),
            TWO,
            r"^the observation space Discrete\(1000000000\) has 1,000,000,000 categories, .*wrap",
        ),
        (spaces.MultiDiscrete([3, 10**9]), TWO, "has 1,000,000,003 categories"),
        (spaces.MultiDiscrete(np.full(40, 2**62)), TWO, r"^the observation space MultiDiscrete\(.* has 184,467,440,7"),
        (
            spaces.Dict({"x": BOX, "day": spaces.Discrete(10**8)}),
            TWO,
            "part 'day', .* has 100,000,000 cat.*spaces.keys",
        ),
        (spaces.Box(0, 1, (5_000_000,)), TWO, "has 5,000,000 numbers, .*wrap the environment"),
        (spaces.Box(0, 255, (2100, 2000, 1), np.uint8), TWO, "has 4,200,000 numbers"),
        (BOX, spaces.Discrete(10**9), r"^the action space Discrete\(1000000000\) has 1,000,000,000 categories"),
        (
            BOX,
            spaces.Tuple((TWO, spaces.MultiDiscrete([2, 10**8]))),
            "action space's part '1', .*100,000,002 categories",
        ),
        (BOX, spaces.MultiBinary(10**7), "has 10,000,000 numbers"),
        (NONE, TWO, r"^the observation space Box\(.*\(3, 0\), float32\) has size 0"),
        (spaces.Dict({"x": BOX, "goal": NONE}), TWO, r"part 'goal', Box\(.*, has size 0.*spaces.keys"),
        (spaces.Tuple((BOX, spaces.MultiDiscrete([]))), TWO, "part '1', .*, has size 0"),
        (spaces.Dict({}), TWO, "^the observation space has no parts"),
        (spaces.Tuple(()), TWO, "^the observation space has no parts"),
        (BOX, NONE, "^the action space Box.* has size 0"),
        (BOX, spaces.Dict({"go": TWO, "say": NONE}), "^the action space's part 'say', .* has size 0"),
        (BOX, spaces.Dict({}), r"^the action space Dict\(\) has no parts"),
        (BOX, spaces.Tuple(()), r"^the action space Tuple\(\) has no parts"),
    ],
)
def test_a_part_that_holds_nothing_or_too_much_is_named(
    seen: gym.Space[Any], acted: gym.Space[Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        policy_spec(vector(seen, acted, lanes=1))
    assert "\n" not in str(caught.value)


def test_a_part_without_numbers_may_be_left_out() -> None:
    seen = spaces.Dict({"x": BOX, "goal": NONE})
    assert policy_spec(vector(seen, TWO), SpaceSettings(keys=("x",))).observations == {"x": Vector(3)}


def test_nested_parts_are_named_converted_and_kept_in_their_types() -> None:
    env = SyncVectorEnv([Everything] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    adapter = made(env, SpaceSettings(previous_action=True, previous_reward=True), masked=False)
    observation, info = env.reset(seed=0)
    action = adapter.no_action(3)
    assert action.dtype == np.float32
    assert action.shape == (3, 1 + 2 + 4 + 4)
    for step in range(3):
        parts = adapter.observe(observation, info, action, np.full(3, 7.0), np.zeros(3, np.bool_))
        assert set(parts) == {
            "image", "numbers", "nested.0", "nested.1", "nested.2", "previous_action", "previous_reward",
        }  # fmt: skip
        assert parts["image"].dtype == np.uint8
        assert (parts["image"] == step).all()
        np.testing.assert_array_equal(parts["numbers"], np.float32([[step, 0, 0.5, -step]] * 3))
        assert parts["numbers"].dtype == np.float32
        np.testing.assert_array_equal(parts["nested.0"], [[step]] * 3)
        np.testing.assert_array_equal(parts["nested.1"], [[step % 3, step % 4]] * 3)
        np.testing.assert_array_equal(parts["nested.2"], np.float32([[step & 1, step >> 1 & 1, 1]] * 3))
        np.testing.assert_array_equal(parts["previous_reward"], np.float32([[7.0]] * 3))
        observation, _, _, _, info = env.step(adapter.to_env(action))


def test_categories_are_counted_from_where_the_space_starts() -> None:
    adapter = made(vector(BOX, spaces.MultiDiscrete([2, 3], start=[4, 5])), SpaceSettings(), masked=False)
    np.testing.assert_array_equal(adapter.to_env(np.array([[0, 0], [1, 2]])), [[4, 5], [5, 7]])


def test_packed_actions_fill_the_space() -> None:
    adapter = made(SyncVectorEnv([Everything] * 2), SpaceSettings(), masked=False)
    packed = np.float32([[3, -1.0, 0.5, 1, 2, 3, 0, 1, 0, 0, 1], [0, 5.0, -5.0, 0, 0, 0, 1, 0, 0, 0, 1]])
    action = adapter.to_env(packed)
    np.testing.assert_array_equal(action["choice"], [4, 1])
    np.testing.assert_allclose(action["force"], [[-2.0, 7.5], [2.0, 0.0]])
    np.testing.assert_array_equal(action["more"][0], [[[1, 2], [3, 0]], [[0, 0], [0, 1]]])
    np.testing.assert_array_equal(action["more"][1], [[[1, 0], [0, 1]], [[0, 0], [0, 1]]])
    assert SyncVectorEnv([Everything] * 2).action_space.contains(action)


def test_squashed_actions_span_the_box_and_unbounded_ones_are_left_alone() -> None:
    space = spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, 10.0]))
    adapter = made(vector(BOX, space), SpaceSettings(squash=True), masked=False)
    got = adapter.to_env(np.float32([[0.0, 30.0], [0.5, -30.0]]))
    np.testing.assert_allclose(got, [[0.0, 10.0], [2 * np.tanh(0.5), 0.0]], rtol=1e-6)
    free = made(vector(BOX, spaces.Box(-np.inf, np.inf, (2,))), SpaceSettings(), masked=False)
    np.testing.assert_array_equal(free.to_env(np.float32([[3.0, -9.0]])), np.float32([[3.0, -9.0]]))
    half = made(vector(BOX, spaces.Box(0.0, np.inf, (1,))), SpaceSettings(), masked=False)
    np.testing.assert_array_equal(half.to_env(np.float32([[3.0], [-9.0]])), np.float32([[3.0], [0.0]]))


def test_a_box_as_wide_as_floats_go_is_spanned() -> None:
    most = float(np.finfo(np.float32).max)
    adapter = made(vector(BOX, spaces.Box(-most, most, (2,))), SpaceSettings(), masked=False)
    np.testing.assert_allclose(adapter.to_env(np.float32([[-1.0, 0.5]])), np.float32([[-most, most / 2]]))


def test_hidden_features_and_parts_stay_hidden() -> None:
    env = vector(spaces.Box(-1, 1, (4,), np.float64), TWO)
    adapter = made(env, SpaceSettings(features=(2, 0)), masked=False)
    assert adapter.spec.observations == {"observation": Vector(2)}
    observation, info = env.reset(seed=0)
    parts = adapter.observe(observation, info, adapter.no_action(2), np.zeros(2), NOBODY)
    np.testing.assert_array_equal(parts["observation"], observation[:, [2, 0]].astype(np.float32))
    dictionary = vector(spaces.Dict({"seen": BOX, "text": spaces.Text(5)}), TWO)
    assert policy_spec(dictionary, SpaceSettings(keys=("seen",))).observations == {"seen": Vector(3)}


def test_a_mask_in_the_observation_is_no_part_of_it() -> None:
    env = vector(spaces.Dict({"x": BOX, "action_mask": spaces.MultiBinary(2)}), TWO)
    spec = policy_spec(env)
    assert spec.masked
    assert spec.observations == {"x": Vector(3)}
    adapter = made(env, SpaceSettings(), masked=True)
    observation, info = env.reset(seed=0)
    observation["action_mask"][:] = [[0, 1], [1, 1]]
    mask = adapter.observe(observation, info, adapter.no_action(2), np.zeros(2), NOBODY)["action_mask"]
    assert mask.dtype == np.bool_
    assert mask.tolist() == [[False, True], [True, True]]


def test_masks_of_the_wrong_shape_or_without_any_choice_are_refused() -> None:
    env = SyncVectorEnv([lambda: Everything(masked=True)] * 2)
    assert policy_spec(env).masked
    adapter = made(env, SpaceSettings(), masked=True)
    observation, info = env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2, 3\) .* each of 15 actions"):
        adapter.observe(observation, {"action_mask": np.ones((2, 3))}, adapter.no_action(2), np.zeros(2), NOBODY)
    with pytest.raises(ValueError, match="info holds no 'action_mask'"):
        adapter.observe(observation, {}, adapter.no_action(2), np.zeros(2), NOBODY)
    info["action_mask"][1, 6:9] = False  # the second category of `more`
    with pytest.raises(ValueError, match="lane 1 allows none of 3 actions"):
        adapter.observe(observation, info, adapter.no_action(2), np.zeros(2), NOBODY)
    free_B = np.array([False, True])  # that lane's next step belongs to no episode
    mask = adapter.observe(observation, info, adapter.no_action(2), np.zeros(2), free_B)["action_mask"]
    assert np.argwhere(mask != info["action_mask"]).tolist() == [[1, 6], [1, 7], [1, 8]] and mask[1, 6:9].all()


def test_a_vector_environment_need_not_give_masks_to_lanes_that_all_only_reset_next() -> None:
    env = SyncVectorEnv([lambda: Everything(masked=True)] * 2)
    adapter = made(env, SpaceSettings(), masked=True)
    mask = adapter.observe(env.reset(seed=0)[0], {}, adapter.no_action(2), np.zeros(2), ~NOBODY)["action_mask"]
    assert mask.shape == (2, 15) and mask.all()


@pytest.mark.parametrize(
    ("space", "given", "sentence"),
    [
        (spaces.Discrete(4, start=2), [2, 6], r"Discrete\(4, start=2\) was given 6, outside it"),
        (spaces.Discrete(4, start=2), [1, 2], "was given 1, outside it"),
        (spaces.MultiDiscrete([2, 3]), [[0, 2], [2, 0]], "was given 2, outside it"),
    ],
)
def test_a_category_outside_its_space_is_refused(space: gym.Space[Any], given: list[Any], sentence: str) -> None:
    adapter = made(vector(space, TWO), SpaceSettings(), masked=False)
    with pytest.raises(ValueError, match=sentence):
        adapter.observe(np.array(given), {}, adapter.no_action(2), np.zeros(2), NOBODY)


@pytest.mark.parametrize(
    ("observation", "action", "settings", "sentence"),
    [
        (spaces.Text(3), TWO, {}, "the observation space Text.* is not supported .*wrap"),
        (spaces.Dict({"a": BOX, "b": spaces.Text(3)}), TWO, {}, "part 'b', Text.* choose parts with spaces.keys"),
        (BOX, spaces.Box(0, 5, (2,), np.int32), {}, r"the action space Box\(0, 5, \(2,\), int32\) is not supported"),
        (BOX, spaces.Tuple((TWO, spaces.Text(3))), {}, "the action space's part '1', Text"),
        (BOX, TWO, {"features": (0, 3)}, "names feature 3, but the observation has 3"),
        (spaces.Discrete(3), TWO, {"features": (0,)}, "the observation is not one flat Box"),
        (spaces.Dict({"a": BOX}), TWO, {"keys": ("c",)}, "spaces.keys names 'c', but the observation has a"),
        (spaces.Dict({"arm.x": BOX, "arm": spaces.Dict({"x": BOX})}), TWO, {}, "2 parts .* are named 'arm.x'"),
        (spaces.Dict({"previous_reward": BOX}), TWO, {"previous_reward": True}, "a part 'previous_reward' of its own"),
        (spaces.Dict({"previous_action": BOX}), TWO, {}, "named 'previous_action', which has a meaning of its own"),
        (spaces.Box(0, 1, (7, 9, 20)), TWO, {}, "first or last; .* spaces.layout={observation: HWC} or CHW"),
        (spaces.Box(0, 1, (4, 7, 7, 7)), TWO, {}, "spaces.layout={observation: FHWC} or FCHW, or flat"),
        (BOX, TWO, {"layout": {"observation": "HWC"}}, "spaces.layout is 'HWC' for .* which has 1 axes"),
        (BOX, TWO, {"layout": {"image": "HWC"}}, "names 'image', but the parts of the observation are observation"),
        (BOX, TWO, {"scale": {"observation": 2.0}}, "spaces.scale is 2.0 for .* which is read as numbers"),
        (BOX, TWO, {"keys": ("c",)}, "spaces.keys names 'c', but the observation has no parts"),
        (BOX, spaces.Box(0.0, np.inf, (2,)), {"squash": True}, "spaces.squash is set, but .* has no bounds"),
        (BOX, TWO, {"squash": True}, "spaces.squash is set, but the action space .* has no Box"),
    ],
)  # fmt: skip
def test_what_no_policy_fits_is_refused_by_name(
    observation: gym.Space[Any], action: gym.Space[Any], settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        policy_spec(vector(observation, action), SpaceSettings(**settings))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layout": {"a": "WC"}}, "spaces.layout.a is 'WC'; give each axis one of"),
        ({"layout": {"a": "HWCC"}}, "spaces.layout.a is 'HWCC'"),
        ({"scale": {"a": 0}}, "spaces.scale.a is 0.0; it must be above 0"),
        ({"features": (-1,)}, "numbers from 0"),
        ({"features": ()}, "one or more"),
        ({"keys": ()}, "at least one part"),
    ],
)
def test_settings_that_name_nothing_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SpaceSettings(**settings)
