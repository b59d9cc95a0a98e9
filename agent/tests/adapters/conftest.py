from agent.tests.model import model

__all__ = ["model"]
