"""Several hosts on one machine: Linux namespaces with a network, processes, a /tmp/ray and a /dev/shm each.

    with Network(folder, ["head", "node"]) as network:
        head, node = network["head"], network["node"]
        head.run("ping", "-c1", node.address)
        node.unplug()               # its cable is pulled; plug() puts it back
        node.kill()                 # the power goes

Files are shared, `HOME` is not. `start_ray` starts a Ray node on a host, `ray_environment` is what its clients need.
Nothing outlives the network: its hosts end with the process that made them, however that ends, and namespaces, veth
pairs and mounts end with the hosts. Needs root, unshare, nsenter and ip; `unavailable` says what is missing.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import pytest

SUBNET = "10.77.0"
RAY = Path(sys.executable).with_name("ray")
PORT = 6379  # of a head
OBJECT_STORE = 200_000_000  # bytes on each node

_UNSHARE = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
_INIT = """
set -e
mkdir -p /tmp/ray "$1"
mount --bind "$1" /tmp/ray
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
echo ready
while read -r _; do :; done
"""  # bash reaps what is orphaned, and ends with the process that holds the other end of its input
_ACTORS = """
import json
import ray
from ray.util.state import list_actors
ray.init(address="auto", log_to_driver=False)
address = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
print(json.dumps([(actor.class_name, address.get(actor.node_id)) for actor in list_actors(limit=1000)]))
"""


class Host:
    """One host; `Network` makes it.

    Attributes:
        name: what it is called.
        address: its IPv4 address, which the other hosts reach.
        home: its HOME, a folder of its own.
    """

    def __init__(self, name: str, address: str, home: Path) -> None:
        self.name, self.address, self.home = name, address, home
        home.mkdir(parents=True, mode=0o700)
        self._init = subprocess.Popen(
            [*_UNSHARE, "bash", "-c", _INIT, "init", str(home / ".tmp-ray")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self._init.stdout is not None
        said = self._init.stdout.readline()
        assert said == "ready\n", said + self._init.stdout.read()
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text()
        self.pid = int(children)  # of its first process, as seen from outside

    def command(self, *words: str | Path) -> list[str]:
        """What to run outside, to have these words run on the host."""
        return ["nsenter", f"--target={self.pid}", "--net", "--pid", "--mount", "--wd=.", "--", *map(str, words)]

    def environment(self, extra: dict[str, str] | None = None) -> dict[str, str]:
        """The variables of a process on the host: this process's, without Ray's, and its own HOME."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return own | {"HOME": str(self.home)} | (extra or {})

    def run(
        self,
        *words: str | Path,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        check: bool = True,
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end; `env` is added to its variables."""
        done = subprocess.run(
            self.command(*words), env=self.environment(env), cwd=cwd or self.home, capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words} on {self.name}:\n{done.stdout}{done.stderr}"
        return done

    def start(
        self, *words: str | Path, log: Path, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command on the host, as a group of processes that goes on by itself; what it says goes to `log`."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.command(*words), env=self.environment(env), cwd=cwd or self.home, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def unplug(self) -> None:
        """Cut its link; its processes go on."""
        self.run("ip", "link", "set", "eth0", "down")

    def plug(self) -> None:
        """Restore its link, and the route that goes with it."""
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "replace", "default", "via", f"{SUBNET}.254")

    def processes(self) -> list[str]:
        """The command lines of what runs on it, its first process and this question left out."""
        lines = self.run("ps", "-eo", "pid=,args=").stdout.splitlines()
        return [line.split(None, 1)[1] for line in lines if line.split()[0] != "1" and "ps -eo" not in line]

    def kill(self) -> None:
        """End all its processes at once, and with them its namespaces."""
        if self._init.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self._init.wait()


class Network:
    """Hosts on one switch, addressed 10.77.0.1 and so on in the order of their names.

    The switch is a namespace, too: this machine's own network is not touched, and two networks do not meet.

    Args:
        folder: where the hosts' homes lie.
        names: of the hosts.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names
        self._hosts: dict[str, Host] = {}
        self._stack = ExitStack()

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __enter__(self) -> "Network":
        with ExitStack() as stack:
            switch = Host("switch", f"{SUBNET}.254", self._folder / "switch")
            stack.callback(switch.kill)
            switch.run("ip", "link", "add", "br0", "type", "bridge")
            switch.run("ip", "address", "add", f"{switch.address}/24", "dev", "br0")
            switch.run("ip", "link", "set", "br0", "up")
            for i, name in enumerate(self._names, 1):
                host = self._hosts[name] = Host(name, f"{SUBNET}.{i}", self._folder / name)
                stack.callback(host.kill)
                pair = ["ip", "link", "add", f"v{i}", "type", "veth", "peer", "name", "eth0", "netns", str(host.pid)]
                _of_the_switch(switch, *pair)
                switch.run("ip", "link", "set", f"v{i}", "master", "br0", "up")
                host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
                host.plug()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _of_the_switch(switch: Host, *words: str) -> None:
    """Run a command in the switch's network alone, where the other hosts' process numbers are still known."""
    subprocess.run(["nsenter", f"--target={switch.pid}", "--net", "--", *words], check=True)


@cache
def unavailable() -> str | None:
    """Why hosts cannot be made on this machine; None if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    missing = [name for name in ("unshare", "nsenter", "ip", "bash", "ps") if shutil.which(name) is None]
    if missing:
        return f"network namespaces need {', '.join(missing)}"
    tried = subprocess.run(
        [*_UNSHARE, "ip", "link", "add", "br0", "type", "bridge"],
        capture_output=True, text=True,
    )  # fmt: skip
    return f"network namespaces cannot be made here: {tried.stderr.strip()}" if tried.returncode else None


@contextmanager
def hosts(folder: Path, *names: str) -> Iterator[Network]:
    """A network of hosts, or the test is skipped, saying why."""
    if reason := unavailable():
        pytest.skip(reason)
    with Network(folder, names) as network:
        yield network


def ray_environment(folder: Path) -> dict[str, str]:
    """The variables of every Ray process and client of one cluster: token authentication, with a token in `folder`."""
    token = folder / "auth_token"
    if not token.exists():
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
    }


def start_ray(
    host: Host, environment: dict[str, str], *, head: Host | None = None, cpus: int = 1, resources: str = "{}"
) -> None:
    """Start a Ray node on a host: a head, its job server on its own loopback, or one that joins `head`."""
    role = (
        ["--head", f"--port={PORT}", "--dashboard-host=127.0.0.1"]
        if head is None
        else [f"--address={head.address}:{PORT}"]
    )
    host.run(
        RAY, "start", *role, f"--node-ip-address={host.address}", f"--num-cpus={cpus}", f"--resources={resources}",
        f"--object-store-memory={OBJECT_STORE}", "--disable-usage-stats", env=environment,
    )  # fmt: skip


def places_of_actors(head: Host, environment: dict[str, str]) -> dict[str, set[str]]:
    """The addresses of the hosts on which actors of each class are or, if they have ended, were; asked of a head."""
    said = head.run(sys.executable, "-c", _ACTORS, env=environment).stdout.splitlines()[-1]
    places: dict[str, set[str]] = {}
    for kind, address in json.loads(said):
        places.setdefault(kind, set()).add(address)
    return places
