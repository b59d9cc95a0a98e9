"""The agent of the benchmark on azure-ai-agentserver-responses: python -m benchmarks.protocol_agents.reference [lean]

`lean` is without telemetry and access log, with warnings only and responses in memory.
"""

import sys

from azure.ai.agentserver.responses import InMemoryResponseProvider, ResponsesAgentServerHost, TextResponse

from benchmarks.protocol_agents.work import words

if "lean" in sys.argv:
    app = ResponsesAgentServerHost(
        configure_observability=None, access_log=None, log_level="WARNING", store=InMemoryResponseProvider()
    )
else:
    app = ResponsesAgentServerHost()


@app.response_handler
async def reply(request, context, cancellation_signal):
    return TextResponse(context, request, text=words(await context.get_input_text()))


if __name__ == "__main__":
    app.run()
