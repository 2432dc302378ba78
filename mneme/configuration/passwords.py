"""Passwords in the URIs that users give: used, but neither kept nor shown."""

import re
from urllib.parse import unquote_plus

_USER = re.compile(r"^(\w[\w+.-]*://[^/:\s]*):[^/\s]*@")
_OPTION = re.compile(r"(?<=[?&;])[^=?&;#\s]+=[^&#\s]*")
_NAME = re.compile(r"([\w.-]+)\s*=")
_SECRET = re.compile(
    r"^(pass|pw|key|sig)$|(password|passwd|passphrase|passcode|pwd|secret|token|jwt|credentials?|signature)$"
    r"|(api|access|account|auth|private|secret|shared)key$"
)  # how options are called whose value is nobody's business, in small letters alone; not passfile, sslkey, bypass


def passwordless(uri: str) -> str:
    """A URI fit to be kept: with its user, and without the password, be it before the host or among the options."""
    head, mark, options = _USER.sub(r"\1@", uri).partition("?")
    kept = [option for option in options.split("&") if not _is_secret(option)]
    return f"{head}{mark}{'&'.join(kept)}" if kept else head


def without_password(text: str) -> str:
    """A text that may hold URIs, fit to be shown."""
    return _OPTION.sub(_hidden, re.sub(r"//[^/\s]+@", "//***@", text))


def _hidden(option: re.Match[str]) -> str:
    name, _, _ = option[0].partition("=")
    return f"{name}=***" if _is_secret(option[0]) else option[0]


def _is_secret(option: str) -> bool:
    """True if `name=value` gives a password, or the value does, as in odbc_connect=DRIVER%3DX%3BPWD%3DY."""
    names = _NAME.findall(unquote_plus(option))
    return any(_SECRET.search(re.sub(r"[^a-z]", "", name.lower())) for name in names)
