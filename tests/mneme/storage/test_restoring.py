"""Whatever in a checkpoint is not as a run writes it is refused in one sentence, before anything of it is used."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from safetensors.numpy import save_file

from mneme.configuration.config import load_config
from mneme.configuration.renamed import RENAMED
from mneme.distributed.blueprint import make_blueprint
from mneme.envs import TMaze
from mneme.evaluation import evaluate_checkpoint
from mneme.storage import checkpoint as module
from mneme.storage.checkpoint import Checkpoint, CheckpointError, list_checkpoints, load_checkpoint, save_checkpoint
from mneme.storage.restoring import checked_state, load_run
from mneme.training import resume, train

pytestmark = pytest.mark.usefixtures("undrawn")

SETTINGS = [
    "rollout.num_envs=4", "rollout.num_workers=2", "policy.controller.hidden_size=8", "policy.controller.backend=torch",
    "train.total_timesteps=80", "checkpoint.every=40", "train.evaluation_episodes=4", "tracking.enabled=false",
    "learner.num_threads=1", "learner.num_minibatches=2", "name=run", "rollout.unroll_length=10",
    "policy.normalize_observations=true",
    "learner.normalize_rewards=true", "spaces.previous_action=true", "spaces.previous_reward=true",
]  # fmt: skip
TASKS = {
    "tmaze": ["env.id=mneme/TMaze-v0", "env.kwargs={length: 12, active: true}"],
    "counting": ["env.id=mneme/Counting-v0", "env.kwargs={}", "rollout.warm_up=4", "learner.anchor=always"],
    "packed": ["env.id=mneme/Counting-v0", "env.kwargs={shortest: 4, spread: 12}", "rollout.batching=episodes"],
    "curriculum": ["env.kwargs={horizon: 12}", "curriculum.stages=[{horizon: 3}, {horizon: 5}]"],
}


@pytest.fixture(
    scope="module",
    params=["tmaze", *(pytest.param(task, marks=pytest.mark.slow) for task in ("counting", "packed", "curriculum"))],
)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    root = tmp_path_factory.mktemp("run")
    config = load_config(None, [*SETTINGS, *TASKS[request.param], f"checkpoint.root={root}"])
    return load_checkpoint(list_checkpoints(train(config, local=True).folder / "checkpoints")[-1])


def changed(array: np.ndarray, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """The array in every way in which it can be wrong."""
    yield "one axis more", array[None]
    yield "two of them", np.stack([array, array])
    if array.ndim != 2 or len(array) != 1:
        yield "in a row", array.reshape(1, -1)
    if array.ndim and array.size:
        yield "one fewer", array[:-1]
        yield "none", array[:0]
        yield "a scalar", array.reshape(-1)[0].copy()
    for kind in (np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_):
        if array.dtype != kind:
            yield f"as {kind.__name__}", array.astype(kind)
    if not array.size:
        return
    if array.dtype.kind == "f":
        for value in (np.nan, np.inf, -np.inf):
            other = array.copy()
            other.reshape(-1)[-1:] = value
            yield f"with {value}", other
    if name.startswith(("adam.exp_avg_sq.", "adam.step.")) or name.endswith((".count", ".variance")):
        yield "negative", -1 - np.abs(array)
    if array.dtype.kind == "i" and "observation." not in name:
        yield "negative", -100 - np.abs(array)
        yield "most negative", np.full_like(array, np.iinfo(array.dtype).min)
    if name in ("filler", "reset"):
        yield "turned", ~array
    if name in ("env.key", "env.step", "episode_step"):
        yield "other", array + 1
    if name == "env.cell":
        yield "other", array + 1000
    if name == "level":
        yield "too high", array + 5


def test_every_array_is_refused_in_every_way_in_which_it_can_be_wrong(saved: Checkpoint, tmp_path: Path) -> None:
    blueprint = make_blueprint(load_run_config(saved, tmp_path))
    checked_state(tmp_path, saved, blueprint)  # as it is, it is right
    accepted = []
    for part, arrays in saved.arrays.items():
        for name, array in arrays.items():
            ways: list[tuple[str, dict[str, np.ndarray]]] = [
                ("missing", {k: v for k, v in arrays.items() if k != name})
            ]
            ways += [(how, arrays | {name: other}) for how, other in changed(array, name)]
            for how, others in ways:
                try:
                    checked_state(tmp_path, saved._replace(arrays=saved.arrays | {part: others}), blueprint)
                except CheckpointError as error:
                    assert "\n" not in str(error)
                    assert str(tmp_path) in str(error) and part in str(error)
                else:
                    accepted.append((part, name, how))
    assert accepted == []


def load_run_config(saved: Checkpoint, tmp_path: Path) -> Any:
    save_checkpoint(
        tmp_path / "checkpoints", 80, {k: v for k, v in saved.run.items() if k != "format"}, saved.arrays, 3
    )
    return load_run(tmp_path, trust=False)[2]


def test_parts_and_names_that_do_not_belong_are_refused(saved: Checkpoint, tmp_path: Path) -> None:
    blueprint = make_blueprint(load_run_config(saved, tmp_path))
    learner, worker = saved.arrays["learner"], saved.arrays["worker-0"]
    for arrays, sentence in (
        (saved.arrays | {"worker-2": worker}, "worker-2 is unexpected"),
        (saved.arrays | {"other": worker}, "other is unexpected"),
        (saved.arrays | {"learner": learner | {"more": np.zeros(1)}}, "more in learner is unexpected"),
        (saved.arrays | {"worker-1": worker | {"more": np.zeros(1)}}, "more in worker-1 is unexpected"),
        (saved.arrays | {"worker-1": worker}, "worker-1 cannot be taken up: env.key"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            checked_state(tmp_path, saved._replace(arrays=arrays), blueprint)


@pytest.mark.parametrize("saved", ["tmaze"], indirect=True)
def test_what_a_run_learned_on_is_not_needed_to_evaluate_it(saved: Checkpoint, tmp_path: Path) -> None:
    config = json.loads(json.dumps(saved.run["config"]))
    config["learner"]["device"] = "cuda:7"
    config["policy"]["controller"]["backend"] = "triton"
    path = save_checkpoint(tmp_path / "checkpoints", 80, {**saved.run, "config": config}, saved.arrays, 3)
    assert evaluate_checkpoint(path, episodes=4, num_envs=4, seed=0).lengths.size == 4


@pytest.mark.parametrize("saved", ["tmaze"], indirect=True)
def test_a_checkpoint_with_the_old_names_of_settings_is_evaluated_as_with_the_new(
    saved: Checkpoint, tmp_path: Path
) -> None:
    old = json.loads(json.dumps(saved.run["config"]))
    old["policy"]["controller"]["kwargs"] = {"cell_norm": old["policy"]["controller"].pop("layer_norm")}
    for key, new in RENAMED.items():
        (section, _, name), new_name = key.rpartition("."), new.rpartition(".")[2]
        if new_name in old.get(section, {}):
            old[section][name] = old[section].pop(new_name)
    assert old["rollout"]["lanes"] == 4
    assert not {"num_envs", "num_workers"} & old["rollout"].keys()
    found = []
    for folder, config in (("new", saved.run["config"]), ("old", old)):
        run = {**saved.run, "config": config}
        path = save_checkpoint(tmp_path / folder / "checkpoints", 80, run, saved.arrays, 3)
        found.append(evaluate_checkpoint(path, episodes=4, num_envs=4, seed=0).returns.tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("saved", ["tmaze"], indirect=True)
def test_rewards_are_known_of_the_lanes_up_to_the_last_that_was_seen(saved: Checkpoint, tmp_path: Path) -> None:
    blueprint, learner = make_blueprint(load_run_config(saved, tmp_path)), saved.arrays["learner"]
    for lanes in (0, 2):
        seen = {name: learner[name][:lanes] for name in ("reward_scale.running", "reward_scale.expected")}
        checked_state(tmp_path, saved._replace(arrays=saved.arrays | {"learner": learner | seen}), blueprint)


class Peculiar(TMaze):
    """Its state has a number that is none, negative ones, and as many as steps were taken."""

    def get_state(self) -> dict[str, np.ndarray]:
        peculiar = {"best": np.array(-np.inf), "debt": np.array([-7]), "log": np.zeros(int(self._step_B[0]))}
        return super().get_state() | peculiar


class Indebted(TMaze):
    """An action takes from what it has in memory; where `lends` is false, there is none."""

    def _memory(self) -> dict[str, np.ndarray]:
        return super()._memory() | ({"debt": self._debt_B} if self._lends else {})

    def _begin(self, lanes_B: Any) -> None:
        super()._begin(lanes_B)
        self._debt_B[lanes_B] = 0

    def _transition(self, action_B: Any) -> Any:
        self._debt_B -= 1
        return super()._transition(action_B)

    def __init__(self, num_envs: int, lends: bool = True, **kwargs: Any) -> None:
        self._debt_B, self._lends = np.zeros(num_envs, np.int64), lends
        super().__init__(num_envs, **kwargs)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (Peculiar, []),
        (Indebted, []),
        (
            Indebted,
            [
                "curriculum.stages=[{lends: false}]",
                "curriculum.episodes=2",
                "env.success_return=-9",
                "train.total_timesteps=120",
            ],
        ),
    ],
)
def test_what_only_an_environment_can_judge_is_left_to_it(tmp_path: Path, kind: type[TMaze], more: list[str]) -> None:
    gym.register("Own-v0", vector_entry_point=kind)
    try:
        settings = [*SETTINGS, "env.id=Own-v0", "env.kwargs={length: 12}", f"checkpoint.root={tmp_path}", *more]
        run = train(load_config(None, settings), local=True)
        worker = load_checkpoint(list_checkpoints(run.folder / "checkpoints")[-1]).arrays["worker-0"]
        assert worker["level"] == bool(more)
        assert evaluate_checkpoint(run.folder, episodes=4, num_envs=4, seed=0).lengths.size == 4
        assert resume(run.folder, "train.total_timesteps=160", local=True).steps == 160
    finally:
        del gym.registry["Own-v0"]


@pytest.mark.parametrize("saved", ["tmaze"], indirect=True)
def test_evaluate_and_resume_refuse_alike_and_leave_the_run_as_it_was(saved: Checkpoint, tmp_path: Path) -> None:
    def written(run: dict[str, Any], arrays: Any) -> Path:
        return save_checkpoint(tmp_path / "run" / "checkpoints", 80, run, arrays, keep=3)

    learner, worker = saved.arrays["learner"], saved.arrays["worker-0"]
    cases: list[tuple[dict[str, Any], Any, str]] = [
        (saved.run, saved.arrays | {"learner": learner | {"version": np.array(-1)}}, "version in learner holds -1"),
        (saved.run, saved.arrays | {"worker-0": worker | {"step": np.ones(2)}}, "step in worker-0 is float64"),
        (saved.run, saved.arrays | {"worker-0": {}}, "in worker-0 is missing"),
        *(
            ({**saved.run, name: value}, saved.arrays, f"{name} in its run.json is|configuration that cannot be used")
            for name, values in {
                "steps": (-1, 1.5, "80", None, True, [80]), "episodes": (-3, None, "x"),
                "config": (None, [], "x", {"a": 1}),
                "curriculum": (
                    None, {}, {"level": -1, "recent": []}, {"level": 9, "recent": []}, {"level": 0, "recent": [1]},
                    {"level": 0, "recent": None}, {"level": 0, "recent": [True] * 9999}, {"level": True, "recent": []},
                ),
                "tracking_run": (3, [], {}), "resumes_exactly": (None, 1), "evaluation_due": (0, None),
                "ended": (0, None, "no"),
                "mode_schedule": (None, {"stage": 9, "returns": []}),
                "best": ({}, 3, {"step": -1, "score": [0.0, 1.0]}, {"step": 1, "score": [1, None]}),
                "waiting_episodes": (None, 3, [3], [{}], [{"worker": 0, "incarnation": 0, "waiting": [[1]]}]),
            }.items()
            for value in values
        ),
        *(
            ({k: v for k, v in saved.run.items() if k != name}, saved.arrays, f"{name} in its run.json is None")
            for name in ("steps", "episodes", "config", "curriculum", "resumes_exactly", "waiting_episodes")
        ),
    ]  # fmt: skip
    for run, arrays, sentence in cases:
        path = written(run, arrays)
        before = sorted(str(file) for file in tmp_path.rglob("*"))
        for load in (
            lambda path=path: evaluate_checkpoint(path, episodes=4, num_envs=4, seed=0),
            lambda path=path: resume(path, "train.total_timesteps=160", local=True),
        ):
            with pytest.raises(CheckpointError, match=sentence) as caught:
                load()
            assert "\n" not in str(caught.value)
        assert sorted(str(file) for file in tmp_path.rglob("*")) == before


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "checkpoints", 1, {"steps": 1, "config": {}}, {"learner": {"a": np.zeros(2)}}, 1)


def signed(path: Path, *more: str) -> None:
    """A forged, matching manifest."""
    names = [*(file.name for file in path.iterdir() if file.name != "manifest.json"), *more]
    (path / "manifest.json").write_text(json.dumps({name: module._sha256(path / name) for name in names}))


def linked(path: Path) -> None:
    (path / "learner.safetensors").rename(path.parent / "elsewhere")
    (path / "learner.safetensors").symlink_to(path.parent / "elsewhere")
    signed(path)


def above(path: Path) -> None:
    save_file({"a": np.zeros(1)}, path.parent / "x.safetensors")
    signed(path, "../x.safetensors")


def absolute(path: Path) -> None:
    save_file({"a": np.zeros(1)}, path.parent / "x.safetensors")
    signed(path, str(path.parent / "x.safetensors"))


def header(path: Path, text: bytes, size: int | None = None) -> None:
    length = len(text) if size is None else size
    (path / "learner.safetensors").write_bytes(length.to_bytes(8, "little") + text)
    signed(path)


def tensor(dtype: str, shape: list[int], end: int) -> bytes:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}).encode() + b"\0" * 16


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a link": linked,
    "a name above": above,
    "an absolute name": absolute,
    "no manifest of names": lambda path: (path / "manifest.json").write_text('"learner.safetensors run.json"'),
    "a deep manifest": lambda path: (path / "manifest.json").write_text("[" * 100_000),
    "a deep run": lambda path: ((path / "run.json").write_text('{"a":' * 100_000), signed(path)),
    "a run that is a list": lambda path: ((path / "run.json").write_text("[]"), signed(path)),
    "a header beyond the file": lambda path: header(path, b"{}", 2**63),
    "a large header": lambda path: header(path, b"{}", 99_000_000),
    "a deep header": lambda path: header(path, b'{"a":' * 100_000),
    "a huge shape": lambda path: header(path, tensor("F64", [2**40, 2**20], 16)),
    "an overflowing shape": lambda path: header(path, tensor("F64", [2**62, 4], 16)),
    "offsets beyond the file": lambda path: header(path, tensor("F64", [2], 2**40)),
    "a type of others": lambda path: header(path, tensor("F8_E4M3", [16], 16)),
    "a folder": lambda path: ((path / "learner.safetensors").unlink(), (path / "learner.safetensors").mkdir()),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_files_that_nobody_wrote_honestly_are_refused(whole: Path, how: str) -> None:
    load_checkpoint(whole)
    HOSTILE[how](whole)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        load_checkpoint(whole)
    assert "\n" not in str(caught.value)


def test_a_pipe_is_not_waited_for(whole: Path) -> None:
    import os

    (whole / "run.json").unlink()
    os.mkfifo(whole / "run.json")
    with pytest.raises(CheckpointError, match="run.json is no file of its own"):
        load_checkpoint(whole)
