"""Every control-plane call of 2.10.0, and invocation at the agent's own endpoint. Argument: image."""

import asyncio
import os
import sys
import time

from azure.ai.projects import AIProjectClient
from azure.ai.projects.aio import AIProjectClient as AsyncClient
from azure.ai.projects.models import ContainerConfiguration, HostedAgentDefinition, ProtocolVersionRecord
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential
from azure.identity.aio import DefaultAzureCredential as AsyncCredential

image = sys.argv[1]
endpoint = os.environ["FOUNDRY_PROJECT_ENDPOINT"]
client = AIProjectClient(endpoint=endpoint, credential=DefaultAzureCredential())
definition = HostedAgentDefinition(
    cpu="0.5",
    memory="1Gi",
    protocol_versions=[ProtocolVersionRecord(protocol="responses", version="2.0.0")],
    container_configuration=ContainerConfiguration(image=image),
    environment_variables={"GREETING": "hi"},
)
name = "new-style"
version = client.agents.create_version(agent_name=name, definition=definition, metadata={"team": "a"}, description="d")
print("created:", version.name, version.version, version.status.value)
while version.status == "creating":
    time.sleep(0.05)
    version = client.agents.get_version(agent_name=name, agent_version=version.version)
print("status:", version.status.value, "principal:", bool(version.instance_identity.principal_id))
same = client.agents.create_version(agent_name=name, definition=definition, metadata={"team": "a"}, description="d")
print("posted again:", same.version)
agent = client.agents.get(name)
print("agent:", agent.name, agent.versions.latest.version, agent.agent_endpoint is not None)

openai = client.get_openai_client(agent_name=name)
response = openai.responses.create(input="plain words")
print("plain:", response.output_text)
with openai.responses.stream(model="any", input="a b") as stream:
    kinds = [event.type for event in stream]
    print("stream:", kinds[0], kinds[-1], stream.get_final_response().output_text)
raw = openai.responses.with_raw_response.create(input="x", extra_body={"agent_session_id": response.agent_session_id})
print("header:", raw.headers["x-agent-session-id"] == response.agent_session_id)


async def asynchronous() -> None:
    async with (
        AsyncCredential() as credential,
        AsyncClient(endpoint=endpoint, credential=credential) as project,
    ):
        print("async:", [agent.name async for agent in project.agents.list()])
        async with project.get_openai_client(agent_name=name) as model:
            print("async plain:", (await model.responses.create(input="y")).output_text)
            stream = await model.responses.create(input="z", stream=True)
            print("async stream:", [event.type async for event in stream][-1])


asyncio.run(asynchronous())
try:
    client.agents.delete_version(agent_name=name, agent_version="1")
except HttpResponseError as error:
    print("delete with running sessions:", error.status_code)
print("deleted:", client.agents.delete_version(agent_name=name, agent_version="1", force=True).deleted)
print("deleted agent:", client.agents.delete(agent_name=name, force=True).deleted)
try:
    client.agents.get(name)
except ResourceNotFoundError as error:
    print("gone:", error.error.code)
