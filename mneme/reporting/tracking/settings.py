"""Settings of the store in which runs are recorded, and the form of a URI that names a SQLite file."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from mneme.controllers import Settings

_SQLITE = re.compile(r"(?P<scheme>sqlite(?:\+\w+)?):///(?P<path>[^?]*)(?P<options>\?.*)?", re.DOTALL)
_OPTIONS = re.compile(r"\?\w+=[^?/]*")


@dataclass(frozen=True, kw_only=True)
class TrackingSettings(Settings, section="tracking"):
    """The store in which runs are recorded."""

    uri: str = "sqlite:///runs/mlflow.db"
    """MLflow store: a local SQLite file, artifacts beside it, or the URL of a tracking server."""
    experiment: str = "mneme"
    """MLflow experiment that gathers the runs."""
    run_name: str | None = None
    """Name of the run in MLflow. Unset: that of the run's folder."""
    parent: str | None = None
    """Name of a run in MLflow that gathers this one and others, and is made if there is none; a sweep names itself."""
    enabled: bool = True
    """Record the run at all."""
    registered_model_name: str | None = None
    """Name in MLflow's model registry, of which the best agent of a run that has ended becomes the newest version.
    Unset: none does."""
    system_metrics: bool = True
    """Record the use of CPU, memory, disk, network and GPU on the machine that runs the service."""
    also: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Boards that show the metrics besides MLflow, and without it too: tensorboard writes event files into the run's
    folder, wandb sends the run to Weights & Biases. Each needs its package."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.uri:
            raise ValueError(
                "tracking.uri is empty; give a store such as sqlite:///runs/mlflow.db, or set enabled=false"
            )
        if fault := fault_of(self.uri):
            raise ValueError(f"tracking.uri is {self.uri}; {fault}")
        if not 1 <= len(self.experiment) <= 500:
            raise ValueError(f"tracking.experiment has {len(self.experiment)} characters; it must have 1 to 500")
        if self.parent is not None and (not self.parent or re.search(r"['\"\\`]", self.parent)):
            raise ValueError(f"tracking.parent is {self.parent!r}; give a name without quotes and backslashes")
        name = self.registered_model_name
        if name is not None and (not name or re.search("[/:%]", name)):
            raise ValueError(
                f"tracking.registered_model_name is {name!r}; it is part of models:/NAME/VERSION, so that it is not "
                f"empty and holds no / : %"
            )


def fault_of(uri: str) -> str | None:
    """Why no store can be at a URI, and what to write instead; None if there may be one."""
    scheme, colon, rest = uri.partition(":")
    found = _SQLITE.fullmatch(uri)
    if found and found["options"] and not _OPTIONS.fullmatch(found["options"]):
        return "what follows a ? are options, as in ?timeout=5; in the name of a file or folder write %3F"
    if scheme.partition("+")[0] == "sqlite" and (not found or found["path"] in ("", ":memory:")):
        return "a store in SQLite is a file: sqlite:///runs/mlflow.db, or sqlite:////full/path/mlflow.db"
    if (scheme == "file" or not colon) and not uri.startswith("databricks") and not _folders_allowed():
        path = unquote(rest.removeprefix("//")) if colon else uri
        file = path if path.endswith((".db", ".sqlite", ".sqlite3")) else f"{path.rstrip('/')}/mlflow.db"
        return f"MLflow keeps no stores in plain folders any more; use sqlite:///{quote(file, safe=' +/~')}"
    return None


def sqlite_file(uri: str) -> Path | None:
    """The full path of a SQLite store's file; None for any other store."""
    found = _SQLITE.fullmatch(uri)
    if not found or found["path"].startswith("file:"):
        return None
    return Path(unquote(found["path"])).expanduser().absolute()


def absolute_uri(uri: str) -> str:
    """A SQLite file named from the current folder as a full path, so that a resumed run finds it from anywhere.

    Whatever has a meaning in a URI is quoted in it, as the folders above may have any name.

    Raises:
        ValueError: the path is no text.
    """
    file, found = sqlite_file(uri), _SQLITE.fullmatch(uri)
    if file is None or found is None:
        return uri
    try:
        path = quote(str(file), safe=" +/")
    except UnicodeEncodeError:
        raise ValueError(
            f"tracking.uri is {uri}, in {str(file)!r}, whose name is no text; name another, or set enabled=false"
        ) from None
    return f"{found['scheme']}:///{path}{found['options'] or ''}"


def _folders_allowed() -> bool:
    return os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1")
