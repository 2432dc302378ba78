"""Ray's errors in words."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from mneme.distributed.runners import ServiceLost

GO_ON = "continue from the last checkpoint, if there is one: --resume"
_REASON_CHARACTERS = 300


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
