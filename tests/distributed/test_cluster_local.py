"""cluster-local.yaml: `ray up` by SSH onto hosts in namespaces, a job on two of them, `ray down`, nothing is left."""

import json
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml

from tests.distributed.namespaces import RAY, Host, Network, hosts, places_of_actors, ray_environment

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
FILE = ROOT / "cluster-local.yaml"
JOB = [
    "python", "-m", "mneme", "train", "configs/delayed_cue.yaml", "env.kwargs.horizon=6", "rollout.num_envs=16",
    "rollout.num_workers=2", "train.total_timesteps=448", "train.evaluation_episodes=16", "tracking.enabled=false",
    "service.learner_resource=learner", "policy.controller.hidden_size=16", "name=run", "--retries", "1",
]  # fmt: skip


def derived(key: Path, head: Host, node: Host) -> dict[str, Any]:
    """The file with these machines written into it. They have what set-up installs, as they share this one's files."""
    cluster: dict[str, Any] = yaml.safe_load(FILE.read_text())
    cluster["provider"] |= {"head_ip": head.address, "worker_ips": [node.address]}
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    cluster["min_workers"] = cluster["max_workers"] = 1
    cluster["setup_commands"] = [
        f"ln -sfn {sys.prefix} ~/mneme/.venv" if command.startswith("make ") else command
        for command in cluster["setup_commands"]
    ]
    for kind, few in (("head", "--num-cpus=0"), ("worker", "--num-cpus=2")):
        commands = cluster[f"{kind}_start_ray_commands"]
        commands[-1] += f" {few} --object-store-memory=200000000"
    return cluster


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """A laptop, a head and a node; the latter two with an SSH server."""
    sockets = set(Path("/tmp").glob("ray_ssh_*"))
    with hosts(tmp_path / "hosts", "laptop", "head", "node") as network:
        keys = {name: tmp_path / name for name in ("host_key", "key")}
        for path in keys.values():
            path.touch(mode=0o600)
            path.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
        (tmp_path / "key.pub").write_bytes(asyncssh.read_private_key(keys["key"]).export_public_key())
        machines = [network[name] for name in ("laptop", "head", "node")]
        bin = tmp_path / "bin"
        bin.mkdir()
        (bin / "rsync").write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "rsync_shim.py"} "$@"\n')
        # To ssh, ~ is the home of the user as this machine knows it, and not HOME.
        (bin / "ssh").write_text('#!/bin/bash\nexec /usr/bin/ssh "${@/#\\~/$HOME}"\n')
        for program in bin.iterdir():
            program.chmod(0o755)
        for machine in machines:
            # A login shell begins with a PATH of its own.
            (machine.home / ".bashrc").write_text(f"export PATH={bin}:$PATH HOMES='{homes(network)}'\n")
            if machine is not network["laptop"]:
                machine.start(
                    sys.executable, HERE / "ssh_server.py", keys["host_key"], tmp_path / "key.pub",
                    log=tmp_path / "ssh.log",
                )  # fmt: skip
        yield network
    for made in set(Path("/tmp").glob("ray_ssh_*")) - sockets:
        shutil.rmtree(made)


def homes(network: Network) -> str:
    """What the shim for rsync needs to know."""
    return json.dumps({host.address: str(host.home) for host in (network["head"], network["node"])})


def await_the_end_of_ray(machine: Host) -> None:
    """Wait until nothing runs on a machine but its SSH server."""
    for _ in range(120):
        left = [line for line in machine.processes() if "ssh_server.py" not in line]
        if not left:
            return
        time.sleep(0.5)
    raise AssertionError(left)


def dashboards(machine: Host) -> set[str]:
    """The addresses at which a dashboard, and the job server with it, listens."""
    local = [line.split()[3] for line in machine.run("ss", "-Hltn").stdout.splitlines()]
    return {address.rpartition(":")[0] for address in local if address.endswith(":8265")}


def test_machines_of_ones_own_become_a_cluster_and_are_left_as_they_were(network: Network, tmp_path: Path) -> None:
    laptop, head, node = network["laptop"], network["head"], network["node"]
    (laptop.home / ".ray").mkdir()
    token = ray_environment(laptop.home / ".ray")["RAY_AUTH_TOKEN_PATH"]
    path = f"{tmp_path / 'bin'}:{RAY.parent}:{os.environ['PATH']}"
    on_laptop = {"RAY_AUTH_MODE": "token", "HOMES": homes(network), "PATH": path}
    file = tmp_path / "cluster-local-derived.yaml"
    file.write_text(yaml.safe_dump(derived(tmp_path / "key", head, node)))

    laptop.run(RAY, "up", "-y", "--no-config-cache", file, env=on_laptop, cwd=ROOT, timeout=600)
    for machine in (head, node):
        copy = machine.home / ".ray" / "auth_token"
        while not copy.exists():  # the head's autoscaler sets the node up
            time.sleep(0.5)
        assert copy.read_text() == Path(token).read_text()
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert "succeeded" in job(laptop, on_laptop, file, tmp_path)
    on_head = {"RAY_AUTH_MODE": "token", "PATH": f"{RAY.parent}:{os.environ['PATH']}"}
    places = places_of_actors(head, on_head)
    assert (places["LearnerReplica"], places["RolloutWorker"]) == ({head.address}, {node.address})
    assert (tmp_path / "runs" / "run" / "checkpoints" / "step-000000000448").is_dir()
    assert dashboards(head) == {"127.0.0.1"}
    assert dashboards(node) == set()

    laptop.run(RAY, "down", "-y", file, env=on_laptop, cwd=ROOT, timeout=300)
    ssh = ["ssh", "-i", tmp_path / "key", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    laptop.run(*ssh, f"root@{node.address}", "~/mneme/.venv/bin/ray stop")
    for machine in (head, node):
        await_the_end_of_ray(machine)


def job(laptop: Host, variables: dict[str, str], file: Path, folder: Path) -> str:
    """Submit the job through the tunnel that the laptop keeps open; what it says."""
    project = folder / "project"
    ignored = shutil.ignore_patterns(".*", "runs", "*.egg-info", "__pycache__", "benchmarks", "docs", "tests")
    shutil.copytree(ROOT, project, symlinks=True, ignore=ignored)
    tunnel = laptop.start(RAY, "dashboard", file, log=folder / "tunnel.log", env=variables, cwd=ROOT)
    submit = [RAY, "job", "submit", "--address", "http://127.0.0.1:8265", "--working-dir", ".", "--", *JOB]
    try:
        for _ in range(30):  # until the tunnel and the job server answer
            done = laptop.run(
                *submit, f"checkpoint.root={folder / 'runs'}", env=variables, cwd=project, check=False, timeout=500
            )
            said = done.stdout + done.stderr
            if "Failed to connect" not in said and "No available agent" not in said:
                return said
            time.sleep(2)
        raise AssertionError(said)
    finally:
        os.killpg(tunnel.pid, signal.SIGTERM)
        tunnel.wait(60)
