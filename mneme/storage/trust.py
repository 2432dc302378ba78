"""Whose code a run would have executed, and whom it would talk to: found before any of it is imported or reached.

A run names its controller and its environment, and to use them is to import the modules that they come from. Without
its user's word a run gets no code but Mneme's, that of installed packages, and what this process has imported already.

A run also names the Ray cluster that it trained on and the store that it was recorded in. To join a cluster is to
unpickle what that sends, which runs code, and to open a store is to hand it what the run holds. Without its user's word
a run that goes on gets the Ray of this machine and a file of its own folder's.
"""

import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from mneme.configuration.config import Config
from mneme.configuration.passwords import without_password
from mneme.reporting.tracking.settings import TrackingSettings, sqlite_file
from mneme.storage.checkpoint import CheckpointError
from mneme.storage.uri import below


def refuse_foreign_code(
    config: Config, checkpoint: Path, run: Path, imported: Mapping[str, ModuleType] = sys.modules
) -> None:
    """See that a run asks for no code that nobody here has chosen. Imports nothing.

    Args:
        config: of the run.
        checkpoint: what is to be loaded, for the message.
        run: its folder. What lies in it or beside it is never taken for installed, save Python's own folders.
        imported: modules by name that are this process's already, whatever they are.

    Raises:
        CheckpointError: it does; one sentence names the setting and the file.
    """
    for setting, value, module in named_code(config):
        if module in imported:
            continue
        where, installed = _origin(module, imported)
        if where is None:
            raise CheckpointError(
                f"the checkpoint {checkpoint} has {setting}={value}, and there is no module {module} to import; "
                f"install it, or start mneme in the folder that holds it, with --trust (trust=True)"
            )
        beside = _inside(where, [run.absolute().parent, run.resolve().parent])
        if not installed or (beside and not _inside(where, _sites())):
            raise CheckpointError(
                f"the checkpoint {checkpoint} has {setting}={value}, which would run the code in {where}"
                f"{', beside the run' if beside else ''}, and that is neither Mneme's nor an installed package's; "
                f"read it, and add --trust (trust=True) if you trust it"
            )


def refuse_foreign_places(config: Config, checkpoint: Path, run: Path, local: bool, given: str | None = None) -> None:
    """See that a run that goes on reaches no Ray cluster and no store that nobody here has chosen. Reaches none.

    Args:
        config: of the run.
        checkpoint: what it goes on from, for the message.
        run: its folder. A store in it or beside it is its own, and so is the one that a new run would get here.
        local: it goes on without Ray.
        given: URI by which its user has named the run, if it is not in a folder.

    Raises:
        CheckpointError: it does; one sentence names the setting and its value.
    """
    address, uri = config.service.address, config.tracking.uri
    if not local and address not in (None, "", "auto", "local"):
        raise CheckpointError(
            f"the checkpoint {checkpoint} has service.address={address}, a Ray cluster that could run any code here; "
            f"add --trust (trust=True) if it is yours"
        )
    if config.tracking.enabled and not _own_store(uri, run):
        raise CheckpointError(
            f"the checkpoint {checkpoint} has tracking.uri={without_password(uri)}, a store that is neither beside "
            f"the run nor the one used here; add --trust (trust=True) if it is yours"
        )
    mirror = config.checkpoint.mirror
    if mirror is not None and below(mirror, run.name) != given:
        raise CheckpointError(
            f"the checkpoint {checkpoint} has checkpoint.mirror={without_password(mirror)}, where all that the run "
            f"learns would be copied to; add --trust (trust=True) if it is yours"
        )


def needs_trust(config: Config, run: Path, *, local: bool | None) -> bool:
    """True if another process, started in the present folder, would load a run only if its user trusts it.

    Args:
        config: of the run.
        run: its folder.
        local: true if it goes on without Ray; None if it is only evaluated, which contacts no cluster and no store.
    """
    try:
        refuse_foreign_code(config, run, run, imported={})
        if local is not None:
            refuse_foreign_places(config, run, run, local)
    except CheckpointError:
        return True
    return False


def _own_store(uri: str, run: Path) -> bool:
    """True if a store is a SQLite file in a run's folder or directly beside it, or the one that a new run gets here."""
    file, usual = sqlite_file(uri), sqlite_file(TrackingSettings().uri)
    if file is None or not uri.startswith("sqlite:///"):  # sqlite+DRIVER imports the driver
        return False
    real = file.resolve()
    if usual is not None and real == usual.resolve():
        return True
    beside = (run.resolve().parent, run.absolute().parent.resolve())
    return real.parent in beside or real.is_relative_to(run.resolve())


def named_code(config: Config) -> Iterator[tuple[str, str, str]]:
    """Settings that name a module, their values, and the module."""
    kind, id = config.policy.controller.kind, config.env.id
    if ":" in kind:
        yield "policy.controller.kind", kind, kind.partition(":")[0]
    if ":" in id:
        yield "env.id", id, id.rpartition(":")[0]


def _origin(module: str, imported: Mapping[str, ModuleType]) -> tuple[Path | None, bool]:
    """The file or folder that importing a module would run first among those not yet imported, and whether it belongs
    to an installed package or to Mneme; the present folder counts as a place to look into, the last one."""
    path: Iterable[str] | None = None
    where: Path | None = None
    name, installed = "", True
    for part in module.split("."):
        if not part:
            return None, False
        name = f"{name}.{part}" if name else part
        loaded = imported.get(name)
        if loaded is not None:
            path = getattr(loaded, "__path__", ())
            continue
        spec, editable = _spec(name, path)
        if spec is None:
            return None, False
        places = [Path(place).absolute() for place in _places(spec)]
        if not places:  # built in: no controller and no environment is
            return Path(name), False
        if where is None:  # what lies inside a package is the package's
            where, installed = places[0], editable or all(_inside(place, _installed_folders()) for place in places)
        elif installed:
            where = places[0]
        path = spec.submodule_search_locations or ()
    return where, installed


def _spec(name: str, path: Iterable[str] | None) -> tuple[ModuleSpec | None, bool]:
    """The spec that the import system finds for a module, not importing it, and whether an editable install gave it."""
    if path is None:
        for finder in sys.meta_path:
            find: Any = getattr(finder, "find_spec", None)
            spec = find(name, None) if find else None
            if spec is not None:
                return spec, getattr(finder, "__module__", "").startswith("__editable__")
        return PathFinder.find_spec(name, [str(Path.cwd())]), False
    return PathFinder.find_spec(name, list(path)), False


def _places(spec: ModuleSpec) -> list[str]:
    if spec.has_location and spec.origin:
        return [spec.origin]
    return list(spec.submodule_search_locations or ())


@cache
def _sites() -> tuple[Path, ...]:
    """The folders in which this interpreter's packages are installed."""
    folders = {*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    if site.ENABLE_USER_SITE:
        folders.add(site.getusersitepackages())
    return tuple(Path(folder) for folder in folders)


@cache
def _installed_folders() -> tuple[Path, ...]:
    """The folders of `_sites`, with that of Mneme itself and those that editable installs name in .pth files."""
    folders = [*_sites(), Path(__file__).parents[1]]
    for folder in _sites():
        for file in folder.glob("*.pth"):
            lines = [line.strip() for line in file.read_text(errors="replace").splitlines()]
            named = [folder / line for line in lines if line and not line.startswith(("#", "import ", "import\t"))]
            folders += [place for place in named if place.is_dir()]
    return tuple(folders)


def _inside(place: Path, folders: Iterable[Path]) -> bool:
    """True if a place lies in one of these folders, as it is named or as it is once links are followed."""
    return any(
        place.is_relative_to(folder) or place.parent.resolve().is_relative_to(folder.resolve()) for folder in folders
    )
