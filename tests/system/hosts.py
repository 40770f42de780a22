"""Hosts on one machine, reached over ssh: each has its own network, process and mount namespace, its own home and its own sshd.

Everything hangs on one process per host, the first of its process namespace: when that ends the kernel ends all others in it, so that
nothing is left and nothing else on the machine is touched.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

TOOLS = ("ip", "unshare", "mount", "ssh", "ssh-keygen", "rsync")
SSHD = "/usr/sbin/sshd"
# Ray stops by name what it sees, and keeps its files in /tmp/ray, /dev/shm and the user's home: a host sees only its own. What lies
# under the home and is needed all the same (Python, this checkout) is bound into the host's home first.
START = """
folder=$1 home=$2 sshd=$3; shift 3
hostname "$(basename "$folder")" || exit
for kept in "$@"; do mkdir -p "$folder/home${kept#"$home"}" && mount --bind "$kept" "$folder/home${kept#"$home"}" || exit; done
mount --bind "$folder/tmp-ray" /tmp/ray && mount -t tmpfs tmpfs /tmp/haproxy-serve && mount -t tmpfs tmpfs /dev/shm || exit
mount --rbind "$folder/home" "$home" || exit
exec "$sshd" -D -e -f "$folder/sshd_config"
"""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Host:
    """A host that answers ssh at `address`; `home` is its user's home as seen from outside, `namespace` that of its processes."""

    address: str
    home: Path
    namespace: str

    def processes(self, having: str) -> list[psutil.Process]:
        """What runs on the host with `having` in its command line."""
        found = []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):  # one that has ended meanwhile
                here = str(Path(f"/proc/{process.pid}/ns/pid").readlink()) == self.namespace
                if here and having in " ".join(process.cmdline()):
                    found.append(process)
        return found


@dataclass(frozen=True)
class Hosts:
    """The hosts and the private key that opens them, for the user `root`."""

    hosts: tuple[Host, ...]
    key: Path


def missing() -> str | None:
    """Why no hosts can be made here, or None."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    absent = [tool for tool in (*TOOLS, SSHD) if shutil.which(tool) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: openssh-server openssh-client rsync iproute2 util-linux)"
    probe = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True, check=False)
    return f"namespaces are not allowed here: {probe.stderr.strip()}" if probe.returncode else None


@contextmanager
def running(count: int, folder: Path) -> Iterator[Hosts]:
    """`count` hosts whose files lie in `folder`, torn down at the end whatever happens."""
    net, tag = _free_network(), f"qe{os.getpid() % 100_000}"
    key = folder / "id"
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    for place in ("/run/sshd", "/tmp/ray", "/tmp/haproxy-serve"):
        Path(place).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        _run("ip", "link", "add", tag, "type", "bridge")
        stack.callback(_run, "ip", "link", "del", tag)
        _run("ip", "address", "add", f"{net}.1/24", "dev", tag)
        _run("ip", "link", "set", tag, "up")
        hosts = tuple(stack.enter_context(_host(folder, key, tag, net, at)) for at in range(1, count + 1))
        yield Hosts(hosts, key)


@contextmanager
def _host(folder: Path, key: Path, bridge: str, net: str, at: int) -> Iterator[Host]:
    name, outer, address = f"{bridge}h{at}", f"{bridge}v{at}", f"{net}.{10 + at}"
    own = folder / f"h{at}"
    for part in ("home", "tmp-ray"):
        (own / part).mkdir(parents=True)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(own / "host_key"))
    options = {
        "ListenAddress": address,
        "HostKey": own / "host_key",
        "AuthorizedKeysFile": key.with_suffix(".pub"),
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
        "MaxStartups": "50",
        "MaxSessions": "50",
    }
    (own / "sshd_config").write_text("".join(f"{option} {value}\n" for option, value in options.items()), encoding="utf-8")
    with ExitStack() as stack:
        _run("ip", "netns", "add", name)
        stack.callback(_run, "ip", "netns", "del", name)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", outer, "master", bridge, "up")
        _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _run("ip", "-n", name, "link", "set", device, "up")
        inside = ["ip", "netns", "exec", name, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        log = stack.enter_context((own / "sshd.log").open("wb"))
        home = Path(pwd.getpwuid(os.getuid()).pw_dir)
        kept = [str(path) for path in (Path(sys.base_prefix), ROOT, Path(sys.prefix)) if path.is_relative_to(home)]
        start = ["sh", "-c", START, "sh", str(own), str(home), SSHD, *kept]
        process = subprocess.Popen([*inside, *start], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        stack.callback(_end, process)
        _wait_for(address, 22, process)
        yield Host(address, own / "home", str(Path(f"/proc/{process.pid}/ns/pid_for_children").readlink()))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # unshare --kill-child: the host's first process goes with it, and all others with that
    process.wait()


def _wait_for(address: str, port: int, process: subprocess.Popen[bytes], timeout_s: float = 30.0) -> None:
    until = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < until:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex((address, port)) == 0:
                return
        process.poll()
    raise RuntimeError(f"sshd at {address} did not start")


def _free_network() -> str:
    """The first of 10.77.0, 10.77.1, … that no interface and no route of this machine uses."""
    used = _run("ip", "-4", "-o", "address") + _run("ip", "-4", "route")
    return next(net for net in (f"10.77.{third}" for third in range(256)) if f"{net}." not in used)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
