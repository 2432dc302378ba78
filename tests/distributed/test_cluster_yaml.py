"""cluster.yaml and cluster-local.yaml: Ray accepts them, the service finds what it wants, nothing is open to all."""

import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster.yaml"
FILES = (FILE, ROOT / "cluster-local.yaml")


def as_ray_sees(file: Path) -> dict[str, Any]:
    """A file as `ray up` sees it, with Ray's defaults filled in."""
    prepared: dict[str, Any] = prepare_config(yaml.safe_load(file.read_text()))
    return prepared


@pytest.fixture(params=FILES, ids=lambda file: file.name)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Either file."""
    return as_ray_sees(request.param)


def ray_starts(cluster: dict[str, Any]) -> dict[str, str]:
    """The command that starts Ray on each kind of node."""
    return {
        kind: next(command for command in cluster[f"{kind}_start_ray_commands"] if "ray start" in command)
        for kind in ("head", "worker")
    }


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    validate_config(cluster)
    with pytest.raises(jsonschema.ValidationError):
        validate_config(cluster | {"unknown_key": 1})


def test_on_aws_the_head_has_the_learner_and_rollout_nodes_come_and_go() -> None:
    cluster = as_ray_sees(FILE)
    types = cluster["available_node_types"]
    head = types.pop(cluster["head_node_type"])
    assert head["resources"]["GPU"] >= 1
    assert head["resources"]["learner"] == 1
    assert "service.learner_resource=learner" in FILE.read_text(), "the header names the resource it uses"
    for rollout in types.values():
        assert set(rollout["resources"]) == {"CPU"}, "rollout nodes are CPU-only"
        assert rollout["min_workers"] == 0
        assert 0 < rollout["max_workers"] <= cluster["max_workers"]
        assert rollout["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"], "the head is the run"
    assert cluster["idle_timeout_minutes"] > 0


def test_of_ones_own_machines_all_are_used_and_the_head_has_the_learner() -> None:
    cluster = as_ray_sees(FILES[1])
    (kind,) = cluster["available_node_types"].values()
    assert (
        kind["min_workers"] == kind["max_workers"] == cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    )
    head = shlex.split(ray_starts(cluster)["head"])
    assert '--resources={"learner":1}' in head
    assert "RAY_enable_autoscaler_v2=0" in head, "the second one starts no workers there"
    assert "service.learner_resource=learner" in FILES[1].read_text()
    assert not any("sudo" in command for command in cluster["setup_commands"])


def test_both_kinds_of_cluster_are_set_up_and_started_alike() -> None:
    aws, own = map(as_ray_sees, FILES)
    home = {remote.replace("/home/ubuntu/", "~/"): local for remote, local in aws["file_mounts"].items()}
    assert home == own["file_mounts"]
    assert [command for command in aws["setup_commands"] if "sudo" not in command] == own["setup_commands"]
    assert ray_starts(aws)["worker"] == ray_starts(own)["worker"]


def test_nothing_is_open_to_the_world(cluster: dict[str, Any]) -> None:
    text = yaml.safe_dump(cluster)
    assert "0.0.0.0" not in text, "Ray's defaults bind the dashboard there"
    assert "::/0" not in text
    assert "IpPermissions" not in text, "no ports beside the security group's own"
    options = shlex.split(ray_starts(cluster)["head"])
    assert "--dashboard-host=127.0.0.1" in options
    assert "--disable-usage-stats" in options
    assert not any(option.startswith("--node-ip-address") for option in options)


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_ray_starts_with_token_authentication(cluster: dict[str, Any], kind: str) -> None:
    before, _, _ = ray_starts(cluster)[kind].partition("ray start")
    assert "RAY_AUTH_MODE=token" in before
    (token,) = (remote for remote, local in cluster["file_mounts"].items() if local == "~/.ray/auth_token")
    assert token in ("/home/ubuntu/.ray/auth_token", "~/.ray/auth_token")
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"]


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_every_option_of_ray_start_exists(cluster: dict[str, Any], kind: str) -> None:
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    words = shlex.split(ray_starts(cluster)[kind].partition("ray start")[2])
    assert {word.partition("=")[0] for word in words} <= known


def test_nodes_are_set_up_as_a_laptop_is_with_every_package(cluster: dict[str, Any]) -> None:
    mounts = {local.removeprefix("./") for local in cluster["file_mounts"].values()}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks", "tests"}
    assert packages <= mounts
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"Makefile", "pyproject.toml", project["readme"], *project["license-files"]} <= mounts
    assert {path.name for path in ROOT.glob("requirements*.lock")} <= mounts
    (setup,) = (
        command
        for command in cluster["setup_commands"]
        if "mneme" in command and "bashrc" not in command and "pip" not in command
    )
    assert shlex.split(setup)[:4] == ["make", "-C", "~/mneme", "setup"]
    assert not any("pip install" in command for command in cluster["setup_commands"]), "two lists would part"
