"""As much of Google Cloud Storage's JSON API as occinv's libraries use, with objects in memory.

gcsfs, google-cloud-storage and TensorStore each use some of the methods. Start it by the fixture
`bucket` of conftest.py.
"""

from __future__ import annotations

import email
import http.server
import itertools
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"
PAGE = 7  # entries of a page of a listing, few so that every client has to ask for more


class Emulator(http.server.ThreadingHTTPServer):
    """The server, which holds one bucket.

    Attributes:
      objects: The content and the generation of each object by its name.
      requests: The method and the path of every request.
      refuse: Methods that are answered by 403.
    """

    daemon_threads = True
    request_queue_size = 100

    def __init__(self) -> None:
        super().__init__(("localhost", 0), Handler)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.uploads: dict[str, tuple[str, bytes]] = {}  # unfinished: name and content
        self.requests: list[tuple[str, str]] = []
        self.refuse: tuple[str, ...] = ()
        self.numbers = itertools.count(1)
        self.lock = threading.RLock()
        self.address = f"http://localhost:{self.server_port}"

    def handle_error(self, *arguments: Any) -> None:
        """Print nothing about a request that gcsfs has canceled."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*arguments)


@contextmanager
def serve() -> Iterator[Emulator]:
    """Run an emulator."""
    server = Emulator()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and content go in one packet, or each answer takes 40 ms
    server: Emulator

    def answer(self) -> None:
        """Answer a request of any method."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        with self.server.lock:
            self.server.requests.append((self.command, unquote(self.path)))
            if self.command in self.server.refuse:
                return self.send(403, error("Forbidden: no permission"))
            self.route([unquote(part) for part in url.path.strip("/").split("/")], body)

    do_GET = do_POST = do_DELETE = answer

    def route(self, parts: list[str], body: bytes) -> None:
        """Find the method by the parts of the path."""
        if "uploads" in parts:
            return self.continue_upload(parts[-1], body)
        *_, bucket = parts[: parts.index("b") + 2]
        rest = parts[parts.index("b") + 2 :]
        if bucket != BUCKET:
            return self.send(404, error("The specified bucket does not exist."))
        if not rest:
            return self.send(200, {"kind": "storage#bucket", "name": bucket, "id": bucket})
        if rest == ["o"] and self.command == "GET":
            return self.list_objects()
        if rest == ["o"]:
            return self.upload(body)
        if rest[1] not in self.server.objects:
            return self.send(404, error(f"No such object: {bucket}/{rest[1]}"))
        if "moveTo" in rest:
            return self.store(rest[-1], self.server.objects.pop(rest[1])[0])
        if not self.is_allowed(rest[1]):
            return None
        if self.command == "DELETE":
            del self.server.objects[rest[1]]
            return self.send(204)
        if self.query.get("alt") == "media":
            return self.read(rest[1])
        return self.send(200, self.describe(rest[1]))

    def is_allowed(self, name: str) -> bool:
        """Whether the preconditions of the request hold. If not, this answers it."""
        _, generation = self.server.objects.get(name, (b"", 0))
        if int(self.query.get("ifGenerationMatch", generation)) != generation:
            self.send(412, error("A precondition does not hold."))
            return False
        if int(self.query.get("ifGenerationNotMatch", -1)) == generation:
            self.send(304)
            return False
        return True

    def read(self, name: str) -> None:
        content, generation = self.server.objects[name]
        headers, status, found = {"X-Goog-Generation": str(generation)}, 200, content
        if wanted := self.headers.get("Range"):
            start, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last or len(content)), len(content) - 1)
            if int(start) > end:
                return self.send(416, error("The range is not satisfiable."))
            found, status = content[int(start) : end + 1], 206
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return self.send(status, found, headers)

    def describe(self, name: str) -> dict[str, Any]:
        content, generation = self.server.objects[name]
        return {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": name,
            "id": f"{BUCKET}/{name}/{generation}",
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    def list_objects(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        found: dict[str, bool] = {}  # each object or common prefix -> whether it is a prefix
        for name in sorted(self.server.objects):
            inside = name.startswith(prefix) and name >= self.query.get("startOffset", "")
            if inside and ("endOffset" not in self.query or name < self.query["endOffset"]):
                first, mark, _ = name.removeprefix(prefix).partition(delimiter or "\0")
                found[prefix + first + mark] = bool(mark)
        begin = int(self.query.get("pageToken", 0))
        end = begin + min(PAGE, int(self.query.get("maxResults", PAGE)))
        page = list(found.items())[begin:end]
        answer: dict[str, Any] = {
            "kind": "storage#objects",
            "items": [self.describe(name) for name, is_prefix in page if not is_prefix],
            "prefixes": [name for name, is_prefix in page if is_prefix],
        }
        if end < len(found):
            answer["nextPageToken"] = str(end)
        self.send(200, answer)

    def upload(self, body: bytes) -> None:
        kind, name = self.query["uploadType"], self.query.get("name", "")
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
            boundary = email.message_from_bytes(head).get_boundary().encode()  # type: ignore[union-attr]
            _, fields, media, _ = body.split(b"--" + boundary)
            name = json.loads(split_head(fields))["name"]
            body = split_head(media).removesuffix(b"\n").removesuffix(b"\r")
        if kind != "resumable":
            return self.store(name, body)
        if not self.is_allowed(name):
            return None
        number = str(next(self.server.numbers))
        self.server.uploads[number] = (name or json.loads(body)["name"], b"")
        location = f"{self.server.address}/upload/storage/v1/uploads/{number}"
        return self.send(200, {}, {"Location": location})

    def continue_upload(self, number: str, body: bytes) -> None:
        name, content = self.server.uploads[number]
        content += body
        self.server.uploads[number] = (name, content)
        if self.headers["Content-Range"].endswith("/*"):  # more follows
            return self.send(308, b"", {"Range": f"bytes=0-{len(content) - 1}"})
        return self.store(name, content)

    def store(self, name: str, content: bytes) -> None:
        if self.is_allowed(name):
            self.server.objects[name] = (content, next(self.server.numbers))
            self.send(200, self.describe(name))

    def send(self, status: int, content: Any = b"", headers: dict[str, str] | None = None) -> None:
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {**(headers or {}), **JSON}
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


JSON = {"Content-Type": "application/json"}


def error(message: str) -> dict[str, Any]:
    """Return the body of an error."""
    return {"error": {"message": message}}


def split_head(part: bytes) -> bytes:
    """Return the body of a part of a multipart message."""
    end = min(at for mark in (b"\n\n", b"\r\n\r\n") if (at := part.find(mark) + 1))
    return part[end - 1 :].lstrip(b"\r\n")
