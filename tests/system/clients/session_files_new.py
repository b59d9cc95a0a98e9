"""Files and logs of sessions with 2.10.0, and acting for a user. Argument: image."""

import io
import os
import sys
import time

from azure.ai.projects import AIProjectClient
from azure.ai.projects.models import ContainerConfiguration, HostedAgentDefinition
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential

image = sys.argv[1]
client = AIProjectClient(endpoint=os.environ["FOUNDRY_PROJECT_ENDPOINT"], credential=DefaultAzureCredential())
definition = HostedAgentDefinition(cpu="0.5", memory="1Gi", container_configuration=ContainerConfiguration(image=image))
name, session = "with-files", "with-files-session"
operations = client.agents
version = operations.create_version(agent_name=name, definition=definition)
while version.status == "creating":
    time.sleep(0.05)
    version = operations.get_version(agent_name=name, agent_version=version.version)

openai = client.get_openai_client(agent_name=name)
operations.create_session(name, {"agent_session_id": session})
written = operations.upload_session_file(name, session, b"uploaded", path="/remote/data_file1.txt")
print("uploaded before the first start:", written.path, written.bytes_written)
openai.responses.create(input="count", extra_body={"agent_session_id": session})
operations.stop_session(name, session)
operations.upload_session_file(name, session, io.BytesIO(b"x" * 1_000_000), path="remote/large.bin")
print("listed while it sleeps:", [entry.name for entry in operations.list_session_files(name, session, path="/remote")])
print("made by the agent:", b"".join(operations.download_session_file(name, session, path="count")).decode())
print("answer:", openai.responses.create(input="count", extra_body={"agent_session_id": session}).output_text)
large = b"".join(operations.download_session_file(name, session, path="/remote/large.bin"))
print("downloaded while it runs:", len(large))
try:
    operations.delete_session_file(name, session, path="/remote")
except HttpResponseError as error:
    print("not empty:", error.status_code)
operations.delete_session_file(name, session, path="/remote", recursive=True)
try:
    operations.download_session_file(name, session, path="/remote/large.bin")
except ResourceNotFoundError as error:
    print("gone:", error.error.code)
events = operations.get_session_log_stream(name, version.version, session, params={"follow": "false"})
print("log:", b"".join(events).startswith(b"event: log\ndata: "))

alice = {"x-ms-user-identity": "alice@contoso.com"}
operations.create_session(name, {"agent_session_id": "session-of-alice"}, headers=alice)
print("alice:", [one.agent_session_id for one in operations.list_sessions(name, headers=alice)])
try:
    operations.get_session(name, "session-of-alice", headers={"x-ms-user-identity": "bob@contoso.com"})
except ResourceNotFoundError as error:
    print("bob:", error.error.code)
operations.delete(name, force=True)
