"""What this machine can run, on one screen."""

import os
import platform
import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import get_args

import psutil
import torch
from torch import nn

from bench.checkpoints import CHECKPOINTS
from bench.checkpoints.manifest import Entry, entries, in_bytes
from bench.environment import environment
from bench.errors import UsageError
from bench.files import cache_folder, nearest_folder
from bench.metrics.features import FEATURES
from bench.metrics.weights import reachable
from bench.mode import Backend, Mode, Precision

PACKAGES = ("torch", "diffusers", "transformers", "peft", "huggingface_hub", "numpy")
NETWORKS = ("inception", "inception_clean", "inception_legacy_tf", "inception_legacy_pt", "dinov2", "clip")
HUB = "https://huggingface.co"
ROOM = 0.8  # of the memory that weights may take: the rest is for what passes through the network
WIDTH = 100


@dataclass(frozen=True)
class Place:
    """Something networks run on: its name, and its memory in bytes, all and free now."""

    device: torch.device
    name: str
    memory: int
    free: int


def print_examination() -> None:
    """Versions, devices, disk, networks, the hub, checkpoints, and which of them fit."""
    here, rest = _split(entries())
    found = places()
    _say("fewstep", f"{version('fewstep')}; python {platform.python_version()}, " + ", ".join(map(_version, PACKAGES)))
    for place in found:
        _say(str(place.device), f"{place.name}; {in_bytes(place.memory)}, {in_bytes(place.free)} of it free")
        _say("", runs(place.device))
    _say("disk", "; ".join(_room(path) for path in (cache_folder(), _hub_cache(), Path(torch.hub.get_dir()))))
    _say("hub", f"{HUB} {'answers' if _online() else 'does not answer: what is not here cannot be pulled'}")
    lacking = {name: FEATURES.get(name).missing(None) for name in NETWORKS}
    _say("features", ", ".join(name for name in NETWORKS if not lacking[name]) or "none of the published networks")
    _say("  missing", ", ".join(name for name in NETWORKS if lacking[name]) or "nothing")
    _say("here", ", ".join([*CHECKPOINTS.names(), *map(_sized, here)]))
    _say("pullable", f"{len(rest)} more of the manifest, see `fewstep ls checkpoints`")
    for place in found:
        _say(f"fits {place.device}", "; ".join(fits([*here, *rest], place.memory)))
    _say("", f"A network fits where its weights take {ROOM:.0%} of the memory or less; batches take the rest.")


def places() -> list[Place]:
    """The CPU, and each GPU."""
    memory, threads = psutil.virtual_memory(), torch.get_num_threads()
    about = str(environment(torch.device("cpu"))["device"]).removeprefix("CPU, ")
    found = [
        Place(torch.device("cpu"), f"{about}, {os.cpu_count()} cores, {threads} in use", memory.total, memory.available)
    ]
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        free, total = torch.cuda.mem_get_info(device)
        major, minor = torch.cuda.get_device_capability(device)
        found.append(Place(device, f"{torch.cuda.get_device_name(device)}, capability {major}.{minor}", total, free))
    return found


def runs(device: torch.device) -> str:
    """The precisions and backends that sweeps can use on a device."""
    precisions = [p for p in get_args(Precision) if _can(Mode(precision=p), device)]
    backends = [e for e in get_args(Backend) if _can(Mode(backend=e), device)]
    return f"precision {', '.join(precisions)}; backend {', '.join(backends)}"


def _can(mode: Mode, device: torch.device) -> bool:
    try:
        mode.check(device, nn.Identity())
    except UsageError:
        return False
    return True


def fits(found: Iterable[Entry], memory: float) -> list[str]:
    """Which networks fit into so much memory: in float32, only in half precision, or not at all."""
    kinds: dict[str, list[str]] = {"in float32": [], "in fp16 or bf16 only": [], "not": [], "of unknown size": []}
    for entry in found:
        whole = None if entry.parameters is None else 4 * entry.parameters
        if whole is None:
            kinds["of unknown size"].append(entry.name)
        elif whole <= ROOM * memory:
            kinds["in float32"].append(entry.name)
        else:
            kind = "in fp16 or bf16 only" if whole / 2 <= ROOM * memory else "not"
            kinds[kind].append(f"{entry.name} ({in_bytes(whole / 2)} in fp16)")
    counted = ("in float32", "of unknown size")  # too many to name
    return [
        f"{len(names)} {kind}" if kind in counted else f"{kind} {', '.join(names)}"
        for kind, names in kinds.items()
        if names
    ]


def _split(found: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Entries whose files are here, and the others."""
    here = {entry.name for entry in found if entry.source.find()}
    return [e for e in found if e.name in here], [e for e in found if e.name not in here]


def _sized(entry: Entry) -> str:
    return entry.name + (f" ({in_bytes(4 * entry.parameters)} in float32)" if entry.parameters else "")


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def _room(path: Path) -> str:
    return f"{in_bytes(shutil.disk_usage(nearest_folder(path)).free)} free in {path}"


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _online() -> bool:
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and reachable(HUB)


def _say(what: str, text: str) -> None:
    """A paragraph behind its heading, broken between words."""
    lines = textwrap.wrap(text, WIDTH - 12, break_long_words=False, break_on_hyphens=False)
    for head, line in zip([what, *[""] * len(lines)], lines, strict=False):
        print(f"{head:11} {line}")
