"""The packer: every step of every complete episode once and in order, in rows that are full, from a bounded store."""

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
import pytest

from mneme.rollout_workers import Fragment, Packer, stride_to_collect
from tests.rollout_workers.streams import FAILED, TERMINATED, TRUNCATED, streams

Episodes = Callable[[random.Random], Iterator[tuple[int, int]]]
ENDS = (TERMINATED, TRUNCATED, FAILED)


def between(shortest: int, longest: int, ends: tuple[int, ...] = ENDS[:2]) -> Episodes:
    """Lengths drawn from a range, both ends included."""

    def drawn(rng: random.Random) -> Iterator[tuple[int, int]]:
        while True:
            yield rng.randint(shortest, longest), rng.choice(ends)

    return drawn


def one_of(*lengths: int) -> Episodes:
    """Lengths drawn from these."""

    def drawn(rng: random.Random) -> Iterator[tuple[int, int]]:
        while True:
            yield rng.choice(lengths), TERMINATED

    return drawn


def endless(rng: random.Random) -> Iterator[tuple[int, int]]:
    """One episode that does not end."""
    yield 10**6, TERMINATED


def made(
    B: int, T: int, episodes: Episodes, *, stride: int | None = None, filler: bool = False
) -> tuple[Iterator[Fragment], Packer]:
    """Fragments, and a packer for them."""
    rng, stride = random.Random(0), stride or T
    collected = stride_to_collect(T, stride)
    lanes = [episodes(random.Random(rng.random())) for _ in range(B)]
    like = next(streams([endless(rng) for _ in range(B)], T, collected, first_lane=11))
    return streams(lanes, T, collected, filler=filler, first_lane=11), Packer(like, stride)


def padding_of(fragments: Iterable[Fragment]) -> float:
    """The share of rows that are padding, where each fragment is as long as the last step that any row has."""
    steps, room = 0, 0
    for fragment in fragments:
        steps += fragment.steps
        room += fragment.num_envs * (int(np.flatnonzero(fragment.valid.any(0))[-1]) + 1)
    return 1 - steps / room


def assert_right(packed: Fragment) -> list[tuple[int, int, int]]:
    """See that every number of a packed fragment belongs where it stands; its steps, as (lane, episode, step)."""
    packed.validate()
    T, seen = packed.length, packed.observations["observation"].astype(int)
    valid, done = packed.valid, packed.terminated | packed.truncated
    assert valid.any(1).all()
    assert not (done & ~valid).any()
    for name, at in (("actions", 1), ("rewards", 1), ("log_probs", -1)):
        np.testing.assert_array_equal(at * getattr(packed, name)[valid], seen[:, :T, 2][valid])
    # Each valid step follows the one before it, or opens an episode; what it leads to is the next step of the same.
    goes_on = valid & ~done
    np.testing.assert_array_equal(seen[:, 1:][goes_on], seen[:, :T][goes_on] + [0, 0, 1])
    np.testing.assert_array_equal(packed.values[:, 1:][goes_on], seen[:, 1:, 2][goes_on])
    opens = valid & packed.resets[:, :T]
    assert (seen[:, :T, 2][opens] == 0).all()
    # The carry is the episode's own wherever it is not reset, and the final observation what its last step led to.
    S = range(0, T, packed.carry_stride)
    asked = (valid & ~packed.resets[:, :T])[:, S]
    np.testing.assert_array_equal(packed.carries["h"][asked], seen[:, :T][:, S][asked])
    finals = seen[:, :T][packed.cut_short] + [0, 0, 1]
    np.testing.assert_array_equal(packed.final_observations["observation"], finals)
    np.testing.assert_array_equal(packed.final_values, np.where(packed.cut_short, -1.0, 0.0))
    assert not packed.rewards[~valid].any()
    assert (packed.worker == 7).all()
    np.testing.assert_array_equal(packed.lane, seen[:, 0, 0])
    np.testing.assert_array_equal(packed.seed, packed.lane - packed.lane.min() + packed.seed.min())
    return [tuple(step) for step in seen[:, :T][valid].tolist()]


@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize(
    ("T", "B", "episodes", "filler"),
    [
        (20, 3, between(1, 20), False),
        (20, 3, between(1, 90), True),
        (33, 5, between(1, 7, ENDS), True),
        (64, 4, between(0, 200, ENDS), False),
        (64, 4, between(63, 66, ENDS), False),
        (70, 2, one_of(71), False),
        (1, 2, between(1, 3), False),
    ],
)
def test_every_step_of_every_complete_episode_comes_once_and_in_order(
    T: int, B: int, episodes: Episodes, filler: bool, stride: int | None
) -> None:
    stride = min(T, stride or T)
    fragments, packer = made(B, T, episodes, stride=stride, filler=filler)
    handed: list[tuple[int, int, int]] = []
    versions: dict[tuple[int, int, int], int] = {}  # of the weights that acted, by step
    for fragment in islice(fragments, 25):
        seen = fragment.observations["observation"].astype(int)
        for b, t in np.argwhere(fragment.valid).tolist():
            versions[tuple(seen[b, t].tolist())] = int(fragment.weights_version[b])
        packed = packer.add(fragment)
        if packed is None:
            continue
        handed += assert_right(packed)
        rows = packed.observations["observation"][:, :T].astype(int).tolist()
        for row, valid, version in zip(rows, packed.valid, packed.weights_version, strict=True):
            assert version == min(versions[tuple(step)] for step, counts in zip(row, valid, strict=True) if counts)
    state = packer.state()
    waits = [tuple(s) for s in state["step.observations.observation"][state["step.valid"]].astype(int).tolist()]
    assert len(handed) > 10 * B * T
    assert sorted([*handed, *waits]) == sorted(versions)
    # Of an episode that has not been handed over to its end, no part has, unless it does not fit into a row, together
    # with the step at which it may have failed.
    for lane, episode in {step[:2] for step in handed} & {step[:2] for step in waits}:
        assert sum(step[:2] == (lane, episode) for step in versions) >= T


@pytest.mark.parametrize("lanes", [4, 8, 32])
@pytest.mark.parametrize("T", [128, 1000])
def test_padding_stays_under_five_percent_for_lengths_from_1_to_1000(lanes: int, T: int) -> None:
    fragments, packer = made(lanes, T, between(1, 1000))
    rounds = 60 * 1000 // T if lanes < 32 else 30 * 1000 // T
    packed = [found for fragment in islice(fragments, rounds) if (found := packer.add(fragment)) is not None]
    assert sum(fragment.steps for fragment in packed) > 0.8 * rounds * lanes * T
    assert padding_of(packed) < 0.05


@pytest.mark.parametrize("length", [1, 50, 70, 100, 128, 129, 200, 300])
def test_padding_stays_under_five_percent_for_a_constant_length(length: int) -> None:
    fragments, packer = made(8, 128, one_of(length))
    packed = [found for fragment in islice(fragments, 60) if (found := packer.add(fragment)) is not None]
    assert sum(fragment.steps for fragment in packed) > 0.8 * 60 * 8 * 128
    assert padding_of(packed) < 0.05
    assert max(packer.add(next(fragments)).weights_version) >= 58  # type: ignore[union-attr]


def test_what_waits_reaches_its_bounds_and_never_exceeds_them() -> None:
    T, B = 100, 3
    # Of those that are longer than half a row none fits beside another, and a lane's full rows say what is possible.
    lengths = iter([100, 51, 51])
    fragments, packer = made(B, T, lambda rng: one_of(next(lengths))(rng))
    most, largest = 0, packer.largest_state()
    for fragment in islice(fragments, 200):
        packer.add(fragment)
        ended, under_way = packer.waiting
        assert ended <= packer.most == (2 * B + 8) * T
        assert under_way <= B * T
        most = max(most, ended)
        state = packer.state()
        assert state.keys() == largest.keys()
        for name, x in state.items():
            assert len(x) <= len(largest[name]) and x.dtype == largest[name].dtype
            assert x.shape[1:] == largest[name].shape[1:]
    assert most > packer.most - 51
    fragments, packer = made(B, T, endless)
    for version in range(3):
        packed = packer.add(next(fragments))
        assert packer.waiting == (0, B * T)
        assert (packed is None) == (version == 0)
        assert packed is None or packed.valid.all()


@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("episodes", [between(1, 30, ENDS), between(1, 200, ENDS)], ids=["short", "long"])
def test_a_restored_packer_goes_on_to_the_bit(episodes: Episodes, stride: int | None) -> None:
    fragments, straight = made(3, 40, episodes, stride=stride)
    _, resumed = made(3, 40, episodes, stride=stride)
    for fragment in islice(fragments, 20):
        a, b = straight.add(fragment), resumed.add(fragment)
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.to_arrow().equals(b.to_arrow())
        saved = straight.state()
        _, resumed = made(3, 40, episodes, stride=stride)
        resumed.set_state(saved)
        resumed.check_agrees(int(fragment.first_step[0]) + 40, fragment.resets[:, -1])
        for name, x in resumed.state().items():
            np.testing.assert_array_equal(x, saved[name], err_msg=name)


def test_a_state_whose_parts_disagree_is_refused() -> None:
    fragments, packer = made(3, 40, between(1, 100))
    for fragment in islice(fragments, 6):
        packer.add(fragment)
    state = packer.state()
    assert len(state["piece.lane"]) > 3
    ways: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
        "piece.length": ("do not have the steps that wait", lambda x: x + 1),
        "piece.lane": ("is of no lane", lambda x: x + 3),
        "piece.opens": ("have no carries, where they should|goes on from a carry", np.invert),
        "piece.first_step": ("first_step of what waits holds .*; it must be at least 0", lambda x: -1 - x),
        "piece.under_way": ("more episodes wait than may, or in another order", np.invert),
        "step.valid": ("do not end", np.invert),
        "step.stored": ("entries for", np.invert),
        "step.actions": ("actions of what waits holds .*; it must be at least 0", lambda x: -1 - x),
        "step.weights_version": ("weights_version of what waits holds .*", lambda x: -1 - x),
        "step.carries.h": ("entries for", lambda x: x[:-1]),
    }
    for name, (sentence, change) in ways.items():
        with pytest.raises(ValueError, match=sentence):
            packer.set_state(state | {name: change(state[name])})
    with pytest.raises(ValueError, match="those that the environments are in"):
        packer.check_agrees(int(fragment.first_step[0]), fragment.resets[:, -1])
    packer.set_state(state)
