"""An image built on the official container library from PyPI, unmodified, deploys and answers."""

from __future__ import annotations

from tests.system.platform import Platform


def test_the_official_container_library(platform: Platform, official_image: str) -> None:
    version = platform.deploy("official", official_image)
    assert version["status"] == "active", version
    path = "/agents/official/endpoint/protocols/openai/responses"
    with platform.http() as http:
        plain = http.post(path, json={"input": "hello", "model": "any"})
        assert plain.status_code == 200, plain.text
        assert plain.json()["output"][0]["content"][0]["text"] == "Official: hello"
        assert plain.json()["agent_session_id"] == plain.headers["x-agent-session-id"]
        session = plain.headers["x-agent-session-id"]
        with http.stream("POST", path, json={"input": "x", "stream": True, "agent_session_id": session}) as answer:
            assert answer.headers["x-agent-session-id"] == session
            lines = list(answer.iter_lines())
    assert "event: response.completed" in lines
    with platform.http() as http:
        following = http.post(path, json={"input": "again", "previous_response_id": plain.json()["id"]})
        assert following.json()["agent_session_id"] == session
        one = f"{path}/{following.json()['id']}"
        assert http.get(one).json()["output"][0]["content"][0]["text"] == "Official: again"
        assert len(http.get(f"{one}/input_items").json()["data"]) >= 1
        assert http.post(f"{one}/cancel").status_code == 400
        assert http.delete(one).status_code == 200
        assert http.get(one).status_code == 404
