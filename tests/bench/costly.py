"""Checkpoints whose networks cost, fail and die as measuring must survive it, and sweeps of them."""

from pathlib import Path
from typing import Any

from bench.cells import Subjects, cells
from bench.checkpoints import load
from bench.runner import Job, prepare
from bench.spec import Cell, Sweep

PLUGIN = """
import os
import time
from dataclasses import replace

import torch
from torch import nn

from bench.checkpoints import load


class Network(nn.Module):
    def __init__(self, do):
        super().__init__()
        self.inner, self.do = load("gmm").network, do

    def forward(self, x, t, y):
        self.do(x, t)
        return self.inner(x, t, y)


def with_network(do, **others):
    return replace(load("gmm"), network=Network(do), **others)


def sleeping():
    return with_network(lambda x, t: time.sleep(0.004))


def allocating():
    return with_network(lambda x, t: torch.ones(50 * 2**20 // 4).sum())


def greedy():
    def do(x, t):
        if len(x) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    return with_network(do)


def dying():
    def do(x, t):
        if len(x) > 4:
            os.kill(os.getpid(), 9)
    return with_network(do)


def is_odd_one(x, t):
    return len(x) == 1 and abs(float(t[0]) - 0.5) < 1e-6


def failing_at_half():
    def do(x, t):
        if is_odd_one(x, t):
            raise MemoryError("no room for it")
    return with_network(do)


def dying_at_half():
    def do(x, t):
        if is_odd_one(x, t):
            os.kill(os.getpid(), 9)
    return with_network(do)


def with_vae():
    def decode(device, batch):
        from diffusers import AutoencoderKL
        torch.manual_seed(0)
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).to(device)
        z = torch.zeros(batch, 4, 8, 8, device=device)
        return lambda: vae.decode(z)
    return replace(load("gmm"), apart={"vae": decode})
"""


def cells_of(checkpoint: str, *names: str, **others: Any) -> list[Cell]:
    fields = {"checkpoint": checkpoint, "solvers": names or ("ddim", "dpmpp_2m"), "nfe": (5,), "samples": 4}
    return cells(Sweep(**(fields | others)), Subjects(load(checkpoint)))[0]


def job(folder: Path, checkpoint: str, *names: str) -> Job:
    """A sweep whose cells have samples and no measurement yet."""
    fields: dict[str, Any] = {"checkpoint": checkpoint, "solvers": names or ("ddim",), "nfe": (5,), "samples": 4}
    latency = {"seconds": 0.01, "max_batch": 64}
    made = prepare(Sweep(**fields, metrics=("frechet_exact",), latency=latency), folder / "run", "cpu")
    made.open()
    assert made.run("a test", lambda cell, samples: None) == []
    return made
