"""Traces by OpenTelemetry, for those who installed `cupola-agent[otel]` and named an endpoint (contract section 1.7).

Without an endpoint nothing of OpenTelemetry is imported. The exporter reads its own variables (`OTEL_EXPORTER_OTLP_*`),
and so does the sampler.
"""

import logging
from collections.abc import Mapping

from cupola_agent.exchange import Application

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_MODES = ("background", "async", "sync")

logger = logging.getLogger("cupola_agent.telemetry")


def instrumented(application: Application, variables: Mapping[str, str]) -> Application:
    """The application with a span around each call, or the application itself where telemetry is not asked for.

    Raises ValueError for a setting that makes no sense.
    """
    mode = variables.get("AGENTSERVER_FLUSH_MODE") or "background"
    if mode not in _FLUSH_MODES:
        raise ValueError(f"AGENTSERVER_FLUSH_MODE must be background, async or sync, not {mode!r}")
    if not any(variables.get(name) for name in ENDPOINTS):
        return application
    protocol = variables.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or variables.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", "http/protobuf"):
        logger.warning("no traces are sent: the protocol is %s, and only http/protobuf is spoken", protocol)
        return application
    try:
        from cupola_agent.traces import TracedApplication, provider
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("opentelemetry"):
            raise
        logger.warning("no traces are sent: install cupola-agent[otel]")
        return application
    return TracedApplication(application, provider(variables), mode)
