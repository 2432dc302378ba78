"""What Ray's launcher asks of rsync, for machines without it: copies trees between hosts that share their files.

`rsync [options] SOURCE TARGET`, of which one may be USER@ADDRESS:PATH; HOMES maps addresses to home folders, as JSON.
"""

import json
import os
import shutil
import sys
from pathlib import Path

HOMES = json.loads(os.environ["HOMES"])
OF_A_VALUE = ("--rsh", "--exclude", "--filter")


def place(word: str) -> Path:
    """Where a source or target lies."""
    account, colon, path = word.partition(":")
    if not colon:
        return Path(word).expanduser()
    return Path(HOMES[account.partition("@")[2]], path.removeprefix("~/"))


def main(words: list[str]) -> None:
    """Copy."""
    paths = [
        word for before, word in zip(["", *words], words, strict=False)
        if not word.startswith("-") and before not in OF_A_VALUE
    ]  # fmt: skip
    source, target = map(place, paths)
    if source.is_dir():
        into = target if paths[0].endswith("/") else target / source.name
        shutil.rmtree(into, ignore_errors=True)
        shutil.copytree(source, into, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target / source.name if target.is_dir() else target)


if __name__ == "__main__":
    main(sys.argv[1:])
