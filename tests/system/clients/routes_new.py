"""Responses by their id and chains of turns with 2.10.0. Arguments: agents of the samples echo and background."""

import os
import sys
import time

import openai
from azure.ai.projects import AIProjectClient
from azure.identity import DefaultAzureCredential

echo, background = sys.argv[1:]
project = AIProjectClient(endpoint=os.environ["FOUNDRY_PROJECT_ENDPOINT"], credential=DefaultAzureCredential())
client = project.get_openai_client(agent_name=background)

job = client.responses.create(input="3", background=True)
print("created:", job.status in ("queued", "in_progress"))
while job.status in ("queued", "in_progress"):
    time.sleep(0.05)
    job = client.responses.retrieve(job.id)
print("polled:", job.status, job.output_text.splitlines())
print("input:", [item.content[0].text for item in client.responses.input_items.list(job.id)])
client.responses.delete(job.id)
try:
    client.responses.retrieve(job.id)
except openai.NotFoundError:
    print("deleted: 404")

stream = client.responses.create(input="4", background=True, stream=True)
seen = []
for event in stream:
    seen.append((event.sequence_number, event.type))
    if event.type == "response.created":
        job = event.response
    if event.type == "response.output_text.delta":
        break
stream.close()
rest = client.responses.retrieve(job.id, stream=True, starting_after=seen[-1][0])
seen += [(event.sequence_number, event.type) for event in rest]
print("resumed:", [number for number, _ in seen] == list(range(len(seen))), seen[-1][1])

endless = client.responses.create(input="100000", background=True)
print("cancelled:", client.responses.cancel(endless.id).status)
at_project = project.get_openai_client()
print("at the project:", at_project.responses.retrieve(endless.id).status)

client = project.get_openai_client(agent_name=echo)
first = client.responses.create(input="count")
second = client.responses.create(input="count", previous_response_id=first.id)
agent = {"agent_reference": {"type": "agent_reference", "name": echo}}
third = at_project.responses.create(input="count", previous_response_id=second.id, extra_body=agent)
print("chain:", [turn.output_text for turn in (first, second, third)], third.agent_session_id == first.agent_session_id)
turns = [client.responses.create(input="count", conversation="conv_1").output_text for _ in range(2)]
print("conversation:", turns)
try:
    client.responses.create(input="x", previous_response_id="caresp_" + 50 * "0")
except openai.NotFoundError as error:
    print("unknown:", error.code, error.param)
