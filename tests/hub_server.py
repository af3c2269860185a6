"""A local Hugging Face Hub: the endpoints that an upload uses, and their failures.

It stores what a client commits, checks requests (token, LFS size and hash, that a commit names
only objects that arrived) and can fail in the middle of a request. Large files arrive by LFS, or
by Xet as far as a file of one block needs it.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_loopbackTokenThatMustNeverBePrinted"
XET_TOKEN = "token-of-the-xet-storage"
USER = "somebody"


class Hub:
    """State of the server; ``with Hub() as hub`` runs it in a thread.

    Attributes:
        files: repository id -> path -> content, as committed.
        objects: LFS objects by SHA-256 that have arrived whole.
        commits: repository id -> number of commits.
        requests: number of requests of each ``(method, kind)``.
        fail: called with ``(method, kind, count)`` before an answer; what it returns is
            an HTTP status to answer with, ``"drop"`` to break the connection in the
            middle of the body, ``"stall"`` to set ``stalled`` and read no further, or None.
        forbidden: repository ids that the token may not write to.
    """

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: Counter = Counter()
        self.requests: Counter = Counter()
        self.fail: Callable[[str, str, int], int | str | None] = lambda *request: None
        self.forbidden: set[str] = set()
        self.stalled = threading.Event()
        self.lock = threading.Lock()

    def __enter__(self) -> "Hub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    routes = [
        ("POST", "create", r"/api/repos/create"),
        ("POST", "validate", r"/api/validate-yaml"),
        ("GET", "tree", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/main"),
        ("GET", "info", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/main)?"),
        ("POST", "preupload", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/main"),
        ("POST", "batch", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
        ("PUT", "object", r"/objects/(?P<oid>[0-9a-f]{64})"),
        ("GET", "xet_token", r"/api/models/(?P<repo>[^/]+/[^/]+)/xet-write-token/main"),
        ("POST", "xorb", r"/xet/v1/xorbs/default/[0-9a-f]{64}"),
        ("POST", "shards", r"/xet/v1/shards"),
        ("POST", "commit", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/main"),
    ]

    def log_message(self, *arguments) -> None:
        pass

    def _answer(self, status: int, body: object = None, **headers: str) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        """The request's body, sent with a length or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _handle(self) -> None:
        path = self.path.partition("?")[0]
        matches = (
            (method, kind, re.fullmatch(pattern, path)) for method, kind, pattern in self.routes
        )
        found = [match for match in matches if match[0] == self.command and match[2]]
        if not found:
            self._body()
            return self._answer(404, {"error": f"no such endpoint: {self.command} {path}"})
        method, kind, match = found[0]
        with self.hub.lock:
            self.hub.requests[method, kind] += 1
            failure = self.hub.fail(method, kind, self.hub.requests[method, kind])
        if failure in ("drop", "stall"):
            self.rfile.read(1000)
            if failure == "stall":
                self.hub.stalled.set()
                self.rfile.read()
            self.close_connection = True
            return self.connection.close()
        body = self._body()
        if failure is not None:
            # A careless server that repeats the request's headers in its error.
            return self._answer(
                failure,
                {"error": f"failed on {self.headers.get('Authorization')}, {dict(self.headers)}"},
            )
        expected = {"object": None, "xorb": XET_TOKEN, "shards": XET_TOKEN}.get(kind, TOKEN)
        if self.headers.get("Authorization") != (expected and f"Bearer {expected}"):
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        with self.hub.lock:
            return getattr(self, f"_{kind}")(body, **match.groupdict())

    do_GET = do_POST = do_PUT = _handle  # noqa: N815

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or USER}/{asked['name']}"
        if repo in self.hub.forbidden:
            message = "You don't have the rights to create a model under this namespace"
            return self._answer(403, {"error": message})
        answer = {"url": f"{self.hub.url}/{repo}", "id": repo}
        if repo in self.hub.files:
            return self._answer(409, {**answer, "error": "You already created this model repo"})
        self.hub.files[repo] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        return self._answer(200, answer)

    def _validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        if not content.startswith("---\n"):
            return self._answer(400, {"errors": [{"message": "no metadata"}], "warnings": []})
        return self._answer(200, {"errors": [], "warnings": []})

    def _tree(self, body: bytes, repo: str) -> None:
        if repo not in self.hub.files:
            return self._answer(404, {"error": "no repo"}, X_Error_Code="RepoNotFound")
        files = self.hub.files[repo].items()
        listing = [
            {"type": "file", "path": path, "size": len(content), "oid": _oid(path, content)}
            for path, content in files
        ]
        return self._answer(200, listing)

    def _info(self, body: bytes, repo: str) -> None:
        if repo not in self.hub.files:
            return self._answer(404, {"error": "no repo"}, X_Error_Code="RepoNotFound")
        return self._answer(200, {"id": repo, "sha": "0" * 40, "siblings": []})

    def _preupload(self, body: bytes, repo: str) -> None:
        remote = self.hub.files[repo]
        answer = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if _is_lfs(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": _oid(file["path"], remote[file["path"]]) if file["path"] in remote else None,
            }
            for file in json.loads(body)["files"]
        ]
        self._answer(200, {"files": answer})

    def _batch(self, body: bytes, repo: str) -> None:
        objects = []
        for item in json.loads(body)["objects"]:
            if item["oid"] not in self.hub.objects:
                href = f"{self.hub.url}/objects/{item['oid']}"
                item["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(item)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _object(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer(400, {"error": "content does not match its hash"})
        self.hub.objects[oid] = body
        return self._answer(200)

    def _xet_token(self, body: bytes, repo: str) -> None:
        expires = int(time.time()) + 3600
        answer = {"accessToken": XET_TOKEN, "exp": expires, "casUrl": f"{self.hub.url}/xet"}
        self._answer(200, answer)

    def _xorb(self, body: bytes) -> None:
        """Keep a block of one file's chunks, each a header of 8 bytes and its data.

        Only the layout that incompressible data has: version 0, stored as it is.
        """
        content, start = b"", 0
        while body[start : start + 1] == b"\0":
            size = int.from_bytes(body[start + 1 : start + 4], "little")
            assert body[start + 4] == 0
            content += body[start + 8 : start + 8 + size]
            start += 8 + size
        self.hub.objects[hashlib.sha256(content).hexdigest()] = content
        self._answer(200, {"was_inserted": True})

    def _shards(self, body: bytes) -> None:
        self._answer(200, {"result": 1})

    def _commit(self, body: bytes, repo: str) -> None:
        files = dict(self.hub.files[repo])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                content = self.hub.objects.get(value["oid"])
                if content is None or len(content) != value["size"]:
                    return self._answer(400, {"error": f"{value['path']} was never uploaded"})
                files[value["path"]] = content
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.files[repo] = files
        self.hub.commits[repo] += 1
        answer = {"commitUrl": f"{self.hub.url}/{repo}/commit/1", "commitOid": "1" * 40}
        return self._answer(200, {**answer, "success": True, "hookOutput": ""})


def _is_lfs(path: str) -> bool:
    return path.endswith(".safetensors")


def _oid(path: str, content: bytes) -> str:
    """Git's name of the file: SHA-256 of an LFS file, SHA-1 of the blob of any other."""
    if _is_lfs(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
