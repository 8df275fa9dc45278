"""One file over HTTP, whole or not at all: what a broken download left goes on where it was."""

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

from bench.checkpoints.manifest import in_bytes
from bench.errors import UsageError
from bench.files import nearest_folder
from bench.metrics.weights import in_short

PATIENCE = 20.0  # seconds of silence after which a server counts as gone
TRIES = 5  # connections that may break midway before it is left to the user
CHUNK = 1 << 20
AGENT = {"User-Agent": "fewstep", "Accept-Encoding": "identity"}

OnBytes = Callable[[int, int | None], None]  # bytes here, bytes in all if known


@dataclass(frozen=True)
class Partial:
    """What has come of a file, `<name>.part`, and beside it the server's mark of the version that it is a part of."""

    path: Path

    @property
    def mark(self) -> Path:
        return self.path.with_name(f"{self.path.name}.version")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def range(self) -> dict[str, str]:
        """The headers that ask for the rest, but for all if the file has changed; none where nothing is here.

        The last byte is asked for again, since there may be no other, and of none there is no range.
        """
        if not self.size or not self.mark.is_file():
            return {}
        return {"Range": f"bytes={self.size - 1}-", "If-Range": self.mark.read_text()}

    def begin(self, response: HTTPResponse) -> None:
        """Start anew, of the version that this response is of."""
        self.path.write_bytes(b"")
        version = response.headers.get("ETag", "")
        strong = version if version and not version.startswith("W/") else response.headers.get("Last-Modified")
        if strong:
            self.mark.write_text(strong)
        else:
            self.mark.unlink(missing_ok=True)  # without a mark nothing can be gone on with

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.mark.unlink(missing_ok=True)


def fetch(url: str, path: Path, on_bytes: OnBytes) -> Partial:
    """Bring all of a file beside `path`, as its part; raises UsageError, and keeps the part, when it cannot."""
    part = Partial(path.with_name(f"{path.name}.part"))
    nearest_folder(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(TRIES):
            if _go_on(url, part, on_bytes):
                return part
    except OSError as error:
        raise UsageError(f"{part.path} cannot be written: {in_short(error)}; what came is kept") from error
    kept = f"{in_bytes(part.size)} are kept, and the same command goes on"
    raise UsageError(f"{url}: the connection broke {TRIES} times; {kept}")


def _go_on(url: str, part: Partial, on_bytes: OnBytes) -> bool:
    """Take what one connection brings; whether that was all.  Raises UsageError; OSError when the disk refuses."""
    with closing(_ask(url, part)) as response:
        if response.status == 206:
            os.truncate(part.path, part.size - 1)
        else:
            part.begin(response)
        here, length = part.size, response.headers.get("Content-Length")
        total = None if length is None else here + int(length)
        check_room(part.path.parent, (total or here) - here)
        with part.path.open("ab") as file:
            while chunk := _read(response):
                file.write(chunk)
                here += len(chunk)
                on_bytes(here, total)
            file.flush()
            os.fsync(file.fileno())
    return chunk is not None and total in (None, here)


def _ask(url: str, part: Partial) -> HTTPResponse:
    """The answer to a request for what is not here yet; raises UsageError for any other."""
    wanted = part.range()
    try:
        opener = build_opener()  # urlopen keeps the proxies that it found when it was first used
        response: HTTPResponse = opener.open(Request(url, headers=AGENT | wanted), timeout=PATIENCE)
    except HTTPError as error:
        if error.code == 416 and wanted:  # the file has become shorter than what is here
            part.drop()
            return _ask(url, part)
        raise UsageError(f"{url}: the server answers {error.code} {error.reason}") from error
    except (HTTPException, OSError) as error:
        why = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
        raise UsageError(f"no network: {urlsplit(url).hostname} does not answer ({in_short(why)})") from error
    begins = f"bytes {part.size - 1}-"
    if response.status == 206 and not (response.headers.get("Content-Range") or "").startswith(begins):
        response.close()
        raise UsageError(f"{url}: the server sent another part of the file than it was asked for")
    return response


def _read(response: HTTPResponse) -> bytes | None:
    """The next bytes, none at the end; None where the connection breaks."""
    try:
        return response.read(CHUNK)
    except (HTTPException, OSError):
        return None


def check_room(folder: Path, needed: int) -> None:
    """Raises UsageError unless so many bytes are free."""
    free = shutil.disk_usage(nearest_folder(folder)).free
    if needed > free:
        raise UsageError(
            f"{in_bytes(needed)} are to come and {folder} has {in_bytes(free)} free: make room, or set $FEWSTEP_CACHE"
        )
