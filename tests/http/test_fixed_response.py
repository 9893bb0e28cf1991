"""Fixed responses, and the settings that are invalid."""

from __future__ import annotations

from typing import Any

import pytest
from werkzeug.test import Client

from wsgigate.http.responses import LARGEST, fixed_response


def test_each_request_gets_the_same_response() -> None:
    app = fixed_response("später", status=200, fields=[("X-More", "1")])
    for _ in range(2):
        answer = Client(app).get("/")
        assert (answer.status, answer.text) == ("200 OK", "später")
        assert answer.content_length == 7
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers.getlist("X-More") == ["1"]
        answer.headers.add("X-More", "2")
    head = Client(app).head("/")
    assert (head.data, head.content_length) == (b"", 7)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"body": b"x" * (LARGEST + 1)}, "body: at most 1048576 bytes"),
        ({"status": 199}, "status: a status from 200 to 599"),
        ({"status": 204}, "status: a status from 200 to 599 that has a body"),
        ({"status": 600}, "status: "),
        ({"content_type": ""}, "content_type: "),
        ({"content_type": "text/plain\r\nX: y"}, "content_type: "),
    ],
)
def test_an_invalid_response_raises(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fixed_response(**{"body": "", **settings})
