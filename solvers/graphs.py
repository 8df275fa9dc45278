"""Faster ways to run one plan many times: traced by torch.compile, or captured as one CUDA graph.

Both give what `sample` gives, for one plan, denoiser and shape; the denoiser's counters go on counting.
"""

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from solvers.execute import lower, sample
from solvers.model import Cond, Denoiser
from solvers.plan import Noise, Plan

WARM_UP = 3  # runs on a side stream before the capture, as CUDA's libraries need to set themselves up

Run = Callable[[Tensor, Noise | None, Cond | None], Tensor]


def compiled(plan: Plan, denoiser: Denoiser, backend: str = "inductor") -> Run:
    """The plan and the network beneath it as one graph of torch.compile: run(x_T, noise, cond).

    Raises torch._dynamo's errors at the first run when the network cannot be traced in one piece.
    """

    def traced(x_T: Tensor, draws: list[Tensor], cond: dict[str, Tensor]) -> Tensor:
        return sample(plan, denoiser, x_T, draws.__getitem__, cond=cond)

    traced.__code__ = traced.__code__.replace()  # of its own: torch.compile limits the graphs kept for one code object
    fast = torch.compile(traced, backend=backend, fullgraph=True, dynamic=False)

    def run(x_T: Tensor, noise: Noise | None = None, cond: Cond | None = None) -> Tensor:
        forwards = _prepare(plan, denoiser, x_T.device)
        out: Tensor = fast(x_T, _draws(plan, noise), dict(cond or {}))
        denoiser.count(len(x_T), plan.nfe, forwards)
        return out

    return run


class CudaGraph:
    """The plan captured as one CUDA graph on inputs like x_T (B, *shape): run(x_T, noise, cond).

    Raises ValueError when x_T is not on a GPU, or when a run's inputs differ in shape from the captured ones.
    """

    def __init__(self, plan: Plan, denoiser: Denoiser, x_T: Tensor, cond: Cond | None = None) -> None:
        if x_T.device.type != "cuda":
            raise ValueError(f"a CUDA graph needs its inputs on a GPU, not on {x_T.device}")
        self.plan, self.denoiser = plan, denoiser
        self.forwards = _prepare(plan, denoiser, x_T.device)
        self.x_T = x_T.clone()
        self.cond = {k: v.clone() for k, v in (cond or {}).items()}
        self.draws = [torch.zeros_like(x_T) for _ in range(plan.draws)]
        self.graph = torch.cuda.CUDAGraph()
        uncounted = copy(denoiser)  # what is not asked for is no call of the sampler's
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._sample(uncounted)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self.graph):
            self.out = self._sample(uncounted)

    def _sample(self, denoiser: Denoiser) -> Tensor:
        return sample(self.plan, denoiser, self.x_T, self.draws.__getitem__, cond=self.cond)

    def __call__(self, x_T: Tensor, noise: Noise | None = None, cond: Cond | None = None) -> Tensor:
        """The sample of these inputs; a replay runs no Python, so the counters are moved here."""
        new = [x_T, *_draws(self.plan, noise), *(cond or {}).values()]
        held = [self.x_T, *self.draws, *(self.cond[k] for k in cond or {})]
        for static, given in zip(held, new, strict=True):
            if static.shape != given.shape:
                raise ValueError(f"the graph was captured for {tuple(static.shape)}, not {tuple(given.shape)}")
            static.copy_(given)
        self.graph.replay()
        self.denoiser.count(len(x_T), self.plan.nfe, self.forwards)
        return self.out.clone()


def _prepare(plan: Plan, denoiser: Denoiser, device: torch.device) -> int:
    """Lower the plan and fill the denoiser's table of scales, which a graph cannot; the forwards of one run."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        lower(plan, denoiser.predicts, dtype, device)
    return sum(denoiser.cost(t) for t in plan.call_times)


def _draws(plan: Plan, noise: Noise | None) -> list[Tensor]:
    if plan.draws and noise is None:
        raise ValueError(f"{plan.method} needs {plan.draws} noise draws: pass noise")
    return [noise(k) for k in range(plan.draws)] if noise else []
