"""A small disk of one's own, in a mount namespace where everybody may mount."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.nest import Nest, nest

ALONE = ("unshare", "--user", "--map-root-user", "--mount")


@dataclass(frozen=True)
class Disk:
    """Mounted for the processes of a nest at `place`, and reached from here by another path."""

    nest: Nest
    place: Path

    @property
    def seen(self) -> Path:
        return Path(f"/proc/{self.nest.pid}/root{self.place}")

    def leave(self, kib: int) -> None:
        """Fill it up to so much room."""
        self.empty()
        with (self.seen / ".ballast").open("wb", buffering=0) as ballast:
            while True:
                try:
                    ballast.write(bytes(4096))
                except OSError:
                    break
            ballast.truncate(max(0, ballast.tell() // 4096 * 4096 - kib * 1024))

    def empty(self) -> None:
        (self.seen / ".ballast").unlink(missing_ok=True)

    def mount(self, how: str) -> None:
        """Again, as "ro" or "rw"."""
        inside = ("nsenter", "--target", str(self.nest.pid), "--user", "--mount", "--preserve-credentials")
        subprocess.run([*inside, "mount", "-o", f"remount,{how}", self.place], check=True)


def mountable() -> str:
    """Why no disk can be mounted here; nothing when one can."""
    try:
        tried = subprocess.run([*ALONE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    except FileNotFoundError as error:
        return str(error)
    return " ".join(tried.stderr.split())


@contextmanager
def disk(place: Path, mib: int) -> Iterator[Disk]:
    """One of so many MiB, with a nest of processes that have it at an empty folder."""
    script = f'mount -t tmpfs -o size={mib}m,mode=755 tmpfs "$0" && exec "$@"'
    with nest((*ALONE, "sh", "-c", script, str(place))) as made:
        yield Disk(made, place)
