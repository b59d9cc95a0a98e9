"""An agent of Pydantic AI that knows the weather."""

import os

from cupola_agent import Agent
from cupola_agent.adapters.pydantic_ai import handler
from cupola_agent.client import client
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIResponsesModel(os.environ.get("MODEL", "gpt-5-mini"), provider=OpenAIProvider(openai_client=client()))
weather = PydanticAgent(model, instructions="You talk about the weather.", name="weather")


@weather.tool_plain
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


agent = Agent()
agent.responses(handler(weather))

if __name__ == "__main__":
    agent.run()
