"""Traces (contract section 1.7), as a collector sees them."""

import http.client
import http.server
import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

StartAgent = Callable[..., Any]

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
AGENT = """
from cupola_agent import Agent
agent = Agent()

@agent.responses
def reply(input):
    from opentelemetry import baggage, trace
    with trace.get_tracer("own").start_as_current_span("inner", attributes={"gen_ai.agent.name": "false"}):
        return f"{baggage.get_baggage('who')} {baggage.get_baggage('x_request_id')}"
"""


class Collector:
    """Receives OTLP over HTTP and keeps the spans."""

    def __init__(self) -> None:
        self.spans: queue.Queue[tuple[dict[str, Any], Any]] = queue.Queue()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in sent.resource_spans:
                    for scope in resource.scope_spans:
                        for span in scope.spans:
                            collector.spans.put((attributes(resource.resource), span))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


def attributes(thing: Any) -> dict[str, Any]:
    return {item.key: item.value.string_value or item.value.int_value for item in thing.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.mark.parametrize("mode", ["background", "async"])
def test_each_request_is_a_span_below_the_callers(start_agent: StartAgent, collector: Collector, mode: str) -> None:
    agent = start_agent(
        AGENT,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        AGENTSERVER_FLUSH_MODE=mode,
        FOUNDRY_AGENT_NAME="namer",
        FOUNDRY_AGENT_VERSION="7",
        FOUNDRY_PROJECT_ARM_ID="arm",
    )
    headers = {
        "content-type": "application/json",
        "traceparent": f"00-{TRACE}-{PARENT}-01",
        "baggage": "who=me",
        "x-request-id": "mine",
    }
    with closing(http.client.HTTPConnection("127.0.0.1", agent.port, timeout=10)) as connection:
        connection.request("POST", "/responses", json.dumps({"input": "x", "store": False}), headers)
        answer = connection.getresponse()
        body = json.load(answer)
        assert answer.headers["x-request-id"] == TRACE
    assert body["output"][0]["content"][0]["text"] == "me mine"
    found: dict[str, Any] = {}
    while {"inner", "POST /responses"} - found.keys():
        resource, span = collector.spans.get(timeout=10)
        assert resource["service.name"] == "namer"
        found[span.name] = span
    server, inner = found["POST /responses"], found["inner"]
    assert server.trace_id.hex() == inner.trace_id.hex() == TRACE
    assert (server.parent_span_id.hex(), inner.parent_span_id) == (PARENT, server.span_id)
    seen = attributes(server)
    assert seen["http.response.status_code"] == 200
    assert seen["gen_ai.response.id"] == body["id"]
    assert seen["microsoft.foundry.project.id"] == "arm"
    assert seen["gen_ai.agent.id"] == "namer:7"
    assert attributes(inner)["gen_ai.agent.name"] == "namer"


def test_what_is_left_is_sent_at_the_end(start_agent: StartAgent, collector: Collector) -> None:
    agent = start_agent(AGENT, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    agent.process.terminate()
    assert agent.process.wait(20) == 0
    names = {collector.spans.get(timeout=10)[1].name}
    assert names == {"GET /readiness"}


def test_a_protocol_that_is_not_spoken_is_said(start_agent: StartAgent) -> None:
    agent = start_agent(AGENT, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    agent.process.terminate()
    _, errors = agent.process.communicate(timeout=20)
    assert "no traces are sent: the protocol is grpc, and only http/protobuf is spoken" in errors
