"""What a number was measured on: versions, device, threads, the code's commit."""

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "fewstep", "torch", "torchvision", "torch-fidelity", "clean-fid", "pillow", "numpy", "scipy", "pot", "scikit-learn",
    "diffusers",
)  # fmt: skip


def environment(device: torch.device) -> dict[str, Any]:
    """JSON-able provenance of anything computed in this thread on `device`."""
    return _fixed(device) | {"threads": torch.get_num_threads()}


@cache
def _fixed(device: torch.device) -> dict[str, Any]:
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "commit": _commit(),
        "device": _name(device),
    }


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU, {models[0] if models else platform.machine()}"


def _commit() -> str | None:
    """The commit of the source tree, with + when it has uncommitted changes; None outside a git checkout."""
    here = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
