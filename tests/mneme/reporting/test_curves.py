"""The learning-curve picture: any history gives a readable PNG."""

import math
from pathlib import Path

import numpy as np
import pytest

from mneme.reporting.curves import _running_mean, draw_learning_curve

Row = dict[str, float]


def run_of(updates: int) -> list[Row]:
    """A run that looks like one: rising success, falling entropy, one evaluation at the end."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for i in range(updates):
        progress = 1 / (1 + math.exp(-12 * (i / updates - 0.5)))
        success = float(np.clip(0.25 + 0.75 * progress + rng.normal(0, 0.05), 0, 1))
        rows.append(
            {
                "step": 8192.0 * (i + 1),
                "return": success,
                "success": success,
                "kl": 0.01 + 0.004 * rng.normal(),
                "entropy": 1.386 * (1 - progress),
                "steps_per_second": 26_000 + 1500 * rng.normal(),
            }
        )
    rows.append(
        {
            "step": 8192.0 * updates,
            "evaluation/return": 0.96,
            "evaluation/success": 0.96,
            "evaluation/success_low": 0.94,
            "evaluation/success_high": 0.98,
        }
    )
    return rows


def pixels_of(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(path))


@pytest.mark.parametrize(
    "history",
    [
        run_of(200),
        run_of(3),
        [{"step": 8192.0, "return": 1.0}],
        [{"step": 8192.0, "return": math.nan, "kl": math.inf}],
        [],
    ],
    ids=["long", "short", "one update", "nothing finite", "empty"],
)
def test_writes_a_picture(history: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "new" / "curve.png"
    draw_learning_curve(history, path, "delayed_cue $5_0$, gru, full", references={"chance": 0.25, "optimal": 1.0})
    assert pixels_of(path).shape == (900, 1500, 4)


def test_the_curve_and_the_reference_lines_are_on_it(tmp_path: Path) -> None:
    pictures = {}
    line = {"chance": 0.25, "without memory": 0.25}
    for name, rows, references in (("bare", [], {}), ("line", [], line), ("curve", run_of(50), line)):
        draw_learning_curve(rows, tmp_path / f"{name}.png", "run", references=references)
        pictures[name] = pixels_of(tmp_path / f"{name}.png")
    assert not np.array_equal(pictures["bare"], pictures["line"])
    blue = np.array([0x25, 0x63, 0xA8]) / 255
    drawn = {name: int((np.abs(p[..., :3] - blue).max(-1) < 0.02).sum()) for name, p in pictures.items()}
    assert drawn["curve"] > 1000
    assert drawn["bare"] == 0


def test_running_mean() -> None:
    values = np.array([1.0, 3.0, 5.0, 7.0])
    assert _running_mean(values, 2).tolist() == [1.0, 2.0, 4.0, 6.0]
    assert _running_mean(values, 1).tolist() == values.tolist()
    assert _running_mean(np.empty(0), 3).tolist() == []


def test_a_path_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        draw_learning_curve([], tmp_path / "file" / "curve.png", "run", references={})
