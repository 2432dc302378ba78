"""Settings of a run's checkpoints: their folder, their mirror, how often they are written, and which are kept."""

from dataclasses import dataclass

from mneme.configuration.passwords import without_password
from mneme.controllers import Settings
from mneme.storage.uri import as_uri, fault_of


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Settings, section="checkpoint"):
    """The files of a run that are kept on disk."""

    root: str = "runs"
    """Folder under which each run gets its own."""
    mirror: str | None = None
    """URI of a folder, s3://BUCKET/runs, gs://BUCKET/runs or file:///mnt/shared/runs, where each run's checkpoints are
    copied to as well, and may be resumed from. Credentials are taken from the environment."""
    every: int = 100_000
    """Environment steps between checkpoints; one is always written at the end and on Ctrl-C."""
    keep: int = 3
    """Newest checkpoints that are kept."""
    keep_best: bool = True
    """Save after each evaluation that is the best so far, by success and then return, and keep the best one too."""
    keep_every: int | None = None
    """Keep also the first checkpoint at or after each multiple of so many environment steps, for ever."""
    fallback: str | None = None
    """Folder for the last checkpoint where that cannot be written below root. Unset: the system's temporary folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("every", "keep", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"checkpoint.{name} is {value}; it must be at least 1")
        if as_uri(self.root) is not None:
            raise ValueError(
                f"checkpoint.root is {self.root}, no folder of this machine; give one, and set "
                f"checkpoint.mirror={self.root}, where every checkpoint is copied to as well"
            )
        if self.mirror is not None and (fault := fault_of(self.mirror)):
            raise ValueError(f"checkpoint.mirror is {without_password(self.mirror)}; {fault}")
