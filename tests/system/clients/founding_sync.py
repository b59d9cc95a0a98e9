"""The complete example of the founding documents for 2.0.0b3, with only the image changed, run to its end.

Its text reads `agent.state`, which the model of 2.0.0b3 does not declare, and calls `delete_version(version=…)`, which that
version names `agent_version`: both fail inside the client whatever a server answers, so they are written as it takes them.
"""

import os
import sys

from azure.ai.projects import AIProjectClient
from azure.ai.projects.models import AgentProtocol, ImageBasedHostedAgentDefinition, ProtocolVersionRecord
from azure.identity import DefaultAzureCredential

client = AIProjectClient(endpoint=os.environ["AZURE_AI_PROJECT_ENDPOINT"], credential=DefaultAzureCredential())
agent = client.agents.create_version(
    agent_name="data-processor-agent",
    definition=ImageBasedHostedAgentDefinition(
        container_protocol_versions=[ProtocolVersionRecord(protocol=AgentProtocol.RESPONSES, version="v1")],
        cpu="2",
        memory="4Gi",
        image=sys.argv[1],
        tools=[{"type": "code_interpreter"}, {"type": "file_search"}],
        environment_variables={
            "AZURE_AI_PROJECT_ENDPOINT": os.environ["AZURE_AI_PROJECT_ENDPOINT"],
            "MODEL_NAME": "gpt-4o-mini",
            "MAX_RETRIES": "3",
        },
    ),
)
print(f"Created hosted agent: {agent.name}")
print(f"Version: {agent.version}")
print(f"State: {agent['state']}")

for version in client.agents.list_versions(agent_name="data-processor-agent"):
    print(f"Listed: {version.version}, State: {version['state']}")
client.agents.delete_version(agent_name="data-processor-agent", agent_version=agent.version)
print("Versions left:", len(list(client.agents.list_versions(agent_name="data-processor-agent"))))
