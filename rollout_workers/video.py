"""Pictures of episodes: an animation and a strip of frames of each, from an environment that renders."""

from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from mneme.controllers import Policy
from mneme.rollout_workers.collector import Collector
from mneme.rollout_workers.evaluation import check_progress
from mneme.rollout_workers.settings import SpaceSettings

_MOST_FRAMES = 256  # held at once, and so in an animation
_STRIP_FRAMES = 8
_FRAMES_A_SECOND = 10  # where the environment does not say
_SHORTEST = 20  # ms a frame; viewers slow down what is shorter


class Frame(NamedTuple):
    """A picture of the environment before a step, or after the last one."""

    pixels: np.ndarray  # uint8 [height, width, 3]
    step: int
    total: float  # undiscounted return before that step


class Film:
    """One episode's frames: all of them, or evenly spaced ones where there are more than can be held.

    Args:
        most: frames to hold, at least 2; the film then goes on with every second one.
    """

    def __init__(self, most: int = _MOST_FRAMES) -> None:
        self._most = most
        self.stride = 1
        self.frames: list[Frame] = []

    def add(self, frame: Frame) -> None:
        """The next step's frame."""
        if frame.step % self.stride:
            return
        if len(self.frames) == self._most:
            self.stride *= 2
            self.frames = [kept for kept in self.frames if kept.step % self.stride == 0]
        if frame.step % self.stride == 0:
            self.frames.append(frame)


def film_episodes(
    env: gym.vector.VectorEnv[Any, Any, Any],
    policy: Policy,
    folder: Path,
    *,
    episodes: int,
    seed: int,
    greedy: bool = True,
    reset_carry_at: int | None = None,
    spaces: SpaceSettings | None = None,
) -> None:
    """Write the first complete episodes of lane 0 as episode-0.gif and episode-0.png, and so on.

    They are those of an evaluation with this seed, where the environment seeds its lanes one by one. An environment
    that resets itself in the step that ends an episode cannot show that episode's last frame.

    Args:
        env: a vector environment of one lane that renders RGB arrays.
        policy: what acts.
        folder: where to; made if it is missing.
        episodes: how many.
        seed: of the episodes.
        greedy: take the most probable action.
        reset_carry_at: as in `Collector`.
        spaces: how observations and actions pass between the two.

    Raises:
        ValueError: the environment does not render, an episode does not end, or the folder holds something.
        OSError: the folder cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"the folder {folder} is not empty; name a new one for the pictures")
    folder.mkdir(parents=True, exist_ok=True)
    collector = Collector(
        env, policy, length=1, carry_stride=1, seed=seed, greedy=greedy, reset_carry_at=reset_carry_at,
        spaces=spaces or SpaceSettings(),
    )  # fmt: skip
    ends_visible = env.metadata.get("autoreset_mode") is AutoresetMode.NEXT_STEP
    film, step, total, finished, steps = Film(), 0, 0.0, 0, 0
    while finished < episodes:
        check_progress(steps, finished + 1)
        film.add(Frame(_rendered(env), step, total))
        fragment, _ = collector.collect()
        steps += 1
        if fragment.valid[0, 0]:
            step, total = step + 1, total + float(fragment.rewards[0, 0])
            if not fragment.resets[0, 1]:
                continue
            if ends_visible:
                film.add(Frame(_rendered(env), step, total))
            _write_animation(film, folder / f"episode-{finished}.gif", env.metadata.get("render_fps"))
            title = f"episode {finished}: return {total:.4g} in {step:,} steps"
            _write_strip(film, folder / f"episode-{finished}.png", title)
            finished += 1
        film, step, total = Film(), 0, 0.0


def _rendered(env: gym.vector.VectorEnv[Any, Any, Any]) -> np.ndarray:
    frames: Any = env.render()
    pixels: Any = np.array(frames[0]) if frames else np.empty(0)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        raise ValueError(
            f"{name} rendered an array of shape {pixels.shape} and type {pixels.dtype}, not one of bytes (height, "
            f"width, 3); leave out the video, or mend its render()"
        )
    return pixels


def _write_animation(film: Film, path: Path, frames_a_second: float | None) -> None:
    from PIL import Image

    images = [Image.fromarray(frame.pixels) for frame in film.frames]
    duration = max(_SHORTEST, round(1000 * film.stride / (frames_a_second or _FRAMES_A_SECOND)))
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0)


def _write_strip(film: Film, path: Path, title: str) -> None:
    """Evenly spaced frames side by side, the first and the last among them."""
    from matplotlib.figure import Figure

    shown = np.unique(np.linspace(0, len(film.frames) - 1, _STRIP_FRAMES).round().astype(int))
    height, width, _ = film.frames[0].pixels.shape
    figure = Figure(figsize=(2 * len(shown) + 0.2, 2 * height / width + 0.8), dpi=120, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    for axes, index in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        frame = film.frames[index]
        axes.imshow(frame.pixels)
        axes.set_title(f"step {frame.step:,}\nreturn {frame.total:.4g}", fontsize=8)
        axes.set(xticks=[], yticks=[])
    figure.savefig(path)
