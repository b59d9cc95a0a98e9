"""An agent of the Microsoft Agent Framework that knows the weather."""

import os

from agent_framework import Agent as FrameworkAgent
from agent_framework import tool
from agent_framework.openai import OpenAIChatClient
from cupola_agent import Agent
from cupola_agent.adapters.agent_framework import handler
from cupola_agent.client import client


@tool(approval_mode="never_require")
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


model = OpenAIChatClient(model=os.environ.get("MODEL", "gpt-5-mini"), async_client=client())
agent = Agent()
agent.responses(handler(FrameworkAgent(model, "You talk about the weather.", name="weather", tools=[get_weather])))

if __name__ == "__main__":
    agent.run()
