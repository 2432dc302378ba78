"""What a user should know and nothing fails of: said once in each process, through the logger "mneme"."""

import logging
from functools import cache


@cache
def tell_once(sentence: str) -> None:
    """Warn, unless this was said before."""
    logging.getLogger("mneme").warning(sentence)
