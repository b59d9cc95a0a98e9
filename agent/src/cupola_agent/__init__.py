"""Serve an agent in a container by the OpenAI Responses and Invocations protocols."""

from typing import TYPE_CHECKING, Any

from cupola_agent.app import Agent
from cupola_agent.context import CallContext, InvocationContext, ResponseContext
from cupola_agent.exchange import SocketClosedError
from cupola_agent.http import Request, Response
from cupola_agent.responses.objects import ResponseRequest

if TYPE_CHECKING:
    from cupola_agent.invocations.socket import WebSocket
    from cupola_agent.responses.stream import ResponseStream

__version__ = "0.1.0"
__all__ = [
    "Agent",
    "CallContext",
    "InvocationContext",
    "Request",
    "Response",
    "ResponseContext",
    "ResponseRequest",
    "ResponseStream",
    "SocketClosedError",
    "WebSocket",
    "__version__",
    "run",
]


def run(app: Any, host: str = "0.0.0.0", port: int | None = None) -> None:  # noqa: S104
    """Serves an Agent, or any ASGI app such as one that mounts an Agent, until SIGTERM or SIGINT: see `Agent.run`."""
    from cupola_agent.server.process import run as run_process

    run_process(app, host, port)


def __getattr__(name: str) -> Any:
    if name == "ResponseStream":
        from cupola_agent.responses.stream import ResponseStream

        return ResponseStream
    if name == "WebSocket":
        from cupola_agent.invocations.socket import WebSocket

        return WebSocket
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
