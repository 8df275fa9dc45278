"""DC-Solver: UniPC with dynamic compensation of its newest output.  Zhao et al. 2024, arXiv 2409.03755, Section 3.

UniPC's corrector moves x_i but keeps the output m_0 that the network gave at the uncorrected x_i.  Before every step
m_0 is replaced for good by the Lagrange interpolant of the last dc_order + 1 outputs at
    t' = rho t_0 + (1 - rho) t_{-1}
whose ratio rho is learned, one a step; rho = 1 is UniPC.  t is the schedule's own time, as published: under EDM, sigma.
axis=lambda interpolates in lambda, as UniPC does; on the bundled checkpoints the errors are a fifth smaller with it.

The first dc_order steps have too short a history, and no ratio.  A budget between those that were tuned gets its ratios
by the paper's cascade polynomial regression (CPR): cubic in step/NFE, with coefficients quadratic in guidance/12, whose
coefficients are quadratic in NFE/50; all in all a product of polynomials, and linear least squares.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite, prod
from typing import Any

import numpy as np
from numpy.polynomial.polynomial import polyval3d, polyvander3d
from torch import Tensor

from solvers.grid import Grid, make_grid
from solvers.learned import Cost, Learned, holdings, pick
from solvers.model import Prediction
from solvers.schedule import Array
from solvers.tracer import Symbol, Tracer, check_word, solver
from solvers.unipc import advance, check

CUBIC, QUADRATIC = 3, 2
GUIDANCE, NFE = 12, 50  # what the regression's variables are measured in


@dataclass(frozen=True)
class Options:
    """What ratios are tuned for: UniPC's options, and over how many outputs and which axis they interpolate."""

    order: int = 3
    variant: str = "bh2"
    predicts: Prediction = "data"
    lower_order_final: str = "always"
    corrector_from: int = 0
    dc_order: int = 2
    axis: str = "time"

    def __post_init__(self) -> None:
        check("dc_solver", self.order, self.variant, self.predicts, self.lower_order_final)
        if self.corrector_from < 0:
            raise ValueError(f"dc_solver: corrector_from={self.corrector_from} must be a step, 0 or later")
        if not 1 <= self.dc_order <= 3:
            raise ValueError(f"dc_solver: dc_order={self.dc_order} must lie between 1 and 3")
        check_word("dc_solver", "axis", self.axis, ("time", "lambda"))

    @property
    def history(self) -> int:
        """How many outputs a step reads."""
        return max(self.order, self.dc_order + 1)


def compensated(p: Tracer, grid: Grid, i: int, ratio: float | Tensor, m: Sequence[Symbol], o: Options) -> Symbol:
    """The newest output m[0] as step i takes it: the interpolant of the last dc_order + 1 at t'."""
    if not isinstance(ratio, Tensor) and ratio == 1:
        return m[0]
    t = [float(s) for s in (grid.times if o.axis == "time" else grid.lam)[i - o.dc_order : i + 1][::-1]]
    if not isfinite(t[-1]):
        raise ValueError("dc_solver: axis=lambda cannot interpolate from where there is no signal: use axis=time")
    t_c = ratio * t[0] + (1 - ratio) * t[1]
    L = [prod((t_c - b) / (a - b) for b in t if b != a) for a in t]
    return p.state(sum((L_j * m_j for L_j, m_j in zip(L, m[: len(t)], strict=True)), Symbol()))


def compensated_step(
    p: Tracer, grid: Grid, i: int, ratio: float | Tensor, x: Symbol, m: list[Symbol], o: Options
) -> Symbol:
    """x after step i, from the outputs m so far, the newest first: it is compensated, and the next one joins them."""
    m[0] = compensated(p, grid, i, ratio, m, o)
    return advance(p, grid, i, x, m, o.order, o.variant, o.lower_order_final, i >= o.corrector_from)


def check_ratios(learned: Mapping[str, Any], grid: Grid, options: Options) -> None:
    """Raises ValueError where the ratios are for other times or options, or not 1 where there is no history."""
    tuned, times = learned["options"], learned["times"]
    for name, value in asdict(options).items():
        if tuned[name] != value:
            raise ValueError(f"dc_solver was tuned with {name}={tuned[name]!r}, not with {name}={value!r}")
    if len(times) != len(grid.times) or not np.allclose(times, grid.times, rtol=1e-9, atol=0):
        listed = ", ".join(f"{t:.4g}" for t in grid.times)
        raise ValueError(
            f"dc_solver was tuned on the {learned['grid']} grid of {len(times) - 1} steps from t = {times[0]:g} to "
            f"{times[-1]:g}, not on {listed}"
        )
    ratios, warming = learned["ratios"], learned["ratios"][: options.dc_order]
    if len(ratios) != grid.steps or any(ratio != 1 for ratio in warming):
        raise ValueError(f"dc_solver needs {grid.steps} ratios, the first {len(warming)} of them 1, not {ratios}")


def recall(found: Sequence[Learned], nfe: int, guidance: float) -> Learned | None:
    """What was tuned for exactly this, or what the regression over all that was tuned says."""
    return pick(found, nfe, guidance) or regressed(found, nfe, guidance)


@solver(
    "dc_solver",
    order=1,
    predicts="data",
    grids={"*": "logsnr", "VPDiscrete": "uniform", "RectifiedFlow": "shifted"},
    note="first order unless the ratios tend to 1, and then UniPC's; diffusers' variant: order=2, corrector_from=1",
    recall=recall,
)
def dc_solver(
    p: Tracer,
    grid: Grid,
    order: int = 3,
    variant: str = "bh2",
    predicts: Prediction = "data",
    lower_order_final: str = "always",
    corrector_from: int = 0,
    dc_order: int = 2,
    axis: str = "time",
) -> None:
    options = Options(order, variant, predicts, lower_order_final, corrector_from, dc_order, axis)
    check_ratios(p.learned, grid, options)
    x, m = p.start(), [p.model(p.start(), 0)]
    for i, ratio in enumerate(p.learned["ratios"]):
        x = compensated_step(p, grid, i, ratio, x, m, options)


def determined(found: Sequence[Learned], dc_order: int) -> tuple[list[Learned], tuple[int, int, int]] | None:
    """The files that CPR fits, and its degrees in step/NFE, guidance and NFE: the paper's, or what they determine.

    A product of polynomials of degrees d, g, n is determined by g + 1 scales with n + 1 budgets each that have d + 1
    ratios to find.  Scales without such a budget are left out; None where no ratio depends on the step.
    """
    free = {one.stem: (one.nfe or 0) - dc_order for one in found}
    d = min(CUBIC, max(free.values()) - 1)
    scales = [one.guidance for one in found if free[one.stem] > d]
    if d < 1:
        return None
    budgets = sorted((scales.count(g) for g in set(scales)), reverse=True)[: QUADRATIC + 1]
    return [one for one in found if one.guidance in scales], (d, len(budgets) - 1, min(QUADRATIC, budgets[-1] - 1))


def polynomial_ratios(coefficients: Array, nfe: int, guidance: float, dc_order: int = 2) -> list[float]:
    """The ratios that CPR predicts; `coefficients` by rising powers of (step/NFE, guidance/12, NFE/50)."""
    steps = range(dc_order + 1, nfe + 1)
    free = [float(polyval3d(k / nfe, guidance / GUIDANCE, nfe / NFE, coefficients)) for k in steps]
    return [1.0] * min(dc_order, nfe) + free


def regression(found: Sequence[Learned], degree: tuple[int, int, int], dc_order: int) -> Array:
    """The coefficients of CPR, by least squares over every ratio that was tuned."""
    rows = [
        (k / one.nfe, one.guidance / GUIDANCE, one.nfe / NFE, one.values["ratios"][k - 1])
        for one in found
        if one.nfe
        for k in range(dc_order + 1, one.nfe + 1)
    ]
    x, g, n, ratios = np.array(rows).T
    flat = np.linalg.lstsq(polyvander3d(x, g, n, degree), ratios, rcond=None)[0]
    return np.asarray(flat.reshape([d + 1 for d in degree]))


def regressed(found: Sequence[Learned], nfe: int, guidance: float) -> Learned | None:
    """What CPR predicts, at the cost of all files that it fits; None outside of what they span or determine."""
    first = found[0]
    about = {k: first.values[k] for k in ("grid", "options")}
    if any({k: one.values[k] for k in about} != about or one.digest != first.digest for one in found):
        return None  # ratios of different solvers or networks
    dc_order = about["options"]["dc_order"]
    if (fit := determined(found, dc_order)) is None:
        return None
    used, degree = fit
    budgets, scales = [one.nfe or 0 for one in used], [one.guidance for one in used]
    if not (min(budgets) <= nfe <= max(budgets) and min(scales) <= guidance <= max(scales)):
        return None
    ratios = polynomial_ratios(regression(used, degree, dc_order), nfe, guidance, dc_order)
    times = make_grid(about["grid"], first.schedule, nfe).times
    objective = f"{first.objective}, by regression over {holdings(used)}"
    names = " ".join([*sorted(one.sha256 for one in used), str(nfe), str(guidance)])
    return replace(
        first, nfe=nfe, guidance=guidance, objective=objective, cost=sum((one.cost for one in used), Cost()), curve=(),
        values=about | {"ratios": ratios, "times": list(times), "degrees": list(degree)}, arrays={},
        sha256=hashlib.sha256(names.encode()).hexdigest(),
    )  # fmt: skip
