"""Ray's errors in words."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from mneme.distributed.runners import ServiceLost

GO_ON = "continue from the last checkpoint, if there is one: --resume"
_REASON_CHARACTERS = 300
_DAEMONS = ("gcs_server", "raylet")
_LATE = 2.0  # seconds after which a daemon that was told to end with an actor may still be there


def failure_reason(error: RayError) -> str:
    """The heart of a Ray error in one line, without its remote traceback."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}".partition("\n")[0]
    if isinstance(error, GetTimeoutError):
        return "it did not answer in time"
    if "node has died" in str(error) or "node was terminated" in str(error):
        return "its node died"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[-1] if "error" in lines[-1].lower() else lines[0]
    return line.partition(". ")[0][:_REASON_CHARACTERS]


def never_ran(error: RayError) -> bool:
    """True if an actor was lost before its process had begun, as when it was placed on a node that had just died."""
    return "never ran" in str(error)


@contextmanager
def loss_of_ray() -> Iterator[None]:
    """Say of an error by which Ray itself is gone that it is.

    Raises:
        ServiceLost: in its place; the error of a task is left as it is.
    """
    try:
        yield
    except (RayError, ConnectionError) as error:
        if isinstance(error, RayTaskError):
            raise
        reason = failure_reason(error) if isinstance(error, RayError) and str(error).strip() else repr(error)
        raise ServiceLost(f"Ray was lost ({reason}); {GO_ON}") from error


def daemons_of_own_ray() -> dict[str, psutil.Process]:
    """By name, the processes without which a Ray that this process has started is none; none of a cluster's."""
    children = {child.name(): child for child in psutil.Process().children()}
    return {name: child for name, child in children.items() if name in _DAEMONS}


def check_daemons(daemons: Mapping[str, psutil.Process]) -> None:
    """See that Ray itself has not ended with an actor, as where a signal goes to a whole group of processes: who waits
    for it then is ended by it after a minute.

    Raises:
        ServiceLost: it has.
    """
    gone, _ = psutil.wait_procs(daemons.values(), timeout=_LATE) if daemons else ([], [])
    if ended := [name for name, daemon in daemons.items() if daemon in gone]:
        raise ServiceLost(f"Ray was lost (its {' and '.join(ended)} ended); {GO_ON}")
