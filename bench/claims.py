"""Which process works on what, where several share a results folder: locks that end with the process that holds them.

All are bytes of one file, so that a folder of a thousand cells holds one lock file.  They hold between machines too
where the file system has locks.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.errors import UsageError
from bench.files import sha256


class Claims:
    """Claims of this process on names; open it once a process and folder, since closing the file ends all of them."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError where the file system has no locks."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self.take("")
        except OSError as error:
            raise UsageError(f"{path.parent}: its file system has no locks ({error.strerror}); give another") from error
        self.drop("")

    def take(self, name: str) -> bool:
        """Claim a name; False where another process has it."""
        return self._take(1, _place(name))

    def take_all(self) -> bool:
        """Claim every name until this is closed; False where another process has any."""
        return self._take(0, 0)  # a length of 0 is to the end, and beyond

    def _take(self, length: int, start: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def drop(self, name: str) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(name))

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Wait for a name, and have it for a while."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, _place(name))
        try:
            yield
        finally:
            self.drop(name)

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._file)


def _place(name: str) -> int:
    """The byte that stands for a name: one of 2^62, so that two names hardly share one."""
    return int(sha256(name.encode())[:16], 16) >> 2
