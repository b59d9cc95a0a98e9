"""An agent of the OpenAI Agents SDK that knows the weather."""

import os

from agents import Agent as SdkAgent
from agents import OpenAIResponsesModel, function_tool
from cupola_agent import Agent
from cupola_agent.adapters.openai_agents import handler
from cupola_agent.client import client


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


model = OpenAIResponsesModel(os.environ.get("MODEL", "gpt-5-mini"), client())
weather = SdkAgent(name="weather", instructions="You talk about the weather.", model=model, tools=[get_weather])
agent = Agent()
agent.responses(handler(weather))

if __name__ == "__main__":
    agent.run()
