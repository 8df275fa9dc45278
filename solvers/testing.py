"""What every solver must show, to be run on one's own: `check_solver("my_solvers.py:fast")`.

Each check raises AssertionError with what was expected and what was found; all of them use exact models, so that a
failure is the solver's.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

import solvers
from solvers.grid import make_grid
from solvers.model import Denoiser, column
from solvers.plan import Option, Plan
from solvers.schedule import EDM, Schedule, VPLinear
from solvers.tracer import BudgetError, Method

# With 5 nodes more at the start these are 2 above a multiple of 6: no singlestep block of order 1 is left at the end.
STEPS = (159, 321, 639)
RANGES: tuple[tuple[Schedule, str, float], ...] = ((VPLinear(), "logsnr", 1e-2), (EDM(), "karras", 2e-3))
BUDGETS = range(1, 51)
SLACK = 0.2  # between the order declared and the order seen

SHAPE = (12,)
MEANS, VARIANCES = (
    torch.tensor(draw, dtype=torch.float64)
    for draw in (
        0.7 * np.random.default_rng(0).normal(size=(3, 12)),
        0.02 + 0.25 * np.random.default_rng(1).random((3, 12)) ** 3,
    )
)


def mixture(schedule: Schedule, components: int = 3) -> Denoiser:
    """The exact denoiser of up to three Gaussians in twelve dimensions, x being (B, 12)."""
    means, variances = MEANS[:components], VARIANCES[:components]

    def noise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (column(f(t.double().numpy()), x.double())[..., None] for f in (schedule.alpha, schedule.sigma))
        z = x.double()[:, None] - alpha * means
        variance = alpha**2 * variances + sigma**2
        weights = (-0.5 * (z**2 / variance + variance.log()).sum(-1)).softmax(1)
        return (sigma[:, 0] * (weights[..., None] * z / variance).sum(1)).to(x.dtype)

    return Denoiser(noise, schedule)


def build(
    name: str,
    schedule: Schedule,
    options: Mapping[str, Option],
    nfe: int | None = None,
    times: Sequence[float] | None = None,
) -> Plan:
    """The plan for a budget from the first time with a signal, or on these times; AssertionError if it is no plan."""
    first = None if times is not None else first_time(schedule)
    plan = solvers.method(name).build(schedule, nfe, times=times, t_start=first, options=options)
    if not isinstance(plan, Plan):
        raise AssertionError(f"{name} builds a {type(plan).__name__}: these checks are for plans")
    return plan


def start(schedule: Schedule, batch: int, seed: int = 0) -> Tensor:
    """Noise to sample from: (batch, 12), float64."""
    g = torch.Generator().manual_seed(seed)
    return schedule.prior_std(schedule.t_max) * torch.randn(batch, *SHAPE, generator=g, dtype=torch.float64)


def run(plan: Plan, denoiser: Denoiser, x_T: Tensor, seed: int = 1, scale: float = 1.0) -> Tensor:
    """The sample, with draws of which sample i's depend on i alone, times `scale`."""

    def noise(k: int) -> Tensor:
        seeds = [torch.Generator().manual_seed(seed + 1000 * k + i) for i in range(len(x_T))]
        return scale * torch.stack([torch.randn(x_T.shape[1:], generator=g) for g in seeds]).to(x_T)

    return solvers.sample(plan, denoiser, x_T, noise)


@cache
def solution(schedule: Schedule, t_end: float, components: int) -> NDArray[np.float64]:
    """Where dy/dlog u = u eps, with y = x/alpha and u = sigma/alpha, takes the starts: (4, 12), by DOP853."""
    x_T, network = start(schedule, 4), mixture(schedule, components)

    def slope(log_u: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
        t = float(schedule.t_of_lam(-log_u))
        x = float(schedule.alpha(t)) * torch.from_numpy(y.reshape(4, *SHAPE))
        return np.asarray(np.exp(log_u) * network(x, t).numpy().ravel())

    span = [-float(lam) for lam in schedule.lam([schedule.t_max, t_end])]
    y_T = (x_T / float(schedule.alpha(schedule.t_max))).numpy().ravel()
    y = solve_ivp(slope, span, y_T, "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    return np.asarray(y.reshape(4, *SHAPE) * schedule.alpha(t_end))


def graded(schedule: Schedule, grid: str, steps: int, t_end: float) -> list[float]:
    """The times of a grid whose first step is taken in six, each up to half the rest.

    A multistep method starts at first order; on short steps that start does not hide the order it goes on with.
    """
    lam = make_grid(grid, schedule, steps, t_end=t_end).lam
    first = lam[0] + (lam[1] - lam[0]) * 2.0 ** np.arange(-5, 0)
    return [schedule.t_max, *schedule.t_of_lam(np.append(first, lam[1:])).tolist()]


def measured_order(
    name: str, options: Mapping[str, Option], schedule: Schedule, grid: str, t_end: float, components: int = 3
) -> float:
    """The slope of log error on log step, on a mixture of `components` Gaussians, with no rule for the last steps."""
    if "lower_order_final" in solvers.method(name).defaults:
        options = {"lower_order_final": "never"} | dict(options)
    errors = []
    for steps in STEPS:
        plan = build(name, schedule, options, times=graded(schedule, grid, steps, t_end))
        x = run(plan, mixture(schedule, components), start(schedule, 4)).numpy()
        errors.append(np.sqrt(np.mean((x - solution(schedule, t_end, components)) ** 2)))
    return float(np.polyfit(np.log(STEPS), -np.log(errors), 1)[0])


def check_order(name: str, options: Mapping[str, Option]) -> None:
    """The error falls with the step at the declared order; on one Gaussian, a linear model, at least so fast."""
    for schedule, grid, t_end in RANGES:
        plan = build(name, schedule, options, times=make_grid(grid, schedule, 6, t_end=t_end).times)
        if plan.draws:  # the error of one path of the SDE says nothing of the ODE
            return
        found = measured_order(name, options, schedule, grid, t_end)
        where = f"{name}{dict(options)} on {type(schedule).__name__}"
        _require(abs(found - plan.order) <= SLACK, f"{where}: declares order {plan.order}, shows {found:.2f}")
        linear = measured_order(name, options, schedule, grid, t_end, components=1)
        # An error that changes its sign within the range of steps shows half an order less.
        _require(linear >= plan.order - 0.5, f"{where}: order {plan.order}, but {linear:.2f} on a Gaussian")


def check_budgets(name: str, options: Mapping[str, Option], schedule: Schedule) -> None:
    """Every budget is spent to the call, as the model counts, or refused with budgets that can be spent."""
    refused: dict[int, str] = {}
    for nfe in BUDGETS:
        try:
            plan = build(name, schedule, options, nfe)
        except BudgetError as error:
            refused[nfe] = str(error)
            continue
        denoiser = Denoiser(lambda x, t: 0.1 * x, schedule)
        run(plan, denoiser, torch.ones(1, 1))
        found = (plan.nfe, denoiser.calls, denoiser.forwards)
        _require(found == (nfe, nfe, nfe), f"{name}: {nfe} calls asked for, {found[0]} planned, {found[1]} made")
    _require(len(refused) < len(BUDGETS), f"{name} can spend none of the budgets {BUDGETS}")
    for nfe, message in refused.items():
        near = [int(n) for n in message.partition("it can spend ")[2].removesuffix(" ...").split(", ")]
        wrong = [n for n in near if n in refused]
        _require(not wrong, f"{name} offers {wrong} instead of {nfe} calls, and cannot spend them")


def check_plan(plan: Plan, buffers: int) -> None:
    """A plan survives JSON, keeps at most `buffers` states, treats samples alike and scales with a linear model."""
    name = f"{plan.method}, {plan.nfe} calls"
    _require(Plan.from_json(plan.to_json()) == plan, f"{name}: JSON gives another plan")
    _require(plan.buffers <= buffers, f"{name}: {plan.buffers} buffers, where order + 2 = {buffers} do")
    denoiser, x_T = mixture(plan.schedule), start(plan.schedule, 5)
    x = run(plan, denoiser, x_T)
    _require(bool(x.isfinite().all()), f"{name}: the sample is not finite")
    _require(torch.equal(run(plan, denoiser, x_T), x), f"{name}: a second run differs from the first")
    _require(torch.equal(run(plan, denoiser, x_T[:2]), x[:2]), f"{name}: a sample depends on its batch")
    linear = Denoiser(lambda x, t: 0.3 * x, plan.schedule)
    one, two = run(plan, linear, x_T), run(plan, linear, 2 * x_T, scale=2.0)
    _require(torch.allclose(two, 2 * one, rtol=1e-10), f"{name}: twice the start and noise is not twice the sample")


def check_point(name: str, options: Mapping[str, Option], schedule: Schedule) -> None:
    """A single point is sampled exactly in any number of steps: the data prediction is constant."""
    point = MEANS[:1]
    for steps in (1, 2, 5, 11):
        times = np.linspace(0.9 * schedule.t_max, 0.1 * schedule.t_max, steps + 1).tolist()
        plan = build(name, schedule, options, times=times)
        if plan.draws:
            return
        eps = start(schedule, 3) / schedule.prior_std(schedule.t_max)
        x_T, exact = (float(schedule.alpha(t)) * point + float(schedule.sigma(t)) * eps for t in (times[0], times[-1]))
        x = run(plan, Denoiser(lambda x, t: point.expand_as(x), schedule, "data"), x_T)
        missed = float((x - exact).abs().max())
        _require(missed < 1e-8, f"{name}: {steps} steps miss a single point by {missed}")


def check_solver(name: str, **options: Option) -> None:
    """Run every check on the solver of that name (or "file.py:attribute"), with these options.

    Raises AssertionError saying what failed, UnknownNameError, and ValueError for options that the solver lacks.
    """
    check_order(name, options)
    method = solvers.method(name)
    for schedule, _, _ in RANGES:
        check_budgets(name, options, schedule)
        check_point(name, options, schedule)
        for nfe in (1, 2, 3, 4, 5, 9, 12):
            try:
                plan = build(name, schedule, options, nfe)
            except BudgetError:
                continue
            order = method.nominal_order(options) if isinstance(method, Method) else plan.order
            check_plan(plan, buffers=order + 2)


def first_time(schedule: Schedule) -> float:
    """Where sampling may start on any grid: rectified flow's t = 1 has no signal, so lambda is -inf there."""
    return schedule.t_max if np.isfinite(schedule.lam(schedule.t_max)) else 0.999 * schedule.t_max


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
