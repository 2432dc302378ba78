"""The two service loops. Each yields once an update and goes on when asked for the next.

Fragments flow worker -> object store -> replay (references) -> learner; weights flow back as one versioned record.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from mneme.distributed.accounts import Accounts, StepCounts
from mneme.distributed.blueprint import too_small_a_replay
from mneme.distributed.replay import Held, Replay, ReplayCounts
from mneme.distributed.runners import (
    Arrival,
    Condition,
    FragmentRef,
    FragmentsLost,
    OverlappingRunner,
    PendingUpdate,
    Runner,
    ServiceError,
)
from mneme.distributed.workers import Delivery
from mneme.learner import UpdateReport


class Update(NamedTuple):
    """One turn of a service loop."""

    report: UpdateReport
    deliveries: list[Delivery]  # that arrived since the update before
    fragments: ReplayCounts
    replay_bytes: int  # that wait in the replay
    steps: StepCounts
    condition: Condition


def synchronous(runner: Runner, replay: Replay[FragmentRef], patience: int) -> Iterator[Update]:
    """Collect one fragment from every worker, then learn from them, in turn.

    Consumes the newest weights, produces newer ones; waits for every worker, then for the learner; a worker that dies
    or hangs is replaced and the update goes on with what arrived. Where no worker has a fragment yet, as its episodes
    are under way, all collect again. Deterministic: same seed, same bits.

    Raises:
        ServiceError: more than `patience` rounds in a row failed to bring a fragment.
    """
    barren, accounts = 0, Accounts(replay)
    deliveries: list[Delivery] = []
    while True:
        arrivals = runner.collect()
        deliveries += [arrival.delivery for arrival in arrivals]
        _store(replay, arrivals, len(arrivals))
        fragments = replay.sample(len(replay), runner.version)
        accounts.begin(fragments)
        report = _ended(accounts, partial(runner.learn, _refs(fragments))) if fragments else None
        if report:
            yield _update(report, deliveries, replay, accounts, runner.condition())
            deliveries = []
        wait = not fragments and any(arrival.delivery.error is None for arrival in arrivals)
        barren = 0 if report or wait else barren + 1
        if barren > patience:
            reasons = {arrival.delivery.error for arrival in arrivals if arrival.delivery.error}
            reason = "; ".join(sorted(reasons)) or "no rollout actor answered"
            raise ServiceError(f"{barren} rounds in a row brought no fragment: {reason}")


def asynchronous(runner: OverlappingRunner, replay: Replay[FragmentRef]) -> Iterator[Update]:
    """Collect and learn at the same time, never more than `replay.max_lag` versions apart.

    Consumes fragments in order of arrival, one for each worker and update; waits for whichever is first, a delivery or
    the learner. While the learner is busy, workers are asked for as many fragments as will still be within the lag
    bound when their turn comes, and as there is room for in the replay, so a slow learner holds them back; while it is
    idle every idle worker is asked, so a slow worker holds nobody back.
    """
    accounts = Accounts(replay)
    deliveries: list[Delivery] = []
    learning: PendingUpdate | None = None
    while True:
        idle, per_update = runner.idle, max(1, runner.workers)
        in_flight = runner.workers - len(idle)
        timely = per_update * replay.max_lag - len(replay) - in_flight if learning else len(idle)
        for worker in idle[: max(0, min(timely, replay.room - in_flight))]:
            runner.request(worker)
        arrivals = runner.wait(learning)
        _store(replay, arrivals, per_update)
        deliveries += [arrival.delivery for arrival in arrivals]
        finished = learning if learning and runner.learn_ready(learning) else None
        report = _ended(accounts, partial(runner.learn_end, finished)) if finished else None
        if finished or not learning:
            fragments = replay.sample(per_update, runner.version)
            accounts.begin(fragments)
            learning = runner.learn_begin(_refs(fragments)) if fragments else None
        if report:
            yield _update(report, deliveries, replay, accounts, runner.condition())
            deliveries = []


def _update(
    report: UpdateReport,
    deliveries: list[Delivery],
    replay: Replay[FragmentRef],
    accounts: Accounts,
    condition: Condition,
) -> Update:
    steps = accounts.steps(condition.unlearned)
    return Update(report, deliveries, replay.fragments, replay.nbytes, steps, condition)


def _refs(fragments: Sequence[Held[FragmentRef]]) -> list[FragmentRef]:
    return [fragment.ref for fragment in fragments]


def _ended(accounts: Accounts, update: Callable[[], UpdateReport]) -> UpdateReport | None:
    """The report of an update, or None if its fragments were lost before it could take place."""
    try:
        report = update()
    except FragmentsLost:
        accounts.end(0)
        return None
    accounts.end(report.steps)
    return report


def _store(replay: Replay[FragmentRef], arrivals: list[Arrival], per_update: int) -> None:
    for delivery, fragment in arrivals:
        if fragment is None:
            continue
        if delivery.nbytes * per_update > replay.max_bytes:
            raise ServiceError(too_small_a_replay(replay.max_bytes, per_update, delivery.nbytes))
        replay.add(fragment, delivery.nbytes, delivery.steps, delivery.version)
