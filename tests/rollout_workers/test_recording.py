"""Recording: every row is one whole episode, the numbers stay the same, and the file is whole or absent."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mneme.controllers import ControllerSettings, Policy, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.rollout_workers import Collector, Evaluation, Fragment, evaluate, policy_spec
from mneme.rollout_workers import evaluation as evaluation_module
from mneme.rollout_workers import recording as recording_module
from mneme.rollout_workers.recording import DESCRIPTION, Recorder, recording

COUNTING = EnvSettings(id="mneme/Counting-v0")  # lane b: episodes of 3 + b % 5 steps
INITIAL: dict[str, np.ndarray] = {"h": np.full(16, 0.5, np.float32)}


class Faulty(gym.Env[np.ndarray, np.int64]):
    """Observes (episode, step); episodes have 4 steps, but every second one raises at its third."""

    observation_space = gym.spaces.Box(0, 1000, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count += 1
        if self.episode % 2 and self.count == 3:
            raise RuntimeError("a fault")
        return np.array([self.episode, self.count], np.float32), 1.0, self.count == 4, False, {}


gym.register("mneme-tests/Faulty-v0", Faulty)


def policy_for(settings: EnvSettings, kind: str = "lstm") -> Policy:
    controller = ControllerSettings(kind=kind, hidden_size=16)
    return build_policy(policy_spec(make_vector_env(settings, 1)), PolicySettings(controller=controller), 8, seed=0)


def run(
    path: Path | None, settings: EnvSettings = COUNTING, lanes: int = 6, episodes: int = 18, best: int | None = None,
    **options: Any,
) -> Evaluation:  # fmt: skip
    env, policy = make_vector_env(settings, lanes), policy_for(settings)
    if path is None:
        return evaluate(env, policy, episodes=episodes, seed=3, **options)
    with recording(path, "a test", best) as recorder:
        return evaluate(env, policy, episodes=episodes, seed=3, recorder=recorder, **options)


def read(path: Path) -> Fragment:
    fragment = Fragment.from_arrow(pq.read_table(path).combine_chunks().to_batches()[0])
    fragment.validate()
    return fragment


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["whole", "in pieces"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fragments that hold many episodes, and fragments of 2 steps, which no episode fits into."""
    if request.param == "in pieces":
        monkeypatch.setattr(evaluation_module, "_RECORDED_CHUNK", 2 * 6 * 2 * 16 * 4)
        monkeypatch.setattr(recording_module, "_ROW_GROUP", 1000)


def test_each_row_is_one_episode_in_order(tmp_path: Path, chunks: None) -> None:
    run(tmp_path / "r.parquet")
    rows = read(tmp_path / "r.parquet")
    assert (rows.num_envs, rows.length, rows.carry_stride) == (18, 7, 1)
    ends = []
    for b in range(rows.num_envs):
        L = 3 + int(rows.lane[b]) % 5
        observed = rows.observations["observation"][b]
        assert rows.valid[b].tolist() == [True] * L + [False] * (7 - L)
        assert rows.resets[b].tolist() == [True] + [False] * (L - 1) + [True] * (8 - L)
        assert observed[:L, 0].tolist() == rows.rewards[b, :L].tolist() == list(range(L))
        assert set(observed[:L, 1]) == {rows.lane[b]}
        (episode,) = set(observed[:L, 2])
        assert (bool(rows.terminated[b, L - 1]), bool(rows.truncated[b, L - 1])) == (episode % 2 == 0, episode % 2 == 1)
        assert rows.first_step[b] == episode * L
        assert not observed[L + 1 :].any()
        assert not rows.rewards[b, L:].any()
        ends.append((int(rows.first_step[b]) + L, int(rows.lane[b])))
    assert ends == sorted(ends)
    cut = np.nonzero(rows.cut_short)
    expected = [(t + 1, rows.lane[b], rows.observations["observation"][b, 0, 2]) for b, t in zip(*cut, strict=True)]
    assert list(map(tuple, rows.final_observations["observation"])) == expected
    assert len(expected) >= 6
    assert sorted(rows.lane.tolist()) == sorted([*range(6)] * 3)


def test_stored_carries_replay_values_and_log_probabilities(tmp_path: Path, chunks: None) -> None:
    run(tmp_path / "r.parquet", greedy=False)
    rows, policy = read(tmp_path / "r.parquet"), policy_for(COUNTING)
    for t in range(rows.length):
        lanes = np.flatnonzero(rows.valid[:, t])
        observed = {
            name: torch.from_numpy(part[lanes, t:-1]).swapaxes(0, 1) for name, part in rows.observations.items()
        }
        carry = {name: torch.from_numpy(c[lanes, t]) for name, c in rows.carries.items()}
        resets = torch.from_numpy(rows.resets[lanes, t:-1] & (np.arange(rows.length - t) > 0)).T
        with torch.no_grad():
            output = policy.scan(observed, resets, carry)
            log_probs = policy.action_distribution.log_prob(
                output.parameters_TBA, torch.from_numpy(rows.actions[lanes, t:]).T
            )
        valid = rows.valid[lanes, t:]
        np.testing.assert_allclose(output.value_TB.T.numpy()[valid], rows.values[lanes, t:-1][valid], atol=1e-5)
        np.testing.assert_allclose(log_probs.T.numpy()[valid], rows.log_probs[lanes, t:][valid], atol=1e-5)


@pytest.mark.parametrize("best", [None, 2])
def test_recording_changes_no_number(tmp_path: Path, chunks: None, best: int | None) -> None:
    settings = EnvSettings(kwargs={"cues": 4, "horizon": 4})
    for plain, recorded in zip(
        run(None, settings, greedy=False), run(tmp_path / "r.parquet", settings, greedy=False, best=best), strict=True
    ):
        np.testing.assert_array_equal(plain, recorded)


def test_the_rows_are_the_episodes_that_were_counted(tmp_path: Path) -> None:
    counted = run(tmp_path / "r.parquet", EnvSettings(id="CartPole-v1"), lanes=3, episodes=6)  # next-step autoreset
    rows = read(tmp_path / "r.parquet")
    assert rows.valid.sum(1).tolist() == counted.lengths.tolist()
    assert rows.rewards.sum(1).tolist() == counted.returns.tolist()
    assert not np.abs(rows.observations["observation"][:, 0]).max() > 0.05  # where CartPole's episodes begin


def test_an_episode_that_a_failure_cut_is_left_out(tmp_path: Path) -> None:
    run(tmp_path / "r.parquet", EnvSettings(id="mneme-tests/Faulty-v0"), lanes=2, episodes=6)
    rows = read(tmp_path / "r.parquet")
    assert rows.valid.all()
    assert rows.observations["observation"][:, :4, 1].tolist() == [[0, 1, 2, 3]] * 6
    assert rows.observations["observation"][:, 0, 0].tolist() == [0, 0, 2, 2, 4, 4]


def test_the_best_come_first_and_of_equal_ones_the_first_finished(tmp_path: Path, chunks: None) -> None:
    run(tmp_path / "r.parquet", best=5)
    rows = read(tmp_path / "r.parquet")
    # Lane 4 earns 21 in 7 steps, three times; lane 3 earns 15 in 6 steps, three times.
    assert rows.rewards.sum(1).tolist() == [21, 21, 21, 15, 15]
    assert rows.first_step.tolist() == [0, 7, 14, 0, 6]


def test_an_episode_starts_from_the_initial_carry(counting_collector: Callable[..., Collector], tmp_path: Path) -> None:
    fragment = counting_collector(kind="gru").collect()[0]
    with recording(tmp_path / "r.parquet", "a test") as recorder:
        recorder.add(fragment, np.full(6, 2), INITIAL)
    rows = read(tmp_path / "r.parquet")
    assert (rows.carries["h"][:, 0] == 0.5).all()
    second = int(np.flatnonzero((rows.lane == 0) & (rows.first_step == 3))[0])
    np.testing.assert_array_equal(rows.carries["h"][second, 1:3], fragment.carries["h"][0, 4:6])


def test_too_much_to_hold_is_said(counting_collector: Callable[..., Collector]) -> None:
    fragment = counting_collector(kind="gru").collect()[0]
    step = fragment.to_arrow().nbytes / (6 * 23)
    recorder = Recorder(best=3, limit=int(step * (3 * 7 + 6 * 7)))
    recorder.add(fragment, np.full(6, 9), INITIAL)
    with pytest.raises(ValueError, match="as 3 episodes of up to 7 steps; record fewer: lower best or episodes"):
        Recorder(best=3, limit=int(step * 20)).add(fragment, np.full(6, 9), INITIAL)


def test_a_sparse_carry_is_refused(counting_collector: Callable[..., Collector]) -> None:
    from mneme.learner import LearnerSettings

    fragment = counting_collector(LearnerSettings(mode="full")).collect()[0]
    with pytest.raises(ValueError, match="carry_stride is 23"):
        Recorder().add(fragment, np.full(6, 1), INITIAL)


def test_arrow_alone_reads_it(tmp_path: Path) -> None:
    run(tmp_path / "r.parquet")
    table = pq.read_table(tmp_path / "r.parquet", columns=["rewards", "lane"])
    assert table.schema.metadata[DESCRIPTION] == b"a test"
    assert table["rewards"].combine_chunks().to_numpy_ndarray().shape == (18, 7)
    assert table["lane"].type == pa.int64()


def test_a_crash_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), recording(tmp_path / "r.parquet", "a test"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_said_before_the_episodes(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for path, sentence in (
        (tmp_path / "taken", "taken exists already; name another file"),
        (tmp_path / "no" / "r.parquet", "there is no folder .*no to write r.parquet to; make it first"),
    ):
        with pytest.raises(OSError, match=sentence), recording(path, "a test"):
            pytest.fail("the episodes ran")
    full = pytest.raises(OSError, match=r"cannot write .*r\.parquet: File too large; free some space")
    with file_size_limit(100), full, recording(tmp_path / "r.parquet", "a test"):
        pytest.fail("the episodes ran")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_module, "_PROBE", b"")
    with file_size_limit(2000), pytest.raises(OSError, match=r"cannot write .*r\.parquet: .*; free some space"):
        run(tmp_path / "r.parquet")
    assert not list(tmp_path.iterdir())
