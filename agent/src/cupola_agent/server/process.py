"""Runs an application as a process: listen, serve, stop when told to (contract sections 1.1 and 1.4)."""

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from typing import Any, NoReturn

from cupola_agent.environment import checked_port, read_grace_seconds, read_port
from cupola_agent.exchange import Application
from cupola_agent.logs import configure_logging
from cupola_agent.server.serve import Server, StartFailedError
from cupola_agent.telemetry import instrumented
from cupola_agent.version import server_identity

_KEEPALIVE_SECONDS = 60

logger = logging.getLogger("cupola_agent.server")


def run(application: Any, host: str = "0.0.0.0", port: int | None = None) -> None:  # noqa: S104
    """Serves an `Application`, such as an Agent, or any ASGI 3 app, until SIGTERM or SIGINT.

    It listens on `port`, else `PORT`, else 8088. Raises SystemExit(1), after an error in the log, when it cannot.
    """
    configure_logging(as_json=bool(os.environ.get("FOUNDRY_HOSTING_ENVIRONMENT")))
    if isinstance(sys.stdout, TextIOWrapper):
        # A developer's print should be in the container's log at once, too.
        sys.stdout.reconfigure(line_buffering=True)
    try:
        port = read_port(os.environ) if port is None else checked_port(port, "port")
        grace = read_grace_seconds(os.environ)
        ping = read_ping_seconds(os.environ)
        served = instrumented(_as_application(application), os.environ)
    except ValueError as error:
        _give_up(str(error))
    try:
        listener = _bound(host, port)
    except OSError as error:
        _give_up(f"cannot listen on {host}:{port}: {error.strerror or error}")
    server = Server(served, grace_seconds=grace, ping_seconds=ping)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(server, listener))
    except StartFailedError as error:
        _give_up(str(error))
    except OSError as error:
        _give_up(f"cannot listen on {host}:{port}: {error.strerror or error}")


def read_ping_seconds(variables: Mapping[str, str]) -> float:
    """Seconds between pings on WebSockets, 0 for none (contract section 2.1). Raises ValueError."""
    name = "WS_KEEPALIVE_INTERVAL"
    value = variables.get(name) or "0"
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{name} must be a number of seconds, 0 or more, not {value!r}")
    return seconds


async def _serve(server: Server, listener: socket.socket) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()

    def told() -> None:
        (hurry if stop.is_set() else stop).set()

    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told)
    await server.start([listener])
    host, port = listener.getsockname()[:2]
    logger.info("%s serves on %s:%d", server_identity(), host, port)
    await stop.wait()
    await server.stop(hurry)
    logger.info("stopped")


def _as_application(application: Any) -> Application:
    if isinstance(application, type) or not callable(getattr(application, "answer", None)):
        from cupola_agent.server.asgi_host import AsgiHost

        return AsgiHost(application)
    return application  # type: ignore[no-any-return]


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _give_up(message: str) -> NoReturn:
    logger.error(message)
    raise SystemExit(1)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the port but refuses connections until the server is ready for them."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's delay off on every connection.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit these: a peer whose machine died is noticed, though it never said so.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
