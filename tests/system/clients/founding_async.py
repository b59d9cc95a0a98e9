"""The asynchronous pattern of the founding documents for 2.0.0b3, with only the image changed, run to an answer."""

import asyncio
import os
import sys

from azure.ai.projects.aio import AIProjectClient
from azure.ai.projects.models import AgentProtocol, ImageBasedHostedAgentDefinition, ProtocolVersionRecord
from azure.identity.aio import DefaultAzureCredential


async def create_hosted_agent_async() -> None:
    async with (
        DefaultAzureCredential() as credential,
        AIProjectClient(endpoint=os.environ["AZURE_AI_PROJECT_ENDPOINT"], credential=credential) as client,
    ):
        agent = await client.agents.create_version(
            agent_name="async-agent",
            definition=ImageBasedHostedAgentDefinition(
                container_protocol_versions=[ProtocolVersionRecord(protocol=AgentProtocol.RESPONSES, version="v1")],
                cpu="1",
                memory="2Gi",
                image=sys.argv[1],
            ),
        )
        while agent["status"] == "creating":
            await asyncio.sleep(0.05)
            agent = await client.agents.get_version(agent_name="async-agent", agent_version=agent.version)
        print("Status:", agent["status"])
        listed = [version.version async for version in client.agents.list_versions(agent_name="async-agent")]
        print("Listed:", listed)
        openai = client.get_openai_client()
        response = await openai.responses.create(
            input="hello", extra_body={"agent": {"name": "async-agent", "type": "agent_reference"}}
        )
        print("Answer:", response.output_text)
        await openai.close()
        deleted = await client.agents.delete(agent_name="async-agent")
        print("Deleted:", deleted.deleted)


asyncio.run(create_hosted_agent_async())
