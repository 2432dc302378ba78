"""Whatever answers in a job server's place, the question for a job ends in one sentence, and soon."""

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from mneme.distributed import ray_jobs
from mneme.distributed.ray_jobs import job_state
from mneme.distributed.runners import ServiceError

VERSION = (200, json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"}))


@contextmanager
def a_server(answers: Mapping[str, tuple[int, str]]) -> Iterator[str]:
    """The address of a server that answers so by path, and with 404 otherwise."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = answers.get(self.path, (404, "not found"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.timeout(30)
def test_a_server_that_stays_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "_ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServiceError, match=r"nothing answers there \(no answer within 0\.2 s\); is its tunnel"):
            job_state("a", address)


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({}, "what answers there is no Ray job server; give the address of one"),
        ({"/api/version": (200, "<html>")}, "what answers there is no Ray job server"),
        ({"/api/version": (200, "{}")}, "what answers there is no Ray job server"),
        ({"/api/version": (200, "[]")}, "what answers there is no Ray job server"),
        ({"/api/version": (405, "")}, "what answers there is no Ray job server"),
        ({"/api/version": (503, "port 40404")}, "503 Server Error"),
        ({"/api/version": VERSION}, "there is no such job; list them with: ray job list"),
        ({"/api/version": VERSION, "/api/jobs/a": (500, "port 40404")}, "status code 500: port 40404"),
    ],
)
def test_what_is_no_job_gets_one_sentence(answers: Mapping[str, tuple[int, str]], sentence: str) -> None:
    with a_server(answers) as address, pytest.raises(ServiceError) as error:
        job_state("a", address)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
