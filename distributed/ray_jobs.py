"""A Ray job as its cluster's job server knows it, asked from anywhere that reaches the server."""

import socket
from typing import NamedTuple
from urllib.parse import urlsplit

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from mneme.distributed.in_time import in_time
from mneme.distributed.runners import ServiceError

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS, _LOG_SECONDS = 20.0, 120.0  # a log may be long, and its tunnel slow


class JobState(NamedTuple):
    """What a job server says of a job."""

    status: str  # PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED
    message: str  # the server's own words on that
    entrypoint: str  # the command
    began: float | None  # seconds since 1970
    ended: float | None  # seconds since 1970
    log: list[str]  # what it has printed, line by line


def job_state(job: str, address: str) -> JobState:
    """The state of a job. The token is sent as Ray sends it: with RAY_AUTH_MODE=token.

    Args:
        job: its identifier, as `ray job submit` said it.
        address: of the job server, such as http://127.0.0.1:8265.

    Raises:
        ServiceError: it cannot be had, and what helps.
    """
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:  # Ray would import a module of any other scheme's name
        raise ServiceError(f"--address is {address}, which is no job server; give one such as http://127.0.0.1:8265")
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
        socket.create_connection((url.hostname, port), timeout=_CONNECT_SECONDS).close()  # Ray would wait without end
        client = in_time(lambda: JobSubmissionClient(address), _ANSWER_SECONDS)
        info = in_time(lambda: client.get_job_info(job), _ANSWER_SECONDS)
        log = in_time(lambda: client.get_job_logs(job), _LOG_SECONDS)
    except (
        AuthenticationError, requests.RequestException, OSError, RuntimeError, ValueError, TypeError, LookupError,
    ) as error:  # fmt: skip
        raise ServiceError(f"the job {job} cannot be asked for at {address}: {_reason(error)}") from None
    return JobState(
        str(info.status), info.message or "", info.entrypoint, _seconds(info.start_time), _seconds(info.end_time),
        log.splitlines(),
    )  # fmt: skip


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, AuthenticationError):
        return (
            "its job server wants Ray's token; set RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token "
            "or in the file that RAY_AUTH_TOKEN_PATH names"
        )
    if _foreign(error):
        return "what answers there is no Ray job server; give the address of one, such as http://127.0.0.1:8265"
    if text.startswith("Request failed with status code 404:"):
        return "there is no such job; list them with: ray job list"
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        return f"nothing answers there ({error.strerror or text}); is its tunnel or its head up?"
    return " ".join(text.split())[:300]


def _foreign(error: Exception) -> bool:
    """True if what answers is something else than a Ray: it refuses to tell its version, or tells no JSON of Ray's."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return 400 <= error.response.status_code < 500
    unread = isinstance(error, requests.exceptions.JSONDecodeError | TypeError | LookupError)
    return unread or str(error).startswith("Version check returned 404")


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
