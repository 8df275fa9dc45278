"""Servers on this machine: one that hands out files with ranges and can misbehave, and one that speaks as the hub."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {
    "gated": (403, "GatedRepo"),
    "not there": (404, "RepoNotFound"),
    "no revision": (404, "RevisionNotFound"),
}


@dataclass
class Site:
    """Files by path, and how they are handed out; `asked` is every request's path and range."""

    files: dict[str, bytes]
    cuts: list[int] = field(default_factory=list)  # break the next connections after so many bytes
    breaks: dict[str, list[int]] = field(default_factory=dict)  # the same, of one file of the hub
    ranges: bool = True
    marks: bool = True  # whether it sends an ETag
    claims: int | None = None  # a Content-Length that is not so
    hold: threading.Event | None = None  # wait for it after half a file
    status: int = 200
    refuses: str = ""  # how the hub answers for its repository: "gated", or "not there"
    sizes: dict[str, int] = field(default_factory=dict)  # of files that the hub tells another size of
    wrong: dict[str, bytes] = field(default_factory=dict)  # files of which the hub tells another digest
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    site: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        site, path = self.site, unquote(urlsplit(self.path).path)
        site.asked.append((path, self.headers.get("Range")))
        if site.status != 200 or path not in site.files:
            self.send_error(site.status if site.status != 200 else 404)
            return
        self.hand_out(site.files[path])

    def hand_out(self, data: bytes, **headers: str) -> None:
        site, mark = self.site, f'"{hashlib.sha256(data).hexdigest()}"'
        begin = self.begin(data, mark)
        self.send_response(200 if begin is None else 206)
        if begin is not None:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        if site.marks:
            self.send_header("ETag", mark)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        rest = data[begin or 0 :]
        self.send_header("Content-Length", str(site.claims or len(rest)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if site.hold:
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            site.hold.wait(300)
        cut = site.cuts.pop(0) if site.cuts else None
        self.wfile.write(rest[len(rest) // 2 :] if site.hold else rest[:cut])
        self.close_connection = True

    def begin(self, data: bytes, mark: str) -> int | None:
        """Where the range that is asked for begins; None for the whole file."""
        wanted = self.headers.get("Range")
        if not (self.site.ranges and wanted) or self.headers.get("If-Range", mark) != mark:
            return None
        return int(wanted.removeprefix("bytes=").partition("-")[0])


class Hub(Handler):
    """As much of the hub as bringing a repository needs: every file of the site is one of owner/name's at COMMIT."""

    def do_GET(self) -> None:
        site, parts = self.site, urlsplit(self.path)
        path = unquote(parts.path)
        site.asked.append((path, self.headers.get("Range")))
        if site.refuses in REFUSALS:
            self.refuse(*REFUSALS[site.refuses])
        elif path.startswith("/api/models/owner/name"):
            what = path.removeprefix("/api/models/owner/name").split("/")[1]
            self.answer(self.tree() if what == "tree" else self.about("blobs" in parse_qs(parts.query)))
        elif path.startswith("/owner/name/resolve/"):
            name = path.removeprefix("/owner/name/resolve/").partition("/")[2]
            if name in site.files:
                if self.command == "GET" and name in site.breaks:
                    site.cuts = site.breaks.pop(name)
                self.hand_out(site.files[name], X_Repo_Commit=COMMIT)
            else:
                self.refuse(404, "EntryNotFound")
        else:
            self.refuse(404, "RepoNotFound")

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def about(self, blobs: bool) -> dict[str, object]:
        names = [
            {"rfilename": f["path"]} | ({"size": f["size"], "lfs": f.get("lfs")} if blobs else {}) for f in self.tree()
        ]
        return {"id": "owner/name", "sha": COMMIT, "siblings": names, "private": False, "gated": False}

    def tree(self) -> list[dict[str, object]]:
        found = []
        for path, data in self.site.files.items():
            sha, size = (
                hashlib.sha256(self.site.wrong.get(path, data)).hexdigest(),
                self.site.sizes.get(path, len(data)),
            )
            about = {"type": "file", "path": path, "size": size, "oid": hashlib.sha1(data).hexdigest()}
            large = {"oid": sha, "sha256": sha, "size": size, "pointerSize": 134}
            found.append(about | ({"lfs": large} if path.endswith((".bin", ".safetensors")) else {}))
        return found


class Server(ThreadingHTTPServer):
    """One that clients may leave as they like: tests kill them."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextmanager
def serving(site: Site, handler: type[Handler] = Handler) -> Iterator[Site]:
    """The site at `site.url`, in a thread."""
    server = Server(("127.0.0.1", 0), type("Bound", (handler,), {"site": site}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
