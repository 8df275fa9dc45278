"""Files of weights that others publish: where they may lie, which they are, and how they get here."""

import hashlib
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from bench.errors import UsageError

PATIENCE = 4.0  # seconds to wait for a server before this machine counts as offline
WITHOUT = "frechet_pixels, trajectory, and kid, mmd, energy, sliced_wasserstein, diversity or prdc with features=pixels"


@dataclass(frozen=True)
class WeightsFile:
    """A published file: its name and address, the SHA-256 of what lies there, and whose features it is for.

    It is kept where torch hub keeps such files; `also` are further folders where packages put it, and where anybody may
    put another: there only the published file counts.  `alone` says that the sweep's `inception_weights` may name this
    very file, not only a folder with it.
    """

    name: str
    url: str
    digest: str
    also: tuple[Path, ...] = ()
    alone: bool = True

    @property
    def home(self) -> Path:
        """The folder it belongs in."""
        return hub() / "checkpoints"

    def find(self, given: Path | None) -> Path | None:
        """Where it is: in the file or folder that the user gave, or where packages keep it; None when nowhere.

        Raises UsageError when there is nothing at the path that was given.
        """
        if given is not None and not given.exists():
            raise UsageError(f"inception_weights: {given} is not there: give {self.name}, or the folder it is in")
        if given is not None and given.is_file():
            if self.alone:
                return given
            given = None
        own = [folder / self.name for folder in (given, self.home) if folder]
        others = (folder / self.name for folder in self.also)
        found = [path for path in own if path.is_file()]
        return next(iter(found), None) or next((p for p in others if p.is_file() and digest_of(p) == self.digest), None)

    def expect(self, layer: str) -> str:
        """The digest of what a download would bring; raises UsageError when this machine cannot get it."""
        if not reachable(self.url):
            option = "--inception-weights PATH" if self.alone else "--inception-weights FOLDER"
            raise UsageError(
                f"features {layer!r} need {self.name}, which is not here, and {urlsplit(self.url).hostname} does not "
                f"answer: put it into {self.home} or give {option}; without it work {WITHOUT}"
            )
        return self.digest

    def download(self) -> Path:
        """Bring it into its home, whole or not at all, and checked; raises UsageError."""
        path = self.home / self.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(self.url, str(path), hash_prefix=self.digest)
        except (OSError, RuntimeError) as error:  # a RuntimeError when it is another file
            raise UsageError(f"{self.url} could not be brought to {path}: {in_short(error)}") from error
        return path


def hub() -> Path:
    """Torch hub's folder, which every package that this project takes networks from uses: $TORCH_HOME/hub."""
    return Path(torch.hub.get_dir())


@cache
def reachable(url: str) -> bool:
    """Whether somebody answers at this address; asked once, in a thread because names may take minutes to fail."""
    answered = threading.Event()

    def ask() -> None:
        request = Request(url, method="HEAD", headers={"User-Agent": "torch.hub"})
        with suppress(OSError, HTTPException, ValueError), urlopen(request, timeout=PATIENCE):
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answered.is_set()


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, read once as long as its size and time stay the same; raises UsageError."""
    try:
        about = path.stat()
        return _digest(path.resolve(), about.st_size, about.st_mtime_ns)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; one that would import anything else is refused with a UsageError."""
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no file of tensors fails in any way
        found = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it asks to import {found[1]}" if found else "it is no file of tensors"
        raise UsageError(f"{path} is refused: {why}; give a file of tensors alone") from error
    return state


def in_short(error: Exception) -> str:
    """An error's message in one line that is not long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:159]}…"
