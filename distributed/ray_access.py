"""Preparations before Ray starts: the address to join, its token, and a message while a start takes long."""

import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

from ray._private import services
from ray._private import utils as ray_utils

_log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_SILENCE = 10.0  # seconds after which a start is said to take long, and between such words
_TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
_FORMS = "use auto, HOST:6379 or ray://HOST:10001, or unset it for a Ray of your own"


def check_address(address: str, said_by: str) -> None:
    """Refuse an address at which no cluster can be joined; Ray itself tries for minutes.

    Args:
        said_by: the setting or variable that holds it.

    Raises:
        ValueError: it is of another kind, or incomplete.
        OSError: nothing answers there.
    """
    if address == "auto":
        return
    scheme, separator, rest = address.rpartition("://")
    if scheme.lower() in ("http", "https"):
        raise ValueError(
            f"{said_by} is {address}, where Ray's dashboard takes jobs: submit one there with ray job submit --address "
            f"{address}; to join the cluster itself, {_FORMS}"
        )
    host, _, port = rest.rstrip("/").rpartition(":")
    if (separator and scheme != "ray") or not host or not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(f"{said_by} is {address}, which is no address of a cluster; {_FORMS}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except socket.gaierror as error:
        raise OSError(f"the host {host} in {said_by} is not known ({error.strerror}); {_FORMS}") from None


def keep_token_private() -> None:
    """See to it that Ray's token can be read by its owner alone, and that there is one where Ray cannot keep it.

    Ray makes the file as the umask has it, which lets every user of the machine run code as its owner.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    named = os.environ.get(_TOKEN_PATH)
    path = Path(named or os.path.expanduser("~/.ray/auth_token"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            part = path.with_name(f"{path.name}.{os.getpid()}")
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
            try:
                os.link(part, path)  # a rename would replace the token of a Ray that starts at the same time
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                os.replace(part, path)
            part.unlink(missing_ok=True)
        elif path.stat().st_mode & 0o077:
            path.chmod(0o600)
            _log.warning(f"{path} could be read by others, who could have run code as you; now it is yours alone")
    except OSError as error:
        if os.access(path, os.R_OK):
            _log.warning(
                f"Ray's token in {path} cannot be kept from others ({error}); name a file of yours in {_TOKEN_PATH}"
            )
            return
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        _log.warning(
            f"Ray's token cannot be kept in the home directory ({error}): this run has one of its own; name a file "
            f"that can be written in {_TOKEN_PATH} to keep one"
        )


@contextmanager
def saying_that_it_goes_on(what: str) -> Iterator[None]:
    """Say every few seconds that something is still under way."""
    done, began = Event(), monotonic()

    def tell() -> None:
        while not done.wait(_SILENCE):
            _log.info(f"{what}: {monotonic() - began:.0f} s so far")

    thread = Thread(target=tell, name="mneme-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class _InItsOwnSession(services.ConsolePopen):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, start_new_session=True)


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Leave SIGTERM with whoever handles it: a process that joins Ray would end as by `sys.exit(15)` from then on."""
    before: Any = ray_utils.set_sigterm_handler
    setattr(ray_utils, "set_sigterm_handler", lambda handler: None)  # noqa: B010 - as below
    try:
        yield
    finally:
        setattr(ray_utils, "set_sigterm_handler", before)  # noqa: B010


@contextmanager
def apart_from_our_signals() -> Iterator[None]:
    """Start Ray's processes in sessions of their own, so that a signal to our whole group, as timeout(1) or a closing
    terminal sends it, does not end them before a checkpoint is written.

    On Linux the kernel ends them with this process all the same; elsewhere Ray ends them as members of our group, so
    there they stay in it.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    before: Any = services.ConsolePopen
    setattr(services, "ConsolePopen", _InItsOwnSession)  # noqa: B010 - a class, to which mypy takes no assignment
    try:
        yield
    finally:
        setattr(services, "ConsolePopen", before)  # noqa: B010
