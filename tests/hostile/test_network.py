"""The rephraser's endpoint: where its key goes, how long and how much it may answer, and what errors show."""

import contextlib
import gzip
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phantom_s2v.errors import InputError
from phantom_s2v.pipeline import prompts

SECRETS = ("k3y-of-the-endpoint", "pa55word", "qu3ry-key")


class Server:
    """A server on the loopback that answers by a function of the handler, and keeps the headers it was sent."""

    def __init__(self, answer):
        self.asked, self.answer = [], answer
        own = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                own.asked.append(dict(self.headers))
                with contextlib.suppress(OSError):  # the client has gone
                    own.answer(self)

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.where = f"http://user:{SECRETS[1]}@127.0.0.1:{self.http.server_port}/v1?key={SECRETS[2]}#model"

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv(prompts.KEY, SECRETS[0])
    running = []

    def start(answer):
        running.append(Server(answer))
        return running[-1]

    yield start
    for server in running:
        server.close()


def reply(content: bytes, status=200, **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            handler.send_header(name.replace("_", "-"), str(value))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def said(where):
    """The one sentence of a failure, which holds no secret."""
    with pytest.raises(InputError) as told:
        prompts.rephrase("a fox", [], where)
    text = str(told.value)
    assert "\n" not in text
    assert not [secret for secret in SECRETS if secret in text], text
    return text


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_is_never_sent_to_where_a_redirect_points(serve, status):
    other = serve(reply(b"{}"))
    first = serve(reply(b"", status, Location=f"http://127.0.0.1:{other.http.server_port}/v1/chat/completions"))
    assert "redirects" in said(first.where)
    assert [headers["Authorization"] for headers in first.asked] == [f"Bearer {SECRETS[0]}"]
    assert other.asked == []


def drip(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def drip_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(200):
        handler.wfile.write(b"X-%d: a\r\n" % number)
        handler.wfile.flush()
        time.sleep(0.05)


@pytest.mark.parametrize("slow", [drip, drip_headers, lambda handler: time.sleep(3)])
def test_one_deadline_holds_for_the_whole_answer(serve, monkeypatch, slow):
    monkeypatch.setattr(prompts, "PATIENCE", 0.5)
    server, start = serve(slow), time.monotonic()
    assert "within 0.5 s" in said(server.where)
    assert time.monotonic() - start < 8


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b"x" * 65536)


def test_an_answer_is_read_up_to_a_megabyte(serve):
    assert "more than 1 MB" in said(serve(endless).where)
    bomb = gzip.compress(json.dumps({"choices": [{"message": {"content": "x" * 10_000_000}}]}).encode())
    assert "compression" in said(serve(reply(bomb, Content_Encoding="gzip")).where)


def content(value):
    return json.dumps({"choices": [{"message": {"content": value}}]}).encode()


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"[]", b"{}", b"null", b"NaN", b"\xff\xfe", b"[" * 500_000, b'{"choices": {}}', b'{"choices": [[]]}',
        content(None), content(5), content(["a"]), content({"a": 1}), content("  "), content("\x00\x1b"), content("x" * 20_000),
    ],
)  # fmt: skip
def test_answers_that_are_no_prompt_are_one_sentence(serve, answer):
    assert re.search("invalid response|returned", said(serve(reply(answer)).where))


@pytest.mark.parametrize("status", [400, 401, 404, 418, 500, 503])
def test_refusals_show_no_secret(serve, status):
    assert f"status {status}" in said(serve(reply(f"you sent {SECRETS}".encode(), status)).where)


@pytest.mark.parametrize(
    "where",
    [
        f"http://user:{SECRETS[1]}@127.0.0.1:9/v1?key={SECRETS[2]}#m",
        f"http://user:{SECRETS[1]}@127.0.0.1:9/v1",
        f"ftp://user:{SECRETS[1]}@host/v1#m",
        f"https://user:{SECRETS[1]}@[::1/v1#m",
        f"https://user:{SECRETS[1]}@127.0.0.1:99999/v1#m",
        f"https://user:{SECRETS[1]}@/v1#m",
        f"http://a@b:{SECRETS[1]}@127.0.0.1:9/#m",
        "http://127.0.0.1:9\x00/#m",
        "http://127.0.0.1:9/\x1b[2J#m",
    ],
)
def test_addresses_show_no_secret(monkeypatch, where):
    monkeypatch.setenv(prompts.KEY, SECRETS[0])
    said(where)


def test_control_characters_of_an_answer_do_not_stay(serve):
    assert prompts.rephrase("a", [], serve(reply(content("A fox\x1b[2J \x9b runs.\n"))).where) == "A fox [2J runs."


@pytest.fixture(scope="module")
def fuzzed():
    server = Server(None)
    yield server
    server.close()


@given(body=st.binary(max_size=200), status=st.integers(200, 599))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_answer_is_a_prompt_or_a_sentence(fuzzed, body, status):
    fuzzed.answer = reply(body, status)
    said(fuzzed.where)


@given(raw=st.binary(max_size=300))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_on_the_line_are_a_sentence(fuzzed, raw):
    def answer(handler):
        handler.wfile.write(raw)
        handler.close_connection = True

    fuzzed.answer = answer
    said(fuzzed.where)
