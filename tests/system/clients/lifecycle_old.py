"""Every control-plane call of 2.0.0b3 and 2.0.0, and invocation at the project's own endpoint.

Arguments: image, and the key that names the agent in a request's body (`agent` before 2.0.0, `agent_reference` since).
"""

import os
import sys
import time

import azure.ai.projects.models as models
from azure.ai.projects import AIProjectClient
from azure.core.exceptions import ResourceExistsError
from azure.identity import DefaultAzureCredential

image, key = sys.argv[1:]
client = AIProjectClient(endpoint=os.environ["FOUNDRY_PROJECT_ENDPOINT"], credential=DefaultAzureCredential())
Definition = getattr(models, "ImageBasedHostedAgentDefinition", None) or models.HostedAgentDefinition


def definition(**changes: object) -> object:
    return Definition(
        container_protocol_versions=[models.ProtocolVersionRecord(protocol="responses", version="v1")],
        cpu="1", memory="1Gi", image=image, **changes,
    )  # fmt: skip


name = "old-style"
if hasattr(client.agents, "create"):
    print("created:", client.agents.create(name=name, definition=definition()).name)
    try:
        client.agents.create(name=name, definition=definition())
    except ResourceExistsError:
        print("created twice: conflict")
    updated = client.agents.update(name, definition=definition(environment_variables={"N": "2"}))
    print("updated to:", updated.versions.latest.version)
else:
    client.agents.create_version(name, definition=definition())
    client.agents.create_version(name, definition=definition(environment_variables={"N": "2"}))

version = client.agents.get_version(name, "2")
while version["status"] == "creating":
    time.sleep(0.05)
    version = client.agents.get_version(name, "2")
print("status:", version["status"])
print("agents:", [agent.name for agent in client.agents.list(kind="hosted")])
print("versions:", [entry.version for entry in client.agents.list_versions(name, limit=1, order="asc")])

openai = client.get_openai_client()
reference = {"name": name, "type": "agent_reference"}
response = openai.responses.create(input="plain words", extra_body={key: reference})
print("plain:", response.output_text, bool(response.model_extra["agent_session_id"]))
again = openai.responses.create(
    input="count", extra_body={key: reference, "agent_session_id": response.model_extra["agent_session_id"]}
)
print("same session:", again.model_extra["agent_session_id"] == response.model_extra["agent_session_id"])
deltas = [
    event.delta
    for event in openai.responses.create(input="a b c", stream=True, extra_body={key: reference})
    if event.type == "response.output_text.delta"
]
print("stream:", deltas)

print("deleted version:", client.agents.delete_version(name, "1").deleted)
try:
    client.agents.delete(name)
except ResourceExistsError:
    print("delete with running sessions: conflict")
else:
    print("deleted with its sessions")
