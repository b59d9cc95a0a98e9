"""Runs an agent as a process: listen, serve, stop when told to (contract sections 1.1 and 1.4)."""

import logging
import os
import signal
import socket
import sys
import threading
from importlib.util import find_spec
from io import TextIOWrapper
from typing import NoReturn

from cupola_agent.app import Agent
from cupola_agent.environment import checked_port, read_grace_seconds, read_port
from cupola_agent.logs import configure_logging
from cupola_agent.version import server_identity

logger = logging.getLogger("cupola_agent")


def serve(agent: Agent, host: str, port: int | None) -> None:
    """Serves until SIGTERM or SIGINT. Raises SystemExit(1) when it cannot listen there."""
    configure_logging(as_json=agent.environment.hosted)
    if isinstance(sys.stdout, TextIOWrapper):
        # A developer's print should be in the container's log at once, too.
        sys.stdout.reconfigure(line_buffering=True)
    try:
        port = read_port(os.environ) if port is None else checked_port(port, "port")
        grace = read_grace_seconds(os.environ)
    except ValueError as error:
        _give_up(str(error))
    try:
        listener = _bound(host, port)
    except OSError as error:
        _give_up(f"cannot listen on {host}:{port}: {error.strerror or error}")
    _run_server(agent, listener, grace)


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
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _run_server(agent: Agent, listener: socket.socket, grace: int) -> None:
    import uvicorn  # takes longer to import than everything else together, so after the checks

    config = uvicorn.Config(
        agent,
        loop="uvloop" if find_spec("uvloop") else "asyncio",
        http="httptools",
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=grace,
    )
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn raises the signal again once it has stopped; the default handlers would then end the process
    # with a signal instead of with code 0. This one also covers the moment before uvicorn sets its own.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
    host, port = listener.getsockname()[:2]
    logger.info("%s serves on %s:%d", server_identity(), host, port)
    server.run(sockets=[listener])
    logger.info("stopped")
