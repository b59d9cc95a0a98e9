"""A span around each call, below the caller's, sent by OTLP over HTTP. The only module that imports OpenTelemetry."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import baggage, context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from cupola_agent.exchange import Application, Exchange, Socket
from cupola_agent.logs import log_fields
from cupola_agent.server.http_exchange import HttpExchange

FLUSH_MILLISECONDS = 5000
_CALL_ATTRIBUTES = {
    "session_id": ("microsoft.session.id",),
    "conversation_id": ("gen_ai.conversation.id", "azure.ai.agentserver.responses.conversation_id"),
    "response_id": ("gen_ai.response.id", "azure.ai.agentserver.responses.response_id"),
    "streaming": ("azure.ai.agentserver.responses.streaming",),
    "invocation_id": ("azure.ai.agentserver.invocations.invocation_id",),
}
"""What a span takes from the fields of the call."""


def provider(variables: Mapping[str, str]) -> TracerProvider:
    """The developer's own, or else a new one that sends to the endpoint."""
    current = trace.get_tracer_provider()
    if not isinstance(current, TracerProvider):
        name = variables.get("OTEL_SERVICE_NAME") or variables.get("FOUNDRY_AGENT_NAME") or "azure.ai.agentserver"
        current = TracerProvider(resource=Resource.create({"service.name": name}))
        current.add_span_processor(_Attributes(variables))
        current.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(current)
    else:
        current.add_span_processor(_Attributes(variables))
    return current


class _Attributes(SpanProcessor):
    """On every span, also the developer's; those of the agent again at the end, so that nothing overwrites them."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        name, version = variables.get("FOUNDRY_AGENT_NAME", ""), variables.get("FOUNDRY_AGENT_VERSION", "")
        agent = {
            "gen_ai.agent.name": name,
            "gen_ai.agent.version": version,
            "gen_ai.agent.id": variables.get("FOUNDRY_AGENT_INSTANCE_CLIENT_ID")
            or (f"{name}:{version}" if name and version else ""),
            "microsoft.a365.agent.blueprint.id": variables.get("FOUNDRY_AGENT_BLUEPRINT_CLIENT_ID", ""),
            "microsoft.tenant.id": variables.get("FOUNDRY_AGENT_TENANT_ID", ""),
        }
        place = {
            "microsoft.foundry.project.id": variables.get("FOUNDRY_PROJECT_ARM_ID", ""),
            "microsoft.session.id": variables.get("FOUNDRY_AGENT_SESSION_ID", ""),
        }
        self._agent = {key: value for key, value in agent.items() if value}
        self._place = {key: value for key, value in place.items() if value}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attributes({**self._place, **self._agent, **call_attributes()})

    def _on_ending(self, span: Span) -> None:
        span.set_attributes(self._agent)


def call_attributes() -> dict[str, str]:
    fields = log_fields()
    return {
        attribute: fields[field]
        for field, attributes in _CALL_ATTRIBUTES.items()
        if fields.get(field)
        for attribute in attributes
    }


class TracedApplication:
    """Implements `exchange.Application`: the caller's trace context and a span around each call of another one."""

    def __init__(self, application: Application, provider: TracerProvider, flush_mode: str) -> None:
        self._application = application
        self._provider = provider
        self._tracer = provider.get_tracer("cupola_agent")
        self._awaits_flush = flush_mode != "background"
        self._flushing: asyncio.Task[None] | None = None
        self._flush_again = False

    async def start(self) -> None:
        await self._application.start()

    def drain(self) -> None:
        self._application.drain()

    async def stop(self) -> None:
        await self._application.stop()
        if self._flushing is not None:
            await self._flushing
        await asyncio.to_thread(self._provider.shutdown)

    async def answer(self, exchange: Exchange) -> None:
        with self._span(exchange.method, exchange) as span:
            await self._application.answer(exchange)
            if isinstance(exchange, HttpExchange):
                self._finish(span, exchange.status)
        await self._flush()

    async def talk(self, socket: Socket) -> None:
        with self._span("WEBSOCKET", socket) as span:
            await self._application.talk(socket)
            span.set_attributes(call_attributes())
        await self._flush()

    @contextmanager
    def _span(self, verb: str, call: Exchange | Socket) -> Iterator[trace.Span]:
        parent = propagate.extract(call.headers)
        request_id = call.headers.get("x-request-id")
        if request_id:
            parent = baggage.set_baggage("x_request_id", request_id, parent)
        token = context.attach(parent)
        try:
            with self._tracer.start_as_current_span(
                # The first segment only: names of spans are to be few.
                f"{verb} /{call.path.split('/')[1] if '/' in call.path else ''}",
                kind=SpanKind.SERVER,
                attributes={
                    "http.request.method": getattr(call, "method", "GET"),
                    "url.path": call.path,
                    "gen_ai.provider.name": "AzureAI Hosted Agents",
                    "gen_ai.operation.name": "invoke_agent",
                },
            ) as span:
                yield span
        finally:
            context.detach(token)

    def _finish(self, span: trace.Span, status: int) -> None:
        span.set_attributes(call_attributes())
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(StatusCode.ERROR)

    async def _flush(self) -> None:
        """So that a sandbox may be frozen right after an answer; one flush at a time serves all who wait for it."""
        self._flush_again = True
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush_until_done())
        if self._awaits_flush:
            await asyncio.shield(self._flushing)

    async def _flush_until_done(self) -> None:
        while self._flush_again:
            self._flush_again = False
            await asyncio.to_thread(self._provider.force_flush, FLUSH_MILLISECONDS)
