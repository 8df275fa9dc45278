"""What a solver costs of its own: microseconds a step on a (1, 4, 64, 64) latent, one thread, a network that is free.

Beside each, the diffusers scheduler of the same method, and the floor: one linear combination of three tensors.
`make bench` prints the figures; results/speed.md is made of them by tests/perf/table.py.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import solvers
from bench.spec import SOLVERS
from solvers.dc_solver import Options
from solvers.graphs import compiled
from solvers.grid import make_grid
from solvers.tracer import Method
from tests.solvers.common import NAMES

SCHEDULE = solvers.VPDiscrete.scaled_linear()
CALLS, ROUNDS = 20, 60
LEARN = ("dpm_solver_v3", "dc_solver")
COMPILED = {*SOLVERS, *LEARN, "dpm_2", "hb", "dpmpp_3m_sde", "dpmpp_sde_2m"}  # tracing takes seconds a plan
X = torch.zeros(1, 4, 64, 64)
MULTISTEP, SINGLESTEP = diffusers.DPMSolverMultistepScheduler, diffusers.DPMSolverSinglestepScheduler
THEIRS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "dpm_2": (diffusers.KDPM2DiscreteScheduler, {}),
    "plms": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "pndm_f": (diffusers.PNDMScheduler, {}),
    "dpm_solver_2m": (MULTISTEP, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpmpp_2m": (MULTISTEP, {}),
    "dpmpp_3m": (MULTISTEP, {"solver_order": 3}),
    "dpmpp_2s": (SINGLESTEP, {}),
    "dpmpp_3s": (SINGLESTEP, {"solver_order": 3}),
    "deis_logrho": (diffusers.DEISMultistepScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {"solver_order": 3}),
}


def made_up(name: str) -> solvers.Plan:
    """The plan of a method that learns, with numbers that nothing taught it: they cost what others do."""
    method, grid = solvers.method(name), make_grid("logsnr", SCHEDULE, CALLS)
    assert isinstance(method, Method)
    lam, one = np.linspace(grid.lam[0], grid.lam[-1], 61), np.ones((61, *X.shape[1:]))
    statistics_of_v3 = {"lam": lam, "l": 0.9 * one, "s": 0.1 * one, "b": 0.01 * one}
    ratios = {"ratios": [1, 1, *[1.05] * (CALLS - 2)], "times": grid.times, "grid": "logsnr"}
    learned = {"dpm_solver_v3": statistics_of_v3, "dc_solver": ratios | {"options": asdict(Options())}}
    return method.on(grid, {}, learned[name])


def plan_of(name: str) -> solvers.Plan:
    """The solver's plan of the first budget from CALLS on that it can spend."""
    if name in LEARN:
        return made_up(name)
    for nfe in range(CALLS, CALLS + 12):
        try:
            return solvers.plan(name, SCHEDULE, nfe)
        except solvers.BudgetError:
            continue
    raise AssertionError(f"{name} spends none of {CALLS} calls and the eleven after")


def floor() -> float:
    """Seconds that a combination of three tensors takes."""
    y, z = torch.randn_like(X), torch.randn_like(X)
    begin = time.perf_counter()
    for _ in range(CALLS):
        out = X * 0.3
        out.add_(y, alpha=0.2)
        out.add_(z, alpha=0.1)
    return (time.perf_counter() - begin) / CALLS


def theirs(name: str, output: torch.Tensor) -> Callable[[], float] | None:
    """Seconds a step of the diffusers scheduler, where there is one of this method."""
    if name not in THEIRS:
        return None
    kind, options = THEIRS[name]
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = kind(**betas, **options)

    def step() -> float:
        scheduler.set_timesteps(CALLS)
        x = X
        begin = time.perf_counter()
        for t in scheduler.timesteps:
            x = scheduler.step(output, t, scheduler.scale_model_input(x, t), return_dict=False)[0]
        return (time.perf_counter() - begin) / len(scheduler.timesteps)

    return step


@pytest.mark.parametrize("name", [*NAMES, *LEARN])
def test_own_time_of_a_step(benchmark: BenchmarkFixture, name: str) -> None:
    torch.set_num_threads(1)
    plan, output = plan_of(name), torch.randn_like(X)
    denoiser = solvers.Denoiser(lambda x, t: output, SCHEDULE)
    z = [torch.randn_like(X) for _ in range(plan.draws)]
    other = theirs(name, output)
    traced = compiled(plan, denoiser) if name in COMPILED else None
    ours, floors, others, compileds = [], [], [], []

    def sample() -> None:
        solvers.sample(plan, denoiser, X, z.__getitem__)  # so that what ran before is out of the caches
        begin = time.perf_counter()
        solvers.sample(plan, denoiser, X, z.__getitem__)
        ours.append((time.perf_counter() - begin) / plan.nfe)
        floors.append(floor())  # interleaved, so that drift hits all alike
        if traced:
            traced(X, z.__getitem__, None)
            begin = time.perf_counter()
            traced(X, z.__getitem__, None)
            compileds.append((time.perf_counter() - begin) / plan.nfe)
        if other:
            others.append(other())

    benchmark.pedantic(sample, rounds=ROUNDS, warmup_rounds=5)
    microseconds = {
        "ours": statistics.median(ours) * 1e6,
        "floor": statistics.median(floors) * 1e6,
        "diffusers": statistics.median(others) * 1e6 if others else None,
        "compiled": statistics.median(compileds) * 1e6 if compileds else None,
    }
    benchmark.extra_info |= microseconds | {"name": name, "draws": plan.draws, "buffers": plan.buffers}
    beside = f", diffusers {microseconds['diffusers']:.0f}" if microseconds["diffusers"] else ""
    print(f"\n{name}: {microseconds['ours']:.1f} us a call, floor {microseconds['floor']:.1f}{beside}")
