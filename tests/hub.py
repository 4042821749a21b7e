"""A small hub: files of repositories over HTTP as huggingface_hub asks for them, with faults on request."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`files` maps repositories to contents by name; what is `large` (bytes) is said to lie in git LFS."""

    def __init__(self, files, large=10_000):
        self.files, self.large = files, large
        self.asked = []  # (method, path, first byte)
        self.break_after = {}  # name: bytes after which its connections end
        self.damaged = set()  # names of which other bytes are sent
        self.revisions = ("main", COMMIT)

    def info(self, repository):
        return {
            "id": repository, "sha": COMMIT, "tags": ["license:apache-2.0"], "cardData": {"license": "apache-2.0"},
            "siblings": [self._sibling(name, content) for name, content in self.files[repository].items()],
        }  # fmt: skip

    def tree(self, repository):
        said = (self._sibling(name, content) for name, content in self.files[repository].items())
        return [
            {"type": "file", "path": s["rfilename"], "oid": s["blobId"], **{k: s[k] for k in ("size", "lfs") if k in s}}
            for s in said
        ]

    def etag(self, content):
        if len(content) >= self.large:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def _sibling(self, name, content):
        sibling = {
            "rfilename": name,
            "size": len(content),
            "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
        }
        lfs = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "oid": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": 130,
        }
        return sibling | ({"lfs": lfs} if len(content) >= self.large else {})


def handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = unquote(urlsplit(self.path).path)
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            hub.asked.append((self.command, path, start))
            if path.startswith("/api/models/") and "/tree/" in path:
                repository = path.removeprefix("/api/models/").partition("/tree/")[0]
                return self.send(200, json.dumps(hub.tree(repository)).encode(), body=body)
            if path.startswith("/api/models/"):
                repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                known = repository in hub.files and revision in hub.revisions
                return self.send(200 if known else 404, json.dumps(hub.info(repository) if known else {}).encode())
            repository, _, rest = path.removeprefix("/").partition("/resolve/")
            _, _, name = rest.partition("/")
            content = hub.files.get(repository, {}).get(name)
            if content is None:
                return self.send(404, b"")
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hub.etag(content)}"', "Accept-Ranges": "bytes"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            sent = bytes(len(content)) if name in hub.damaged else content
            return self.send(206 if start else 200, sent[start:], headers, body, hub.break_after.get(name))

        def send(self, status, content, headers=None, body=True, most=None):
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content if most is None else content[:most])
            if most is not None and body:
                self.close_connection = True

    return Handler


@contextmanager
def running(hub):
    """The address of a running hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
