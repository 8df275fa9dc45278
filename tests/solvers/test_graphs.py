"""A plan traced by torch.compile gives what the executor gives, and counts like it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from solvers.graphs import CudaGraph, compiled

VP = solvers.VPLinear()
CASES = [
    pytest.param("dpmpp_2m", {}, id="dpmpp_2m"),
    pytest.param("dpmpp_2m", {"thresholding": "dynamic"}, id="thresholding"),
    pytest.param("ddim", {"eta": 1.0}, id="noise"),
    pytest.param("heun", {}, id="heun"),
]


def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(x * t[:, None] + y[:, None])


def denoiser(guidance: solvers.Guidance | None = None) -> solvers.Denoiser:
    return solvers.Denoiser(network, VP, guidance=guidance)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_traced_plan_gives_the_same_sample(name: str, options: dict[str, solvers.Option]) -> None:
    plan = solvers.plan(name, VP, 5, **options)
    guidance = solvers.Guidance(2.0, {"y": 0}, interval=(0.2, 20.0))
    eager, traced = denoiser(guidance), denoiser(guidance)
    run = compiled(plan, traced, "aot_eager")
    for seed in (0, 1):  # the second run takes other inputs through the same graph
        g = torch.Generator().manual_seed(seed)
        x_T, *z = torch.randn(1 + plan.draws, 3, 4, generator=g, dtype=torch.float64)
        cond = {"y": torch.tensor([1, 2, 3])}
        expected = solvers.sample(plan, eager, x_T, lambda k, z=z: z[k], cond=cond)
        torch.testing.assert_close(run(x_T, lambda k, z=z: z[k], cond), expected, rtol=1e-10, atol=1e-10)
    assert (traced.calls, traced.evaluated, traced.forwards) == (eager.calls, eager.evaluated, eager.forwards)
    assert eager.calls < eager.forwards < 2 * eager.calls


def test_what_another_thread_compiles_leaves_a_sample_and_its_count_alone() -> None:
    compiling, enough = Event(), Event()

    def slow(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        compiling.set()
        assert enough.wait(60)
        return graph.forward

    plan, here = solvers.plan("dpmpp_2m", VP, 5), denoiser()
    x_T, cond = torch.randn(3, 4), {"y": torch.tensor([1, 2, 3])}
    alone = solvers.sample(plan, denoiser(), x_T, cond=cond)
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(torch.compile(torch.tanh, backend=slow), torch.ones(2))
        assert compiling.wait(60)
        beside = solvers.sample(plan, here, x_T, cond=cond)
        enough.set()
        there.result(60)
    assert torch.equal(beside, alone)
    assert here.calls == plan.nfe


def test_more_plans_can_be_traced_than_torch_keeps_graphs_for_one_function() -> None:
    x_T = torch.ones(1, 2, dtype=torch.float64)
    for nfe in range(1, 12):
        plan, null = solvers.plan("ddim", VP, nfe), solvers.Denoiser(lambda x, t: 0.1 * x, VP)
        torch.testing.assert_close(compiled(plan, null, "eager")(x_T, None, None), solvers.sample(plan, null, x_T))


def test_noise_that_is_missing_is_said_to_be() -> None:
    plan = solvers.plan("ddim", VP, 3, eta=1.0)
    with pytest.raises(ValueError, match=f"ddim needs {plan.draws} noise draws"):
        compiled(plan, denoiser(), "eager")(torch.ones(1, 2), None, {"y": torch.ones(1)})


def test_a_cuda_graph_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="on a GPU, not on cpu"):
        CudaGraph(solvers.plan("ddim", VP, 3), denoiser(), torch.ones(1, 2))
