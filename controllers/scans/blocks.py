"""Cutting a scan into blocks of steps that stay in a core's cache."""

ROWS = 1024  # of [T * B, H] a block; measured best or near it at hidden 64 to 256 on CPUs with 0.5 to 2 MiB of cache


def blocks(steps: int, lanes: int) -> list[tuple[int, int]]:
    """The (start, stop) of consecutive blocks that cover `steps`, each of about ROWS / lanes steps."""
    size = max(1, ROWS // lanes) if lanes else steps
    return [(start, min(start + size, steps)) for start in range(0, steps, size)]
