"""Ray Serve itself: its controller and the HTTP ingress in front of whatever is deployed."""

from __future__ import annotations

from qedge.config import Settings


def start_serve(settings: Settings) -> None:
    """Start Serve's controller and its ingress on the head, listening where the settings say; when it runs, do nothing."""
    from ray import serve
    from ray.serve.schema import LoggingConfig

    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": settings.serve.host, "port": settings.serve.port},
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
