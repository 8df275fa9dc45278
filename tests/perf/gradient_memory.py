"""What the gradient through a whole plan takes: python tests/perf/gradient_memory.py prints one table, in minutes.

Ten images through the UNet of DDPM on CIFAR-10, its weights drawn at random, on one CPU thread: the gradient of the
sample with respect to x_T and to every ratio of a DC-Solver plan, with every call recomputed on the way back or kept.
"""

import resource
import subprocess
import sys
import time
from dataclasses import asdict

import torch
from diffusers import UNet2DModel

import solvers
from solvers.dc_solver import Options, dc_solver
from solvers.gradient import run
from solvers.grid import make_grid
from solvers.tracer import Tracer

BATCH, CALLS = 10, 20
RUNS = ((5, True), (CALLS, True), (2, False), (5, False), (8, False))  # calls, and whether they are recomputed
GIB = 2**20  # in the kilobytes that the peak is told in


def unet() -> UNet2DModel:
    """The network of Ho et al. 2020, arXiv 2006.11239, as diffusers has it: 35.7 million weights."""
    return UNet2DModel(
        sample_size=32, layers_per_block=2, block_out_channels=(128, 256, 256, 256), attention_head_dim=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6,
    ).requires_grad_(False).eval()  # fmt: skip


def peak() -> float:
    """Most memory that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB


def measure(calls: int, recomputed: bool) -> str:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, schedule = unet(), solvers.VPDiscrete.linear()
    denoiser = solvers.Denoiser(lambda x, t: network(x, 1000 * t - 1).sample, schedule)
    before, begin = peak(), time.perf_counter()
    ratios = torch.ones(calls, dtype=torch.float64, requires_grad=True)
    grid, options = make_grid("uniform", schedule, calls), asdict(Options())
    used = [1.0, 1.0, *ratios[2:]][:calls]
    p = Tracer(grid, learned={"ratios": used, "times": grid.times, "grid": "uniform", "options": options})
    dc_solver.trace(p, grid, **options)
    x_T = torch.randn(BATCH, 3, 32, 32, requires_grad=True)
    x = run(p.instructions, denoiser, "data", x_T, checkpointed=recomputed)[p.instructions[-1].out]
    x.square().mean().backward()
    assert x_T.grad is not None
    assert x_T.grad.isfinite().all()
    return f"{before:.2f} {peak():.2f} {time.perf_counter() - begin:.0f}"


def main() -> None:
    print(f"Batch {BATCH}, {sum(w.numel() for w in unet().parameters()) / 1e6:.1f} million weights, 1 thread.\n")
    print("| calls | on the way back | peak, GiB | of it before the run | seconds |")
    print("| --- | --- | --- | --- | --- |")
    peaks = {}
    for calls, recomputed in RUNS:
        command = [sys.executable, __file__, str(calls), str(int(recomputed))]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        peaks[calls, recomputed] = float(told[1])
        print(f"| {calls} | {'recomputed' if recomputed else 'kept'} | {told[1]} | {told[0]} | {told[2]} |", flush=True)
    each = (peaks[8, False] - peaks[2, False]) / 6
    print(f"| {CALLS} | kept | {peaks[8, False] + (CALLS - 8) * each:.1f}, extrapolated | | |")


if __name__ == "__main__":
    print(measure(int(sys.argv[1]), sys.argv[2] == "1")) if len(sys.argv) > 1 else main()
