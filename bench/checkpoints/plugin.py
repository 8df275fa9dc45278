"""Somebody's own network: a function that returns a Checkpoint, or just a Denoiser."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import solvers
from bench.checkpoints.base import Checkpoint
from bench.errors import UsageError


class Cast(nn.Module):
    """A network of whatever precision that takes and gives states of another: times stay as they are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        own = next((p.dtype for p in self.network.parameters()), x.dtype)
        told = {k: v.to(own) if v.is_floating_point() else v for k, v in cond.items()}
        out: Tensor = self.network(x.to(own), t, **told)
        return out.to(x.dtype)


def opened(name: str, make: Callable[..., Any], options: Mapping[str, solvers.Option]) -> Checkpoint:
    """What the function called `name` makes, given the options as keyword arguments; raises UsageError."""
    try:
        found = make(**options)
    except UsageError:
        raise
    except Exception as error:  # somebody's own code may fail in any way
        raise UsageError(f"checkpoint {name!r} cannot be made: {type(error).__name__}: {error}") from error
    if isinstance(found, Checkpoint):
        return found
    if isinstance(found, solvers.Denoiser):
        return of_denoiser(name, found, options)
    kinds = "a solvers.Denoiser or a bench.checkpoints.Checkpoint"
    raise UsageError(f"checkpoint {name!r} gave a {type(found).__name__}, not {kinds}")


def of_denoiser(name: str, denoiser: solvers.Denoiser, options: Mapping[str, solvers.Option]) -> Checkpoint:
    """A denoiser's network as a checkpoint: its attributes `shape` and, if it takes labels, `classes` say the rest.

    The options that it was made with belong to its digest: they may decide what no weight shows.
    """
    network, shape = denoiser.network, getattr(denoiser.network, "shape", None)
    if not isinstance(network, nn.Module):
        raise UsageError(f"checkpoint {name!r}: its network is a {type(network).__name__}, not a torch.nn.Module")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise UsageError(f"checkpoint {name!r}: its network must say what it makes, as in network.shape = (3, 32, 32)")
    if denoiser.guidance is not None:
        raise UsageError(f"checkpoint {name!r}: guidance belongs to the sweep; give a Denoiser without it")
    classes = getattr(network, "classes", 0)
    if not isinstance(classes, int) or classes < 0:
        raise UsageError(f"checkpoint {name!r}: network.classes = {classes!r}: give how many classes it knows")
    return Checkpoint(
        name=name.rpartition("/")[2],
        digest=_digest(network, denoiser, [shape, classes, dict(options)]),
        network=Cast(network).eval().requires_grad_(False),
        schedule=denoiser.schedule,
        predicts=denoiser.predicts,
        shape=shape,
        classes=(1 / classes,) * classes if classes else (),
        kind="image" if len(shape) == 3 and shape[0] in (1, 3) else "vector",
    )


def _digest(network: nn.Module, denoiser: solvers.Denoiser, told: list[Any]) -> str:
    """Of the weights, by name, of what is made of their output, and of what else was told."""
    found = hashlib.sha256()
    about = [type(network).__name__, denoiser.schedule.to_dict(), denoiser.predicts, *told]
    found.update(json.dumps(about, sort_keys=True).encode())
    for key, tensor in sorted(network.state_dict().items()):
        found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
