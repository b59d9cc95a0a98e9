"""The Invocations protocol over HTTP and WebSocket (contract section 5): the handler decides what the answer is."""

from cupola_agent.invocations.routes import Invocations

__all__ = ["Invocations"]
