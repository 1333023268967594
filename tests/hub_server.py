"""A local HTTP server that speaks the Hugging Face Hub's download endpoints, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GOOD_TOKEN = "hf_good"
OTHER_TOKEN = "hf_without_access"


@dataclass
class Repo:
    """One repository: file contents by name; `gated` and `private` need GOOD_TOKEN."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    revisions: tuple[str, ...] = ("main", "v2", COMMIT)
    # Bytes after which the connection is cut, one entry for each coming GET of the file.
    cuts: dict[str, list[int]] = field(default_factory=dict)
    # Bytes after which a GET of the file goes on only when the client has left.
    stalls: dict[str, int] = field(default_factory=dict)
    # Whether Range headers are respected.
    ranges: bool = True
    # Status with which every request of the file listing is answered.
    broken: int | None = None


class HubServer:
    """`with HubServer({"owner/name": Repo(...)}) as hub:` listens on hub.url.

    hub.requests logs (method, path, Range header).
    """

    def __init__(self, repos: dict[str, Repo]) -> None:
        self.repos = repos
        self.requests: list[tuple[str, str, str | None]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_class(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def downloads(self, name: str) -> list[str | None]:
        """The Range headers of all GETs of the file `name`."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(f"/{name}")]


class _Answer(Exception):
    """An error answer with the headers by which the Hub tells its kind."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def _handler_class(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            try:
                if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
                    self._listing(match[1], match[2] or "revision", match[3] or "main")
                elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                    self._file(match[1], match[2], match[3])
                else:
                    raise _Answer(404, None, "Not found")
            except _Answer as answer:
                self._send(answer.status, {"error": str(answer)}, answer)

        def _repo(self, name: str, revision: str, content: bool) -> Repo:
            repo = hub.repos.get(name)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token and token not in (GOOD_TOKEN, OTHER_TOKEN):
                raise _Answer(401, None, "Invalid credentials in Authorization header")
            if repo is None or (repo.private and token != GOOD_TOKEN):
                # The Hub does not tell a stranger whether a private repository exists.
                raise _Answer(404 if token else 401, "RepoNotFound", "Repository not found")
            if repo.gated and content and token != GOOD_TOKEN:
                raise _Answer(403 if token else 401, "GatedRepo", "Access to this model is restricted")
            if revision not in repo.revisions:
                raise _Answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return repo

        def _listing(self, name: str, kind: str, revision: str) -> None:
            repo = self._repo(name, revision, content=False)
            if repo.broken:
                raise _Answer(repo.broken, None, "Service trouble")
            if kind == "tree":
                entries = [
                    {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                    for n, d in repo.files.items()
                ]
                self._send(200, entries)
                return
            siblings = [{"rfilename": n, "size": len(d), "blobId": "0"} for n, d in repo.files.items()]
            gated = "manual" if repo.gated else False
            self._send(
                200, {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "gated": gated}
            )

        def _file(self, name: str, revision: str, file: str) -> None:
            repo = self._repo(name, revision, content=True)
            if file not in repo.files:
                raise _Answer(404, "EntryNotFound", "Entry not found")
            data = repo.files[file]
            begin = 0
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            if match and repo.ranges:
                begin = int(match[1])
            self.send_response(206 if begin else 200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data) - begin))
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            cuts = repo.cuts.get(file)
            if cuts:
                self.wfile.write(data[begin : begin + cuts.pop(0)])
                self.close_connection = True
                self.connection.close()
                return
            if stall := repo.stalls.get(file):
                self.wfile.write(data[begin : begin + stall])
                self.connection.recv(1)
                self.close_connection = True
                return
            self.wfile.write(data[begin:])

        def _send(self, status: int, value: object, answer: _Answer | None = None) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            if answer is not None:
                self.send_header("X-Error-Message", str(answer))
                if answer.code:
                    self.send_header("X-Error-Code", answer.code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler
