"""Sessions and their lives with 2.10.0. Argument: image."""

import asyncio
import os
import sys
import time

from azure.ai.projects import AIProjectClient
from azure.ai.projects.aio import AIProjectClient as AsyncClient
from azure.ai.projects.models import ContainerConfiguration, HostedAgentDefinition, VersionRefIndicator
from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential
from azure.identity.aio import DefaultAzureCredential as AsyncCredential

image = sys.argv[1]
endpoint = os.environ["FOUNDRY_PROJECT_ENDPOINT"]
client = AIProjectClient(endpoint=endpoint, credential=DefaultAzureCredential())
definition = HostedAgentDefinition(cpu="0.5", memory="1Gi", container_configuration=ContainerConfiguration(image=image))
name = "with-sessions"
version = client.agents.create_version(agent_name=name, definition=definition)
while version.status == "creating":
    time.sleep(0.05)
    version = client.agents.get_version(agent_name=name, agent_version=version.version)

operations = client.agents
session = operations.create_session(
    name, version_indicator=VersionRefIndicator(agent_version=version.version), agent_session_id="my-own-session"
)
print("created:", session.agent_session_id, session.status.value, session.version_indicator.agent_version)
try:
    operations.create_session(
        name, version_indicator=VersionRefIndicator(agent_version=version.version), agent_session_id="my-own-session"
    )
except ResourceExistsError as error:
    print("twice:", error.error.code)
openai = client.get_openai_client(agent_name=name)
answer = openai.responses.create(input="hello", extra_body={"agent_session_id": "my-own-session"})
print("answer:", answer.output_text, answer.agent_session_id)
print("then:", operations.get_session(name, "my-own-session").status.value)
operations.stop_session(name, "my-own-session")
operations.stop_session(name, "my-own-session")
stopped = operations.get_session(name, "my-own-session")
print("stopped:", stopped.status.value, stopped.stopped_at is not None, stopped.expires_at > stopped.created_at)
print("again:", openai.responses.create(input="x", extra_body={"agent_session_id": "my-own-session"}).output_text)
second = operations.create_session(name, version_indicator=VersionRefIndicator(agent_version=version.version))
print("listed:", [one.agent_session_id == second.agent_session_id for one in operations.list_sessions(name, limit=1)])
for one in (second.agent_session_id, "my-own-session", "my-own-session"):
    operations.delete_session(name, one)
try:
    operations.get_session(name, "my-own-session")
except ResourceNotFoundError as error:
    print("gone:", error.error.code)


async def asynchronous() -> None:
    async with (
        AsyncCredential() as credential,
        AsyncClient(endpoint=endpoint, credential=credential) as project,
    ):
        operations = project.agents
        made = await operations.create_session(name, {})
        print("async:", [one.status.value in ("idle", "active") async for one in operations.list_sessions(name)])
        await operations.delete_session(name, made.agent_session_id)


asyncio.run(asynchronous())
client.agents.delete(name, force=True)
