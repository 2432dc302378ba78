"""URIs of folders in object stores and shared file systems, as users give them."""

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from mneme.configuration.passwords import passwordless

_OPTIONS = {"s3": ("region", "scheme", "endpoint_override"), "gs": ("scheme", "endpoint_override", "project_id")}
_URI = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]+):/{1,3}(?P<rest>[^/].*)", re.DOTALL)


def as_uri(given: str | Path) -> str | None:
    """The URI that a user has given in place of a path, though `Path` drops slashes; None if it is a path."""
    found = _URI.fullmatch(str(given))
    if not found or os.path.lexists(given):
        return None
    scheme = found["scheme"].lower()
    return f"{scheme}://{'/' if scheme == 'file' else ''}{found['rest']}".rstrip("/")


def fault_of(uri: str) -> str | None:
    """Why no store can be at a URI, and what to write instead; None if there may be one."""
    parts = urlsplit(uri)
    if parts.scheme in ("models", "runs"):
        return "it names an agent in MLflow, which acts and holds nothing to learn on with; go on with its run"
    if as_uri(uri) is None:
        return "write a URI such as s3://BUCKET/runs, gs://BUCKET/runs or file:///mnt/shared/runs"
    if passwordless(uri) != uri or (parts.scheme == "s3" and parts.username is not None):
        return "it holds a password, which a run would record; name credentials in the environment or in a profile"
    wrong = [name for name, _ in parse_qsl(parts.query) if name not in _OPTIONS.get(parts.scheme, (name,))]
    if wrong:
        return f"{wrong[0]} is no option of it; those are {', '.join(_OPTIONS[parts.scheme])}"
    return None


def below(uri: str, *names: str) -> str:
    """The URI of what lies below another one, whose options it keeps."""
    folder, options = split_options(uri)
    return "/".join([folder, *names]) + options


def split_options(uri: str) -> tuple[str, str]:
    """A URI without its options, and these with their question mark."""
    folder, mark, options = uri.partition("?")
    return folder.rstrip("/"), mark + options
