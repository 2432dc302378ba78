"""Names and values as MLflow takes them: cleaned so that every name stays its own and can be read back.

MLflow allows letters, digits, / _ . - : and spaces, and no name that a path would shorten. A character that it does not
allow becomes _xHEX_, its code point between underscores, as in XML names of .NET and Excel: "load %" is "load _x25_".
An underscore that begins such a word is written so too, hence no two names meet.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

NAME_CHARACTERS = 250
PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000

_DIGEST = 12  # hexadecimal digits that keep names apart which were cut
_EMPTY = "_x_"
_NOT_ALLOWED = re.compile(r"[^/\w.\- :]|_(?=x[0-9A-F]*_)")
_NOT_A_PATH = re.compile(r"^/|/(?=/|$)|(?<![^/])\.(?=\.?(?:/|$))|^\.(?=\.)")
_ESCAPED = re.compile(r"_x([0-9A-F]+)_")


def clean_name(name: str) -> str:
    """The name of a parameter, metric, tag or artifact as MLflow takes it; one that it takes already stays."""
    name = _NOT_A_PATH.sub(_escape, _NOT_ALLOWED.sub(_escape, name)) or _EMPTY
    if len(name) <= NAME_CHARACTERS:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST]
    return f"{name[: NAME_CHARACTERS - _DIGEST - 1]}-{digest}"


def original_name(name: str) -> str:
    """The inverse of `clean_name`, unless the name was cut."""
    return "" if name == _EMPTY else _ESCAPED.sub(lambda found: chr(int(found[1], 16)), name)


def clean_text(text: str, characters: int) -> str:
    """A value that any database takes: line breaks and what cannot be shown as escapes, cut to the limit."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= characters else text[: characters - 1] + "…"


def flatten(config: Mapping[str, Any]) -> dict[str, str]:
    """A nested configuration as MLflow's parameters: keys with dots between the levels, values as text.

    Where the dots in keys would make two names one, they are escaped in both.
    """
    leaves = dict(_leaves(config, ()))
    plain = {path: clean_name(".".join(path)) for path in leaves}
    times = Counter(plain.values())
    return {
        name if times[name] == 1 else ".".join(clean_name(key).replace(".", "_x2E_") for key in path): clean_text(
            str(leaves[path]), PARAM_CHARACTERS
        )
        for path, name in plain.items()
    }


def _leaves(config: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in config.items():
        path = (*above, key)
        if isinstance(value, Mapping) and value and all(isinstance(inner, str) for inner in value):
            yield from _leaves(value, path)
        else:
            yield path, value


def _escape(found: re.Match[str]) -> str:
    return f"_x{ord(found[0]):X}_"
