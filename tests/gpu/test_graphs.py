"""CUDA graphs and torch.compile on a GPU, for every solver that makes plans; skipped where there is no GPU."""

import pytest
import torch

import solvers
from solvers.graphs import CudaGraph, compiled
from solvers.tracer import Method

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
METHODS = [(name, method) for name in solvers.names() if isinstance(method := solvers.method(name), Method)]
NAMES = [name for name, method in METHODS if not method.learns]
SCHEDULE = solvers.EDM()


def some_plan(name: str) -> solvers.Plan:
    method = solvers.method(name)
    for nfe in range(8, 20):
        try:
            return method.build(SCHEDULE, nfe)
        except solvers.BudgetError:
            continue
    raise AssertionError(f"{name} spends no budget from 8 to 19")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["cuda_graph", "compiled"])
def test_a_captured_plan_gives_the_same_sample(name: str, how: str) -> None:
    plan = some_plan(name)
    network = torch.nn.Conv2d(4, 4, 3, padding=1).cuda().requires_grad_(False)
    eager, fast = (solvers.Denoiser(lambda x, t: 0.5 * network(x) / (1 + t[0]), SCHEDULE) for _ in range(2))
    x_T, *z = torch.randn(1 + plan.draws, 2, 4, 16, 16, device="cuda")
    run = CudaGraph(plan, fast, x_T) if how == "cuda_graph" else compiled(plan, fast)
    for scale in (1.0, 0.5):
        expected = solvers.sample(plan, eager, scale * x_T, z.__getitem__)
        torch.testing.assert_close(run(scale * x_T, z.__getitem__, None), expected, rtol=1e-4, atol=1e-4)
    assert (fast.calls, fast.passed) == (eager.calls, eager.passed)  # warm-up and capture count for nothing


def test_other_shapes_than_the_captured_are_refused() -> None:
    null = solvers.Denoiser(lambda x, t: 0.1 * x, SCHEDULE)
    run = CudaGraph(solvers.plan("ddim", SCHEDULE, 3), null, torch.ones(2, 4, device="cuda"))
    with pytest.raises(ValueError, match=r"captured for \(2, 4\), not \(3, 4\)"):
        run(torch.ones(3, 4, device="cuda"))
