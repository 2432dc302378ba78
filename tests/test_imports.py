"""The import contract: who may import whom, read off the syntax trees and off a running interpreter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"envs", "controllers", "rollout_workers", "learner", "distributed"}
ALLOWED = {
    "envs": set(),
    "controllers": set(),
    "rollout_workers": {"envs", "controllers"},
    "learner": {"controllers", "rollout_workers.fragment"},
    "distributed": OURS,
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
    return found


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(OURS))
def test_packages_import_only_what_the_design_allows(package: str) -> None:
    allowed = ALLOWED[package] | {package}
    for path in modules(package):
        for name in imports(path):
            if name.partition(".")[0] in OURS:
                assert any(name == a or name.startswith(f"{a}.") for a in allowed), f"{path} imports {name}"


@pytest.mark.parametrize("package", sorted(OURS - {"distributed"}))
def test_only_distributed_imports_ray_and_pydantic(package: str) -> None:
    for path in modules(package):
        assert not {n.partition(".")[0] for n in imports(path)} & {"ray", "mlflow", "pydantic"}, path


def test_only_tracking_imports_mlflow() -> None:
    importers = {p.parent.name for p in modules("distributed") if any(n.startswith("mlflow") for n in imports(p))}
    assert importers == {"tracking"}


def test_envs_need_no_torch() -> None:
    for path in modules("envs"):
        assert "torch" not in {n.partition(".")[0] for n in imports(path)}, path


def test_distributed_is_ours_and_not_dasks() -> None:
    import distributed

    assert Path(distributed.__file__).parent == ROOT / "distributed"


def test_everything_but_distributed_runs_without_ray() -> None:
    code = (
        "import sys; sys.modules['ray'] = sys.modules['mlflow'] = sys.modules['pydantic'] = None;"
        "import envs, controllers, rollout_workers, learner"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_local_training_never_imports_ray() -> None:
    code = "import sys, distributed.training; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
