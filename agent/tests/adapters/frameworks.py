"""An agent in each framework, with the same two tools, on the same model. Imported where the frameworks are."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from samples.model_stub import ModelStub

Handler = Callable[..., Any]


@dataclass(frozen=True)
class Model:
    """The model, and the one client that all talk to it with, so that its connections can be closed."""

    url: str
    http: DefaultAsyncHttpxClient

    @property
    def client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.url, api_key="none", max_retries=0, http_client=self.http)


@asynccontextmanager
async def connected(stub: ModelStub) -> AsyncIterator[Model]:
    async with DefaultAsyncHttpxClient() as http:
        yield Model(stub.url, http)


def weather(city: str) -> str:
    return f"sunny in {city}"


def delete(name: str) -> str:
    return f"deleted {name}"


class Shelf:
    """What tools of the Agents SDK get as their context."""

    def delete(self, name: str) -> str:
        return delete(name)


def agent_framework(model: Model, models: Sequence[str] = ()) -> Handler:
    from agent_framework import Agent, tool
    from agent_framework.openai import OpenAIChatClient
    from cupola_agent.adapters.agent_framework import handler

    tools = [
        tool(weather, name="get_weather", approval_mode="never_require"),
        tool(delete, name="delete_file", approval_mode="always_require"),
    ]
    chat = OpenAIChatClient(model="stub", async_client=model.client)
    return handler(Agent(chat, "Be kind.", name="helper", tools=tools), models=models)


def openai_agents(model: Model, models: Sequence[str] = ()) -> Handler:
    from agents import Agent, MultiProvider, RunConfig, RunContextWrapper, function_tool
    from cupola_agent.adapters.openai_agents import handler

    def delete_from_shelf(context: RunContextWrapper[Shelf], name: str) -> str:
        shelf: Shelf = context.context
        return shelf.delete(name)

    tools = [
        function_tool(weather, name_override="get_weather"),
        function_tool(delete_from_shelf, name_override="delete_file", needs_approval=True),
    ]
    provider = MultiProvider(openai_client=model.client)
    config = RunConfig(model_provider=provider, tracing_disabled=True)
    agent = Agent(name="helper", instructions="Be kind.", model="stub", tools=tools)
    return handler(agent, context=Shelf(), run_config=config, models=models)


def pydantic_ai(model: Model, models: Sequence[str] = ()) -> Handler:
    from cupola_agent.adapters.pydantic_ai import handler
    from pydantic_ai import Agent, DeferredToolRequests, Tool
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    tools = [Tool(weather, name="get_weather"), Tool(delete, name="delete_file", requires_approval=True)]
    chat = OpenAIChatModel("stub", provider=OpenAIProvider(openai_client=model.client))
    return handler(Agent(chat, instructions="Be kind.", tools=tools, output_type=[str, DeferredToolRequests]))


def langgraph(model: Model, models: Sequence[str] = (), *, checkpointer: Any = None) -> Handler:
    from cupola_agent.adapters.langgraph import handler
    from langchain_core.messages import SystemMessage
    from langchain_core.runnables import RunnableConfig
    from langchain_core.tools import StructuredTool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition
    from langgraph.types import interrupt

    def delete_after_asking(name: str) -> str:
        return delete(name) if interrupt({"delete": name}) == "yes" else "kept"

    tools = [
        StructuredTool.from_function(weather, name="get_weather", description="weather"),
        StructuredTool.from_function(delete_after_asking, name="delete_file", description="deletes"),
    ]
    chat = ChatOpenAI(
        model="stub", base_url=model.url, api_key="none", stream_usage=True, max_retries=0, http_async_client=model.http
    )

    async def answer(state: Any, config: RunnableConfig) -> Any:
        asked = config["configurable"]
        named = {name: asked[name] for name in ("temperature", "model") if name in asked}
        messages = state["messages"]
        if checkpointer is not None and "instructions" in asked:
            messages = [SystemMessage(asked["instructions"]), *messages]
        return {"messages": [await chat.bind_tools(tools).ainvoke(messages, **named)]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_node("tools", ToolNode(tools))
    builder.add_edge(START, "answer")
    builder.add_conditional_edges("answer", tools_condition)
    builder.add_edge("tools", "answer")
    return handler(builder.compile(checkpointer=checkpointer), models=models)


def langgraph_that_remembers(model: Model, models: Sequence[str] = ()) -> Handler:
    from langgraph.checkpoint.memory import InMemorySaver

    return langgraph(model, models, checkpointer=InMemorySaver())
