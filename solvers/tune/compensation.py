"""How DC-Solver learns its ratios, a step at a time, by gradient.  Zhao et al. 2024, arXiv 2409.03755, Section 3.

Step by step, AdamW takes the ratio from 1 to where the state after the step, corrector included, is closest to the
reference trajectory at that time; then the step is taken with it, for good.  Only what the step needs is recomputed: an
iteration costs one network call and its gradient, and at the last step, which has no corrector, none.

The runs that measure the error at the end, for the curve, are no part of the search and are not counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isinf
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

import solvers
from solvers.dc_solver import Options, compensated_step
from solvers.dc_solver import dc_solver as method
from solvers.gradient import run
from solvers.grid import Grid, make_grid
from solvers.model import Cond, Denoiser, Prediction
from solvers.plan import Combine, Instruction
from solvers.schedule import VPDiscrete
from solvers.tracer import Symbol, Tracer, check_word
from solvers.tune.base import Finding, Notes, Problem, tuner
from solvers.tune.reference import reference as solution
from solvers.unipc import unipc

PAST = -2  # the register of the newest output; older ones count down from it
CALLS = 100  # of the exact reference
DDIM_STEPS = 200  # of the official one
STATE = ("targets", "x", "outputs", "ratios", "curve")  # what is noted after each step
Trajectory = Callable[[float], Tensor]
State = tuple[Tensor, list[Tensor]]


def exact(denoiser: Denoiser, x_T: Tensor, cond: Cond, times: Sequence[float]) -> Trajectory:
    """The ODE's solution; from where there is no signal a short step of DDIM leads on, and t = 0 is the data."""
    t_start, t_end = times[0], min(times[-1] or denoiser.schedule.t_end, times[-2])
    if isinf(denoiser.schedule.lam(t_start)):
        t_start *= 0.999
        plan = solvers.plan("ddim", denoiser.schedule, times=[times[0], t_start])
        x_T = solvers.sample(plan, denoiser, x_T, cond=cond)
    found = solution(denoiser, x_T, cond, t_start, t_end, CALLS)
    x_0 = found.y[-1] - found.slope[-1]
    return lambda t: found.at(t) if t > 0 else x_0


def official(denoiser: Denoiser, x_T: Tensor, cond: Cond, times: Sequence[float]) -> Trajectory:
    """The official search's: DDIM from x_T at label 996 down to label 1.

    Label n stands for t = n/1000 there in place of (n + 1)/1000, and the state given is that of the next label above:
    it is noisier than t by up to 6/1000.
    """
    schedule = denoiser.schedule
    if not isinstance(schedule, VPDiscrete) or len(schedule.betas) < DDIM_STEPS:
        raise ValueError(
            f"reference=official needs a VPDiscrete schedule of {DDIM_STEPS} labels or more, not this "
            f"{type(schedule).__name__}: use reference=exact"
        )
    N = len(schedule.betas)
    labels = range(1, N, N // DDIM_STEPS)[::-1]
    plan = solvers.plan("ddim", schedule, times=[(n + 1) / N for n in labels])
    states = [x_T]

    def keep(instruction: Instruction, x: Tensor) -> None:
        if isinstance(instruction, Combine):
            states.append(x.clone())

    solvers.sample(plan, denoiser, x_T, callback=keep, cond=cond)

    def at(t: float) -> Tensor:
        above = [k for k, n in enumerate(labels) if n / N > t]
        if not above:
            raise ValueError(f"reference=official has no state above t = {t}, but from label {labels[0]} on")
        return states[above[-1]]

    return at


REFERENCES = {"exact": (exact, "truncation error"), "official": (official, "distance to DDIM-200")}


@dataclass
class Search:
    """How far the search has come: the ratios found, the state and the outputs after their steps, the newest first."""

    problem: Problem
    grid: Grid
    options: Options
    cond: Cond
    targets: list[Tensor]  # the reference at the end of each step
    x: Tensor
    outputs: list[Tensor]
    ratios: list[float]
    curve: list[tuple[int, float]]

    def step(self, denoiser: Denoiser, ratio: float | Tensor, i: int, x: Tensor, outputs: list[Tensor]) -> State:
        """The state and the outputs after step i, differentiable with respect to its ratio."""
        p = Tracer(self.grid, self.options.predicts)
        known = {PAST - j: output for j, output in enumerate(outputs)}
        m = [Symbol({register: 1.0}) for register in known]
        end = p.state(compensated_step(p, self.grid, i, ratio, p.start(), m, self.options))
        registers = run(p.instructions, denoiser, p.predicts, x, self.cond, checkpointed=False, known=known)
        x, *outputs = (registers[register] for symbol in (end, *m) for register in symbol.terms)
        return x, outputs[: self.options.history]

    def best(self, iterations: int, lr: float, weight_decay: float) -> float:
        """The next step's ratio, after so many iterations from 1; 1 while the history is too short."""
        if (i := len(self.ratios)) < self.options.dc_order:
            return 1.0
        ratio = torch.nn.Parameter(torch.ones((), dtype=torch.float64, device=self.x.device))
        optimizer = torch.optim.AdamW([ratio], lr=lr, weight_decay=weight_decay)
        for _ in range(iterations):
            with torch.enable_grad():
                x, _ = self.step(self.problem.denoiser, ratio, i, self.x, self.outputs)
                (ratio.grad,) = torch.autograd.grad(mse_loss(x, self.targets[i]), ratio)
            optimizer.step()
        return ratio.item()

    @torch.no_grad()
    def take(self, ratio: float) -> None:
        """The next step, for good."""
        self.x, self.outputs = self.step(self.problem.denoiser, ratio, len(self.ratios), self.x, self.outputs)
        self.ratios.append(ratio)

    @torch.no_grad()
    def measure(self) -> None:
        """Note what is spent and the root mean square error at the end, should the ratios to come all be 1."""
        d, x, outputs = self.problem.denoiser, self.x, self.outputs
        uncounted = Denoiser(d.network, d.schedule, d.predicts, d.guidance)
        for i in range(len(self.ratios), self.grid.steps):
            x, outputs = self.step(uncounted, 1.0, i, x, outputs)
        self.curve.append((self.problem.cost.calls, float(mse_loss(x, self.targets[-1]).sqrt())))


@torch.no_grad()
def begun(denoiser: Denoiser, x_T: Tensor, cond: Cond, grid: Grid, options: Options, reference: str) -> dict[str, Any]:
    """A search's state before the first step."""
    trajectory = REFERENCES[reference][0](denoiser, x_T, cond, grid.times)
    outputs = [denoiser(x_T, grid.times[0], options.predicts, cond)]
    targets = [trajectory(t) for t in grid.times[1:]]
    return dict(zip(STATE, (targets, x_T, outputs, [], []), strict=True))


def base(options: Options, grid: str, nfe: int) -> str:
    """UniPC with the same options, as one would write it."""
    same = {k: v for k, v in asdict(options).items() if k in unipc.defaults and v != unipc.defaults[k]}
    same |= {"corrector": False} if options.corrector_from >= nfe else {}
    same |= {"grid": grid} if grid else {}
    return "unipc" + (f"({', '.join(f'{k}={str(v).lower()}' for k, v in same.items())})" if same else "")


@tuner("dc_solver")
def dc_solver(
    problem: Problem,
    nfe: int,
    notes: Notes,
    samples: int = 10,
    iterations: int = 40,
    lr: float = 0.1,
    weight_decay: float = 0.01,
    reference: str = "exact",
    grid: str = "",
    order: int = 3,
    variant: str = "bh2",
    predicts: Prediction = "data",
    lower_order_final: str = "always",
    corrector_from: int = 0,
    dc_order: int = 2,
    axis: str = "time",
) -> Finding:
    """Raises ValueError for a reference that the schedule does not have, or a metric to search for."""
    check_word("tuning dc_solver", "reference", reference, REFERENCES)
    if samples < 1 or iterations < 1:
        raise ValueError(f"tuning dc_solver takes at least 1 sample and 1 iteration, not {samples} and {iterations}")
    if problem.metric:
        raise ValueError("dc_solver is tuned by gradients of the truncation error: give no metric")
    options = Options(order, variant, predicts, lower_order_final, corrector_from, dc_order, axis)
    name = grid or method.default_grid(problem.schedule)
    where = make_grid(name, problem.schedule, nfe)
    x_T, cond = problem.start(0, samples, where.times[0])
    state = notes.read() or begun(problem.denoiser, x_T, cond, where, options, reference)
    search = Search(problem, where, options, cond, **state)
    if not search.curve:
        search.measure()
    while len(search.ratios) < nfe:
        search.take(search.best(iterations, lr, weight_decay))
        search.measure()
        notes.write({k: getattr(search, k) for k in STATE})
    values = {"ratios": search.ratios, "times": list(where.times), "grid": name, "options": asdict(options)}
    objective = f"{REFERENCES[reference][1]}, step by step"
    return Finding(base(options, grid, nfe), values, tuple(search.curve), objective)
