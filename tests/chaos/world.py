"""What may surround a process: little memory, small files, no rights to spare, clocks that jump, a death to come."""

import ctypes
import datetime
import os
import resource
import signal
import sys
import time
from pathlib import Path

CAPABILITIES_3 = 0x20080522  # the version of the structures, of linux/capability.h
HOUR, YEAR = 3600.0, 365 * 86400.0


def memory(mib: int) -> None:
    """So much more than it holds now."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + mib * 2**20,) * 2)


def seconds(cpu: int) -> None:
    """So many of computing and no more, from its beginning on."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))


def files(kib: int) -> None:
    """None larger than this: what a quota does, where no disk can be mounted."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024,) * 2)


def no_capabilities() -> None:
    """None of those with which root writes where it must not; other users have none."""
    header, none = (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def terminal() -> None:
    """One of its own, as far as signals go: what is sent to the process's group reaches it and its children."""
    os.setsid()


def clock(*jumps: float) -> None:
    """Every look at the time of day is off by the next of these seconds, and again from the first."""
    real, looks = time.time, 0

    def jumped() -> float:
        nonlocal looks
        looks += 1
        return real() + jumps[looks % len(jumps)]

    class Jumped(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Jumped":
            return cls.fromtimestamp(jumped(), tz)

    time.time = jumped
    for name, module in list(sys.modules.items()):
        if name.startswith("bench.") and getattr(module, "datetime", None) is datetime.datetime:
            module.datetime = Jumped  # type: ignore[attr-defined]


def dies(write: int) -> None:
    """Killed as soon as its n-th file is in place, or just before for an odd n."""
    real, done = os.replace, 0

    def replace(source: str, target: str | Path) -> None:
        nonlocal done
        done += 1
        if done == write and write % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
        if done == write:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace
