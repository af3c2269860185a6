"""Disconnected clients and refused requests: what the server does and logs."""

import http.client
import json
import time

import pytest
from bodies import ENDPOINTS, body, get, picture_data
from support import MESSAGES

QUESTION = MESSAGES[0]


def wait_until_in_flight(server, number: int) -> None:
    """Wait, for at most a minute, until the server runs ``number`` requests."""
    for _ in range(6000):
        if get(server, "/metrics")["summary"]["in_flight"] == number:
            return
        time.sleep(0.01)
    raise AssertionError(f"the server does not get to {number} running requests")


def wait_for_lines(server_log, begin: int, *parts: str) -> str:
    """Wait, for at most a minute, until the log has ``parts``; its text from byte ``begin`` on."""
    for _ in range(600):
        text = server_log.read_bytes()[begin:].decode()
        if all(part in text for part in parts):
            return text
        time.sleep(0.1)
    raise AssertionError(f"{parts} are not in the log:\n{text}")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_plain_request_ends_when_its_client_hangs_up(server, server_log, endpoint):
    log = server_log.stat().st_size
    request = body(endpoint, server.model, QUESTION, picture_data("tall"), max_tokens=10**6)
    request["logit_bias"] = {"2": -100}  # an answer without an end
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", endpoint, json.dumps(request), {"Content-Type": "application/json"})
    # A request that still waits for its turn would end without being cancelled.
    wait_for_lines(server_log, log, "Prefill started")
    connection.close()
    wait_until_in_flight(server, 0)
    # The request ends before its last line is in the file.
    parts = ("Generation cancelled", "The client has closed the connection")
    assert "Traceback" not in wait_for_lines(server_log, log, *parts)


def test_a_refused_request_is_one_line_in_the_log(server, server_log):
    tools = [{"type": "function", "function": {"name": "f"}}]
    for endpoint in ENDPOINTS:
        for request in (
            body(endpoint, server.model, QUESTION, tools=tools),
            body(endpoint, server.model, QUESTION, "aGVsbG9v"),
            body(endpoint, server.model, QUESTION, n=2, stream=True),
            body(endpoint, "no/such-model", QUESTION),
        ):
            log = server_log.stat().st_size
            assert 400 <= server.post(endpoint, request)[0] < 500
            text = server_log.read_bytes()[log:].decode()
            assert "Traceback" not in text
            assert "Unexpected" not in text
            assert all(len(line) < 1100 for line in text.splitlines())
