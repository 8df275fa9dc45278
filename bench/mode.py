"""How a network is run: its arithmetic, the layout of its images in memory, and what runs it."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.checkpoints.base import replica
from bench.errors import UsageError

Precision = Literal["fp64", "fp32", "tf32", "fp16", "bf16"]
Layout = Literal["contiguous", "channels_last"]
Backend = Literal["eager", "compile", "cuda_graph"]
WEIGHTS = {"fp64": torch.float64, "fp16": torch.float16, "bf16": torch.bfloat16}  # float32 for the others
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
AMPERE = (8, 0)  # the first GPUs that know tf32 and bf16
GRAPHS = 64  # that torch may compile a function to, one a batch size; beyond 8 it would quietly run it as it is


@dataclass(frozen=True)
class Mode:
    """The precision is the network's alone: states are float64 for fp64 and float32 for all others.

    Under `compile` the network is compiled; under `cuda_graph` a whole trajectory is captured once and replayed.
    """

    precision: Precision = "fp32"
    layout: Layout = "contiguous"
    backend: Backend = "eager"

    @property
    def states(self) -> torch.dtype:
        return torch.float64 if self.precision == "fp64" else torch.float32

    @property
    def dtype(self) -> str:
        """The states' dtype by name."""
        return str(self.states).removeprefix("torch.")

    def to_dict(self) -> dict[str, str]:
        """What records say of it."""
        return asdict(self) | {"dtype": self.dtype}

    def identity(self) -> dict[str, str]:
        """What enters a cell's key: nothing of what is usual, so that keys outlive new axes."""
        usual = {"precision": ("fp32", "fp64"), "layout": ("contiguous",), "backend": ("eager",)}
        return {"dtype": self.dtype} | {k: v for k, v in asdict(self).items() if v not in usual[k]}

    def check(self, device: torch.device, network: nn.Module) -> None:
        """Raises UsageError for what the device or the network cannot do."""
        cuda = device.type == "cuda"
        exact = any(tensor.dtype == torch.float64 for tensor in network.buffers())
        if exact and self.precision not in ("fp64", "fp32"):
            raise UsageError(f"precision = {self.precision}: this network is exact, in float64 whatever its states are")
        if self.precision == "tf32" and not (cuda and torch.cuda.get_device_capability(device) >= AMPERE):
            raise UsageError(f"precision = tf32: {device} has no such arithmetic, which NVIDIA GPUs since Ampere have")
        if self.precision == "bf16" and cuda and torch.cuda.get_device_capability(device) < AMPERE:
            raise UsageError(f"precision = bf16: {torch.cuda.get_device_name(device)} lacks it; give fp16 or fp32")
        if self.backend == "cuda_graph" and not cuda:
            raise UsageError(f"backend = cuda_graph: it needs an NVIDIA GPU, not {device}; give eager or compile")
        if self.backend == "compile" and not cuda and not _has_compiler():
            raise UsageError(
                "backend = compile: it needs a C++ compiler, and there is no g++ or clang++ here; give eager"
            )

    def ready(self, network: nn.Module, device: torch.device) -> Callable[..., Tensor]:
        """A copy of the network in this precision and layout on the device, compiled if that is asked for."""
        made = replica(network, device, WEIGHTS.get(self.precision, torch.float32))
        made = made.to(memory_format=FORMATS[self.layout])  # whatever it was loaded in
        if self.backend == "compile":
            dynamo: Any = torch._dynamo.config
            dynamo.recompile_limit, dynamo.fail_on_recompile_limit_hit = GRAPHS, True
            alone = {} if device.type == "cuda" else {"compile_threads": 1}  # GPUs are worth a pool
            made.compile(dynamic=False, options=alone)
        if device.type != "cuda":
            return made

        def call(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
            with self._arithmetic():
                return made(x, t, **cond)

        return call

    def place(self, x: Tensor) -> Tensor:
        """A state in this layout."""
        return x.contiguous(memory_format=FORMATS[self.layout]) if x.ndim == 4 else x

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """Float32 products are exact or tf32 within, whatever this process had before."""
        backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
        before = [backend.allow_tf32 for backend in backends]
        for backend in backends:
            backend.allow_tf32 = self.precision == "tf32"
        try:
            yield
        finally:
            for backend, allowed in zip(backends, before, strict=True):
                backend.allow_tf32 = allowed


def _has_compiler() -> bool:
    return any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++")))
