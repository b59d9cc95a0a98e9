"""Serve an agent in a container by the OpenAI Responses and Invocations protocols."""

from cupola_agent.app import Agent
from cupola_agent.context import InvocationContext, ResponseContext
from cupola_agent.http import Request, Response

__version__ = "0.1.0"
__all__ = ["Agent", "InvocationContext", "Request", "Response", "ResponseContext", "__version__"]
