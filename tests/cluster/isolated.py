"""Nodes that share nothing but a network: each has namespaces and writable folders of its own."""

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from tests.ray.several_nodes import ROOT, Nodes

WRITABLE = ("/tmp", "/dev/shm", "/root", "/run", "/var/tmp")
"""Folders that each node has of its own, in memory. It can write nowhere else."""
NEEDED = ("ip", "unshare", "nsenter", "mount")


def why_not() -> str:
    """Why there can be no such nodes here; empty where there can."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if os.geteuid() or missing:
        return f"namespaces need root and {', '.join(NEEDED)}"
    words = ["unshare", "-n", "-m", "-p", "-f", "ip", "link", "add", "probe", "type", "bridge"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else ""


class Network:
    """A bridge and network namespaces on it, which end with the `with` block."""

    def __init__(self) -> None:
        number = os.getpid() % 250
        self.name, self.subnet = f"recray{number}", f"10.213.{number}"
        self.gateway = f"{self.subnet}.1"
        self.spaces: list[str] = []

    def __enter__(self) -> "Network":
        _ip("link", "add", self.name, "type", "bridge")
        _ip("addr", "add", f"{self.gateway}/24", "dev", self.name)
        _ip("link", "set", self.name, "up")
        return self

    def add(self) -> tuple[str, str]:
        """Make a namespace; its name and its address."""
        number = len(self.spaces) + 1
        space, cable = f"{self.name}-{number}", f"{self.name}v{number}"
        _ip("netns", "add", space)
        self.spaces.append(space)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", cable, "master", self.name, "up")
        _ip("-n", space, "addr", "add", f"{self.subnet}.{number + 1}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")
        return space, f"{self.subnet}.{number + 1}"

    def __exit__(self, *_error: object) -> None:
        for space in self.spaces:
            _ip("netns", "del", space)
        _ip("link", "del", self.name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _script() -> str:
    """Lines of a shell that give it folders of its own, and then run its arguments.

    $0 is the address. The checkout and Python stay, to be read, also where they lie in a folder
    that is covered.
    """
    kept = sorted({str(ROOT), sys.prefix, sys.base_prefix})
    lines = ["set -e", "mount -t tmpfs tmpfs /mnt"]
    for number, path in enumerate(kept):
        lines += [f"mkdir /mnt/{number}", f"mount --bind '{path}' /mnt/{number}"]
    lines += [f"[ ! -d {path} ] || mount -t tmpfs tmpfs {path}" for path in WRITABLE]
    for number, path in enumerate(kept):
        lines += [f"[ -d '{path}' ] || mkdir -p '{path}'"]
        lines += [f"mount --bind /mnt/{number} '{path}'", f"mount -o remount,ro,bind '{path}'"]
    # Workers find each other by the name of the machine, which must not mean loopback.
    lines += ["hostname isolated", "printf '127.0.0.1 localhost\\n%s isolated\\n' $0 > /mnt/hosts"]
    lines += ["mount --bind /mnt/hosts /etc/hosts"]
    return "\n".join([*lines, "umount -R /mnt", "mount -o remount,ro,bind /", 'exec "$@"'])


class IsolatedNodes(Nodes):
    """A head and nodes of a cluster without a common disk.

    Args:
        network: Where they are.
        count: Nodes beside the head, which has no CPUs.
        cpus: CPUs of each.
        environment: Variables of the nodes, and of commands against them.
    """

    def __init__(self, network: Network, count: int, cpus: int = 1, **environment: str) -> None:
        super().__init__(count, cpus=cpus, **environment)
        self.network = network
        self.places = [network.add()]
        port = self.address.rpartition(":")[2]
        self.address = f"{self.places[0][1]}:{port}"
        self.dashboard = f"http://{self.places[0][1]}:{self.dashboard_port}"
        self.head.append("--dashboard-host=0.0.0.0")
        token = secrets.token_hex(32)
        (self.folder / "token").write_text(token)
        del self.environment["RAY_AUTH_TOKEN_PATH"]  # they do not see that folder
        self.environment |= {"RAY_AUTH_TOKEN": token, "TMPDIR": "/tmp"}

    def _start(self, options: list[str], before=()) -> subprocess.Popen:
        while len(self.places) <= len(self.running):
            self.places.append(self.network.add())
        space, address = self.places[len(self.running)]
        apart = ["ip", "netns", "exec", space, "unshare", "-m", "-u", "-p", "-f", "--mount-proc"]
        apart += ["--kill-child", "--propagation", "private", "bash", "-c", _script(), address]
        return super()._start([*options, f"--node-ip-address={address}"], [*apart, *before])

    def start(self, *arguments: object, stderr=subprocess.STDOUT) -> subprocess.Popen:
        """Start a command on the head."""
        return self.run_on(0, sys.executable, "-m", "recray", *map(str, arguments), stderr=stderr)

    def run_on(self, number: int, *words: str, stderr=subprocess.STDOUT) -> subprocess.Popen:
        """Start a program on a node, where the head is number 0."""
        pid = self.running[number].pid
        (inner,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return subprocess.Popen(
            ["nsenter", "-t", inner, "-n", "-m", "-u", "-p", f"--wd={ROOT}", *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
