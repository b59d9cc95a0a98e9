from __future__ import annotations

import pytest

from cupola.domain.errors import CupolaError, FieldProblem, not_found


def test_the_body_is_what_every_client_reads() -> None:
    problem = FieldProblem("definition.cpu", "is wrong", "bad_cpu")
    error = CupolaError("bad_request", "It is wrong.", param="definition.cpu", problems=(problem,))
    assert error.body("request-1") == {
        "error": {
            "code": "bad_request",
            "message": "It is wrong.",
            "type": "invalid_request_error",
            "param": "definition.cpu",
            "details": [
                {
                    "code": "bad_cpu",
                    "message": "is wrong",
                    "param": "definition.cpu",
                    "target": "definition.cpu",
                }
            ],
            "additionalInfo": {"request_id": "request-1"},
        }
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (424, "invalid_request_error"), (500, "server_error")],
)
def test_the_type_tells_whose_fault_it_is(status: int, kind: str) -> None:
    body = CupolaError("code", "text", status=status).body("r")["error"]
    assert (body["type"], body["param"], body["details"]) == (kind, None, [])


def test_what_does_not_exist_is_a_404() -> None:
    error = not_found("Agent echo")
    assert (error.status, error.code, str(error)) == (404, "not_found", "Agent echo does not exist.")
    assert not_found("Session s", "session_not_found").code == "session_not_found"


def test_an_error_shows_itself_in_logs() -> None:
    assert repr(CupolaError("conflict", "Taken.", status=409)) == "CupolaError('conflict', 'Taken.', status=409)"
