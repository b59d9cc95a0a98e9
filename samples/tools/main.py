"""Asks the caller for the weather, by a function call, and goes on with what the caller says."""

import json
import re
from collections.abc import Iterator

from cupola_agent import Agent, ResponseContext, items

agent = Agent()


@agent.responses
def reply(input: str, context: ResponseContext) -> Iterator[str | items.FunctionCall]:  # noqa: A002
    outputs = [item["output"] for item in context.input_items if item["type"] == "function_call_output"]
    if outputs:
        weather = [json.loads(output) for output in outputs]
        yield "\n".join(f"It is {each['degrees']} degrees in {each['city']}." for each in weather)
        return
    cities = re.findall(r"\b(?:in|and) ([A-Z]\w+)", input)
    if not cities:
        yield "Which city?"
    for city in cities:
        yield items.FunctionCall("get_weather", {"city": city})


if __name__ == "__main__":
    agent.run()
