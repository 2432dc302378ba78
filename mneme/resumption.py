"""A run that goes on: what of its settings may change, and what it has left to do."""

from collections.abc import Iterable
from typing import Any

from mneme.configuration.config import Config, override
from mneme.distributed.config import ConfigError
from mneme.storage.holding import read_state
from mneme.storage.run_folder import RunFolder

CHANGEABLE = ("train.total_timesteps", "train.stop_success", "learner.replicas")


class NothingLeft(ConfigError):
    """A run that is done; the message says with what, and names the setting that lets it go on."""


def refuse_other_changes(changes: Iterable[str]) -> None:
    """See that settings are among those that may change.

    Args:
        changes: as `key=value`.

    Raises:
        ConfigError: one is not.
    """
    for change in changes:
        if change.partition("=")[0].strip() not in CHANGEABLE:
            raise ConfigError(
                f"{change} is given, but a run goes on with its own settings; those that may change are "
                f"{', '.join(CHANGEABLE)}"
            )


def changed(config: Config, changes: Iterable[str]) -> Config:
    """The configuration of a run that goes on, with some settings changed; see `CHANGEABLE`.

    Where `learner.replicas` is another number, `learner.num_threads` is chosen anew.

    Raises:
        ConfigError: a setting may not change, or not to that value.
    """
    changes = list(changes)
    refuse_other_changes(changes)
    after = override(config, changes)
    same = after.learner.replicas == config.learner.replicas
    return after if same else after.changed("learner", num_threads=None)


def left_to_do(folder: RunFolder, run: dict[str, Any], begun: Config, config: Config, *, asked: bool) -> dict[str, Any]:
    """What a checkpoint records of its run, to go on from; `ended` where nothing but the result is missing, as its
    process was lost before it was done with that.

    Args:
        folder: the run's.
        run: what the checkpoint records.
        begun: the run's configuration there.
        config: that with which it is to go on.
        asked: whether a run that is complete is to go on from a checkpoint before its last.

    Raises:
        NothingLeft: the run has solved its task, or trained for its steps, and has its result.
    """
    state, steps, total = read_state(folder.path), run["steps"], config.train.total_timesteps
    complete = state is not None and state.state == "complete"
    lost = state is not None and state.state == "training"
    recorded = result_recorded(folder, steps)
    solved = steps < begun.train.total_timesteps and (run["ended"] or (complete and recorded))
    success = _confirmed(folder, steps)
    target, before = config.train.stop_success, begun.train.stop_success
    solved = solved and target is not None and target <= max(before or 0.0, success or 0.0)
    over = solved or steps >= total
    if over and run["ended"] and not complete and (lost or not recorded):
        return run | {"ended": True}
    if solved:
        shown = "" if success is None else f"success {success:.3g}, where "
        raise NothingLeft(
            f"{folder} has solved its task at step {steps:,}: {shown}train.stop_success asks for {target:.3g}; "
            f"train.stop_success=null trains on"
        )
    if over and steps < begun.train.total_timesteps:
        raise NothingLeft(
            f"{folder} stands at step {steps:,} and train.total_timesteps is {total:,}, which is not above that; "
            f"give more, or leave it out: the run's own is {begun.train.total_timesteps:,}"
        )
    if over or (complete and not asked):
        raise NothingLeft(
            f"{folder} is complete at step {steps:,}; to train for longer, give train.total_timesteps=N above that"
        )
    return run | {"ended": False}


def result_recorded(folder: RunFolder, steps: int) -> bool:
    """True if the newest metrics of a run whose training ended at a step are of its result, as a process that was
    killed after that may have left them."""
    newest = folder.history()[-1:]
    return any(row["step"] == steps and any(key.startswith("evaluation/") for key in row) for row in newest)


def _confirmed(folder: RunFolder, steps: int) -> float | None:
    """The lesser success of the two evaluations that ended a run at a step, of which the second confirms the first."""
    rows = [row for row in folder.history() if row["step"] == steps]
    names = ("evaluation/success", "confirmation/success")
    looks = [next((row[name] for row in rows if name in row), None) for name in names]
    found = [success for success in looks if success is not None]
    return min(found) if len(found) == len(names) else None
