"""Settings of a run's checkpoints: their folder, how often they are written, and how many are kept."""

from dataclasses import dataclass

from mneme.controllers import Settings


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Settings, section="checkpoint"):
    """The files of a run that are kept on disk."""

    root: str = "runs"
    """Folder under which each run gets its own."""
    every: int = 100_000
    """Environment steps between checkpoints; one is always written at the end and on Ctrl-C."""
    keep: int = 3
    """Newest checkpoints that are kept."""
    fallback: str | None = None
    """Folder for the last checkpoint where that cannot be written below root. Unset: the system's temporary folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"checkpoint.{name} is {getattr(self, name)}; it must be at least 1")
