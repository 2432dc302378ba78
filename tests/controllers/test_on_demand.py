"""Packages that load what they offer when it is used."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

PACKAGES = ("mneme", "mneme.controllers", "mneme.learner", "mneme.rollout_workers")


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_offered_is_there_and_a_name_that_is_not_is_told(package: str) -> None:
    module = import_module(package)
    assert len(module.__all__) > 10
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(dir(module)) >= {*module.__all__, "__name__"}
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nosuch'"):
        module.nosuch  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_that_is_offered_is_a_modules(package: str) -> None:
    module = import_module(package)
    assert module.__file__ is not None
    modules = {path.stem for path in Path(module.__file__).parent.iterdir()}
    assert not modules & {*module.__all__}, "importing the module would put it in the name's place"


def test_settings_are_had_without_torch() -> None:
    code = (
        "import sys;"
        "from mneme.controllers import ControllerSettings, PolicySettings;"
        "from mneme.learner import LearnerSettings;"
        "from mneme.rollout_workers import RolloutSettings, SpaceSettings;"
        "assert 'torch' not in sys.modules;"
        "from mneme.controllers import Controller;"
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
