"""A graph of LangGraph that knows the weather."""

import os
from typing import Any

from cupola_agent import Agent
from cupola_agent.adapters.langgraph import handler
from cupola_agent.client import client
from langchain_core.messages import SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


tools = [get_weather]
model = ChatOpenAI(
    model=os.environ.get("MODEL", "gpt-5-mini"),
    root_async_client=client(),
    async_client=client().chat.completions,
    stream_usage=True,
).bind_tools(tools)


async def answer(state: MessagesState) -> dict[str, Any]:
    instructions = SystemMessage("You talk about the weather.")
    return {"messages": [await model.ainvoke([instructions, *state["messages"]])]}


builder = StateGraph(MessagesState)
builder.add_node("answer", answer)
builder.add_node("tools", ToolNode(tools))
builder.add_edge(START, "answer")
builder.add_conditional_edges("answer", tools_condition)
builder.add_edge("tools", "answer")

agent = Agent()
agent.responses(handler(builder.compile()))

if __name__ == "__main__":
    agent.run()
