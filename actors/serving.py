"""Ray Serve itself: its controller and the HTTP ingress in front of whatever is deployed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from qedge.config import Settings
from qedge.ports import refuse_taken_port

if TYPE_CHECKING:
    from ray.serve.schema import LoggingConfig


def start_serve(settings: Settings) -> None:
    """Start Serve's controller and its ingress on the head node, listening where the settings say; when it runs, do nothing.

    Raises:
        PortInUse: the port is taken on this machine, and this machine is the head node; nothing was started.
    """
    import ray
    from ray import serve

    from actors.nodes import head_node

    if serve.status().proxies:
        return
    head = head_node()
    if head is None or head.address == ray.util.get_node_ip_address():
        refuse_taken_port(settings.serve.host, settings.serve.port)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": settings.serve.host, "port": settings.serve.port},
        logging_config=quiet(),
    )


def quiet() -> LoggingConfig:
    """Serve's logging as we want it: no line per request (they say who asked what), warnings and errors only; here as well."""
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    return LoggingConfig(enable_access_log=False, log_level="WARNING")
