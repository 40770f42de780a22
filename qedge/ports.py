"""Ports of this machine: whether one can be listened on, and some that can."""

from __future__ import annotations

import errno
import random
import socket
from contextlib import suppress

from qedge.errors import Failed, InvalidConfig, PortInUse

_SINGLE_PORTS = range(30000, 32768)
_TAKEN = {errno.EADDRINUSE, errno.EACCES}


def refuse_taken_port(host: str, port: int) -> None:
    """Check that this machine can listen on `host:port`.

    Raises:
        PortInUse: another process does, or the system keeps the port to itself.
        InvalidConfig: `host` is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno in _TAKEN:
            raise PortInUse(
                f"port {port} on {host} is taken ({error.strerror}); set serve.port (QEDGE_SERVE__PORT) to a free one", port=port
            ) from None
        raise InvalidConfig(f"serve.host '{host}' is no address of this machine: {error.strerror}", given=host) from None


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, for a server that binds them in a moment.

    Drawn from below those that Linux gives to connections (`ip_local_port_range`, from 32768 on): a port that the system names
    when asked for any may be some connection's own by the time that it is bound.

    Raises:
        Failed: there are not so many.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(_SINGLE_PORTS, len(_SINGLE_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise Failed(f"of the ports {_SINGLE_PORTS.start} to {_SINGLE_PORTS.stop - 1} only {len(found)} are free; {count} are needed")
