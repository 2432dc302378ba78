"""Pictures of episodes: every frame is of the episode that it is filed under, and few are held."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from PIL import Image

from mneme.controllers import ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.rollout_workers import policy_spec
from mneme.rollout_workers.video import Film, Frame, film_episodes


class Painter(gym.Env[np.ndarray, np.int64]):
    """Paints 40 x step + 20 x episode in red; episodes have 3, 4, 5, ... steps of reward 2, and count when they end."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012
    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None, broken: bool = False) -> None:
        self.render_mode, self._broken, self._episode = render_mode, broken, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._shown, self._step = self._episode, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._step += 1
        over = self._step == 3 + self._episode
        self._shown, self._episode = self._episode, self._episode + over
        return np.zeros(1, np.float32), 2.0, over, False, {}

    def render(self) -> Any:
        pixels = np.zeros((16, 24, 3), np.uint8)
        pixels[:, :, 0] = 40 * self._step + 20 * self._shown
        return None if self._broken else pixels


gym.register("mneme-tests/Painter-v0", Painter)


def film(folder: Path, settings: EnvSettings, episodes: int) -> None:
    film_from(make_vector_env(settings, 1, render_mode="rgb_array"), folder, episodes)


def film_from(env: Any, folder: Path, episodes: int) -> None:
    policy = build_policy(policy_spec(env), PolicySettings(controller=ControllerSettings(hidden_size=8)), 8, seed=0)
    film_episodes(env, policy, folder, episodes=episodes, seed=0)


def reds(path: Path) -> list[int]:
    with Image.open(path) as animation:
        found = []
        for index in range(animation.n_frames):  # type: ignore[attr-defined]
            animation.seek(index)
            found.append(int(np.asarray(animation.convert("RGB"))[8, 12, 0]))
        return found


def test_every_frame_is_its_episodes(tmp_path: Path) -> None:
    film(tmp_path / "new" / "films", EnvSettings(id="mneme-tests/Painter-v0"), 3)
    folder = tmp_path / "new" / "films"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"episode-{i}.{kind}" for i in range(3) for kind in ("gif", "png")
    ]
    for episode in range(3):
        expected = [40 * step + 20 * episode for step in range(3 + episode)]
        assert np.abs(np.subtract(reds(folder / f"episode-{episode}.gif"), expected)).max() <= 4  # GIF has a palette
    with Image.open(folder / "episode-0.gif") as animation:
        assert animation.info["duration"] == 200
        assert animation.size == (24, 16)


def test_the_strip_shows_evenly_spaced_frames(tmp_path: Path) -> None:
    film(tmp_path, EnvSettings(id="mneme-tests/Painter-v0"), 1)
    with Image.open(tmp_path / "episode-0.png") as strip:
        colours = {tuple(pixel) for pixel in np.asarray(strip.convert("RGB")).reshape(-1, 3).tolist()}
    assert {(0, 0, 0), (40, 0, 0), (80, 0, 0)} <= colours


def test_where_the_end_can_be_seen_it_is_shown(tmp_path: Path) -> None:
    env = SyncVectorEnv([lambda: Painter("rgb_array")], autoreset_mode=AutoresetMode.NEXT_STEP)
    film_from(env, tmp_path, 2)
    assert np.abs(np.subtract(reds(tmp_path / "episode-0.gif"), [0, 40, 80, 120])).max() <= 4
    assert np.abs(np.subtract(reds(tmp_path / "episode-1.gif"), [20, 60, 100, 140, 180])).max() <= 4


@pytest.mark.parametrize("steps", [1, 7, 8, 9, 100, 1000])
def test_a_long_film_keeps_evenly_spaced_frames(steps: int) -> None:
    long = Film(most=8)
    for step in range(steps):
        long.add(Frame(np.zeros(0), step, 0.0))
    kept = [frame.step for frame in long.frames]
    assert kept == list(range(0, steps, long.stride))
    assert len(kept) <= 8
    assert steps <= 8 or len(kept) >= 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (EnvSettings(), "DelayedCue-v0 does not render"),
        (
            EnvSettings(id="mneme-tests/Painter-v0", kwargs={"broken": True}),
            "Painter-v0 rendered .* leave out the video",
        ),
    ],
)
def test_what_does_not_render_is_said(tmp_path: Path, settings: EnvSettings, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        film(tmp_path, settings, 1)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(ValueError, match="is not empty; name a new one"):
        film(tmp_path, EnvSettings(id="mneme-tests/Painter-v0"), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
