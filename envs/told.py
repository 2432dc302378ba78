"""Warnings that a user should see though nothing fails: given once in each process, through the logger "mneme"."""

import logging
from functools import cache


@cache
def tell_once(sentence: str) -> None:
    """Warn, unless this was said before."""
    logging.getLogger("mneme").warning(sentence)
