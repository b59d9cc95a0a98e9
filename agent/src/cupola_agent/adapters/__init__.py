"""Handlers of responses that run agents of other frameworks, each an extra of its own.

Each module has one function, `handler`, which takes the framework's agent and gives what `agent.responses` registers.
"""
