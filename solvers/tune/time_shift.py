"""Which window and cutoff the Time-Shift sampler takes.  Li et al. 2023, arXiv 2305.15583, Section 5.4.

The authors chose both by hand for every data set, sampler and budget; here they are searched for on a grid around the
published values, and no shift at all is a candidate.  The sampler is meant for the distribution of the samples: where
their distance to the ODE's solution is searched for, no shift may well be what is found.
"""

from collections.abc import Callable

import torch
from torch import Tensor

import solvers
from solvers import noise
from solvers.model import Cond
from solvers.plan import Plan, Procedure
from solvers.tune.base import Finding, Notes, Problem, tuner
from solvers.tune.reference import reference

# (window, cutoff); published: (5, 550), (30, 300), (10, 900) and, for ADM, (80, 300).
CANDIDATES = ((0, 0), *((window, cutoff) for window in (6, 10, 20, 40, 80) for cutoff in (200, 300, 550, 700)))


@tuner("time_shift")
def time_shift(
    problem: Problem, nfe: int, notes: Notes, base: str = "ddim", samples: int = 128, calls: int = 100
) -> Finding:
    """The best of the candidates for `base` on its own grid; the solution is found with `calls` calls a sample.

    Raises ValueError for no samples, a budget that the base cannot spend, and a base without a solution.
    """
    if samples < 1:
        raise ValueError(f"tuning time_shift: samples={samples} must be at least 1")
    plans = [
        solvers.plan("time_shift", problem.schedule, nfe, base=base, window=window, cutoff=cutoff)
        for window, cutoff in CANDIDATES
    ]
    x_T, cond = problem.start(0, samples, plans[0].times[0])
    state = notes.read() or {"exact": exact(problem, plans[0], x_T, cond, calls), "errors": [], "curve": []}
    errors, curve = state["errors"], state["curve"]
    error = problem.metric[1] if problem.metric else rms_to(state["exact"])

    def draws(k: int) -> Tensor:
        z = noise.normal(problem.seed, noise.TUNING + noise.STEP + k, 0, samples, problem.shape)
        return torch.from_numpy(z).to(x_T)

    for plan in plans[len(errors) :]:
        errors.append(float(error(solvers.sample(plan, problem.denoiser, x_T, draws, cond=cond))))
        curve.append((problem.cost.calls, min(errors)))
        notes.write(state)
    window, cutoff = CANDIDATES[errors.index(min(errors))]
    table = [[*candidate, e] for candidate, e in zip(CANDIDATES, errors, strict=True)]
    values = {"base": base, "window": window, "cutoff": cutoff, "errors": table}
    objective = problem.metric[0] if problem.metric else "truncation error"
    return Finding(base, values, tuple((spent, e) for spent, e in curve), objective)


def exact(problem: Problem, plan: Plan | Procedure, x_T: Tensor, cond: Cond, calls: int) -> Tensor | None:
    """Where the ODE ends, on the data as the plan does; None where a metric is searched for in its place.

    Raises ValueError for a base that draws noise, whose samples lie elsewhere.
    """
    if problem.metric:
        return None
    if plan.draws:
        raise ValueError(f"tuning time_shift({dict(plan.options)['base']}): it follows no ODE; give a metric")
    start, end = plan.times[0], plan.times[-1] or problem.schedule.t_end
    x = reference(problem.denoiser, x_T, cond, start, end, calls).at(end)
    if plan.times[-1] == 0:
        with torch.no_grad():
            return problem.denoiser(x, end, "data", cond)
    return x


def rms_to(target: Tensor) -> Callable[[Tensor], float]:
    return lambda x: float((x - target).double().square().mean().sqrt())
