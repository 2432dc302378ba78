"""Hosts in namespaces are what tests take them for: apart, joined by a cable that can be pulled, gone afterwards."""

import sys
from pathlib import Path

from tests.distributed.namespaces import Network, hosts

KNOCK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 1), timeout=20)
except ConnectionRefusedError:
    print("reached")
except OSError:
    print("cut off")
"""


def knock(network: Network, one: str, other: str) -> str:
    return network[one].run(sys.executable, "-c", KNOCK, network[other].address).stdout.strip()


def test_a_cable_can_be_pulled_and_put_back(tmp_path: Path) -> None:
    with hosts(tmp_path, "head", "node") as network:
        assert knock(network, "node", "head") == "reached"
        network["node"].unplug()
        assert knock(network, "node", "head") == "cut off"
        network["node"].plug()
        assert knock(network, "node", "head") == "reached"
        assert knock(network, "head", "node") == "reached"


def test_hosts_share_files_and_nothing_else(tmp_path: Path) -> None:
    with hosts(tmp_path, "head", "node") as network:
        head, node = network["head"], network["node"]
        sleeping = head.start("sleep", "1000", log=tmp_path / "log")
        head.run("touch", "/tmp/ray/mark", "/dev/shm/mark", tmp_path / "mark")
        assert head.processes() == ["sleep 1000"]
        assert node.processes() == []
        assert node.run("ls", "/tmp/ray", "/dev/shm").stdout.split() == ["/dev/shm:", "/tmp/ray:"]
        assert (tmp_path / "mark").exists()
        assert node.run("sh", "-c", "echo ~").stdout.strip() == str(node.home)
        head.kill()
        assert sleeping.wait(20) != 0
    assert not Path(f"/proc/{node.pid}").exists()
    assert not Path("/dev/shm/mark").exists()
