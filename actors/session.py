"""This process's session with Ray: joined where a cluster runs, or started as its child; whoever calls sets the environment first."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from actors import environment
from qedge.config import Settings
from qedge.errors import AddressUnreachable, Failed, InvalidConfig

NAMESPACE = "qedge"


def join(address: str, timeout_s: float) -> str:
    """Connect this process to the Ray at HOST:PORT, or the machine's ("auto"); its address.

    Raises:
        AddressUnreachable: nothing that speaks Ray answers there in `timeout_s`, or it refuses our token.
        InvalidConfig: an address that is not HOST:PORT.
    """
    import ray

    address = _resolved(address)
    if not environment.ask_alive(address, _token(), timeout_s):
        raise AddressUnreachable(f"no Ray answers at {address}", address=address)
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise AddressUnreachable(f"the Ray at {address} does not take us: {error}", address=address) from None
    return str(ray.get_runtime_context().gcs_address)


def start(settings: Settings, folder: Path) -> str:
    """Start Ray as the child of this process and connect to it; its address.

    Raises:
        Failed: it did not come up.
    """
    import ray

    _token()
    try:
        ray.init(
            address="local",
            namespace=NAMESPACE,
            num_cpus=settings.cluster.cpus or os.cpu_count(),
            object_store_memory=settings.cluster.object_store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
        )
    except Exception as error:  # what Ray raises, and no narrower, when a node does not come up
        raise Failed(f"Ray did not start: {error}") from error
    return str(ray.get_runtime_context().gcs_address)


def _resolved(address: str) -> str:
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address_or_die

        try:
            return str(canonicalize_bootstrap_address_or_die(address))
        except ConnectionError:
            raise AddressUnreachable("no Ray is running on this machine", address=address) from None
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidConfig(f"the Ray address is '{address}'; expected HOST:PORT of a cluster this machine is part of", given=address)
    return address


def _token() -> str | None:
    """The token Ray will present, read anew: it keeps that of the first cluster this process spoke to."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    if not loader.has_token(ignore_auth_mode=True):
        return None
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    Config.initialize("")
    loader.reset_cache()
    return str(loader.get_raw_token())
