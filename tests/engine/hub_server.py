"""The few routes of the Hugging Face Hub that a model's download asks, on 127.0.0.1."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "owner/gated"


class Hub(ThreadingHTTPServer):
    """Serves one folder a model; ``asked`` has every request's line and ``tokens`` its token."""

    def __init__(self, models: Mapping[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.asked: list[str] = []
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        # A data set's routes are a model's under another name.
        path = path.replace("/api/datasets/", "/api/models/").replace("/datasets/", "/")
        self.server.asked.append(f"{self.command} {path}")
        self.server.tokens.add(self.headers.get("Authorization", ""))
        for repo, folder in self.server.models.items():
            if path.startswith(f"/api/models/{repo}/tree/"):
                return self._json(self._tree(folder))
            if path.startswith(f"/api/models/{repo}"):
                return self._info(repo, folder, path.partition("/revision/")[2])
            if path.startswith(f"/{repo}/resolve/"):
                return self._file(repo, folder / path.split("/", 5)[5])
        return self._json({"error": "Repository not found"}, 404, "RepoNotFound")

    def _info(self, repo: str, folder: Path, revision: str) -> None:
        if revision not in ("", "main", COMMIT):
            return self._json({"error": "Invalid rev id"}, 404, "RevisionNotFound")
        siblings = [{"rfilename": row["path"], "size": row["size"]} for row in self._tree(folder)]
        return self._json({"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []})

    def _tree(self, folder: Path) -> list[dict[str, object]]:
        return [
            {
                "type": "file",
                "path": str(file.relative_to(folder)),
                "size": file.stat().st_size,
                "oid": _etag(file),
            }
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        ]

    def _file(self, repo: str, file: Path) -> None:
        if repo == GATED:
            return self._json({"error": "gated"}, 403, "GatedRepo")
        if not file.is_file():
            return self._json({"error": "no such file"}, 404, "EntryNotFound")
        body = file.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{_etag(file)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        return None

    def _json(self, value: object, status: int = 200, code: str = "") -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()  # noqa: S324  # as git names a file


@contextlib.contextmanager
def serving(models: Mapping[str, Path]) -> Iterator[Hub]:
    """A Hub with these models, for as long as this takes."""
    with Hub(models) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
