import json
import time
import urllib.request

import pytest
from openai import OpenAI
from openai.types.responses import ResponseFunctionToolCall
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from agent.tests.samples.conftest import StartSample


def post(url: str, body: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, body.encode()), timeout=30) as answer:  # noqa: S310
        text: str = answer.read().decode()
        return text


def test_echo_says_what_it_is_told_and_counts_in_a_file(start_sample: StartSample) -> None:
    sample = start_sample("echo")
    assert sample.say("hello there") == "Echo: hello there"
    assert post(f"{sample.url}/invocations", "hello") == "hello"
    assert [sample.say("count"), start_sample("echo").say("count")] == ["count: 1", "count: 2"]


def test_streaming_tells_word_by_word(start_sample: StartSample) -> None:
    sample = start_sample("streaming", PAUSE="0")
    with sample.client.responses.create(model="sample", input="one two three", stream=True) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "three two one"
    last = events[-1]
    assert last.type == "response.completed"
    assert [item.type for item in last.response.output] == ["reasoning", "message"]
    assert last.response.usage is not None
    assert last.response.usage.total_tokens == 6
    assert post(f"{sample.url}/invocations", "2") == "data: 2\n\ndata: 1\n\ndata: lift-off\n\n"


def test_tools_go_on_with_what_the_caller_says(start_sample: StartSample) -> None:
    client = start_sample("tools").client
    asking = client.responses.create(model="sample", input="How hot is it in Paris and Rome?")
    calls = [item for item in asking.output if isinstance(item, ResponseFunctionToolCall)]
    assert [call.name for call in calls] == ["get_weather"] * 2
    assert [json.loads(call.arguments) for call in calls] == [{"city": "Paris"}, {"city": "Rome"}]
    weather = {calls[0].call_id: ("Paris", 30), calls[1].call_id: ("Rome", 35)}
    answer = client.responses.create(
        model="sample",
        previous_response_id=asking.id,
        input=[
            {
                "type": "function_call_output",
                "call_id": call_id,
                "output": json.dumps({"city": city, "degrees": degrees}),
            }
            for call_id, (city, degrees) in weather.items()
        ],
    )
    assert answer.output_text == "It is 30 degrees in Paris.\nIt is 35 degrees in Rome."


def test_files_outlive_the_process(start_sample: StartSample) -> None:
    assert start_sample("files").say("buy milk") == "Noted."
    assert start_sample("files").say("list") == "buy milk\n"


def test_websocket_plays_until_the_number_is_found(start_sample: StartSample) -> None:
    sample = start_sample("websocket")
    with connect(f"ws://{sample.address}/invocations_ws?highest=4") as socket:
        assert json.loads(socket.recv())["to"] == 4
        for number in range(1, 5):
            socket.send(str(number))
            answer = json.loads(socket.recv())
            if answer.get("won"):
                break
            assert answer["hint"] == "higher"
        assert answer == {"guesses": number, "won": True}
    with connect(f"ws://{sample.address}/invocations_ws") as socket:
        socket.recv()
        socket.send("what?")
        with pytest.raises(ConnectionClosed) as caught:
            socket.recv()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 4000


def test_background_goes_on_when_nobody_listens_and_stops_when_it_is_cancelled(start_sample: StartSample) -> None:
    client = start_sample("background", PAUSE="0.01").client
    job = client.responses.create(model="sample", input="3", background=True)
    assert ended(client, job.id) == ("completed", "step 1 of 3\nstep 2 of 3\nstep 3 of 3\ndone")

    client = start_sample("background", PAUSE="60").client
    with client.responses.create(model="sample", input="3", background=True, stream=True) as stream:
        for event in stream:
            if event.type == "response.created":
                job_id = event.response.id
            if event.type == "response.output_text.delta":
                break
    client.responses.cancel(job_id)
    assert ended(client, job_id)[0] == "cancelled"


def ended(client: OpenAI, response_id: str) -> tuple[str | None, str]:
    for _ in range(1000):
        response = client.responses.retrieve(response_id)
        if response.status not in ("queued", "in_progress"):
            return response.status, response.output_text
        time.sleep(0.01)
    raise AssertionError("the job did not end")
