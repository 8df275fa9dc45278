"""What the authors of Time-Shift released: the target of a step is shifted, and the next call keeps its label.

Li et al. 2023, arXiv 2305.15583.  From the second step on, the variance of the state that a step starts from picks
    pnm   (Mingxiao-Li/TS-DPM, PNDM's family) the label that the step goes to, around the next one of the grid
    adm   (tingyu215/TS-DPM-ADM, DDIM alone) a label around the one it starts from, by comparison with alpha_bar in
          reverse order; the step goes to T // (N - 1) + 1 labels below it, where the grid's steps are T // N long
but the step after it starts from the grid's label again, in the network as in its coefficients.  The middle of a
Runge-Kutta step may lie between two labels: it is called there, and truncated in the coefficients.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from torch import Tensor

from solvers.model import Cond, Denoiser
from solvers.plan import Noise, Plan
from solvers.pndm import ADAMS_BASHFORTH
from solvers.schedule import Array, Schedule, VPDiscrete
from solvers.time_shift_labels import LABELS, Shifts, coupled, label_of, levels, nearest, time_of, variance

Call = Callable[[Tensor, Array], Tensor]
Shift = Callable[[Tensor, float, float], tuple[float, Array, Array]]

PNDM_ORDER = {"ddim": 1, "ddpm": 1, "pndm_s": 2, "pndm_f": 4}
BASES = {"pnm": tuple(PNDM_ORDER), "adm": ("ddim",)}


def pnm(schedule: Schedule, steps: int, window: int, cutoff: int) -> Shift:
    """Of a step from label t to s: the label around which it looked, those it found, those to go to."""

    def shift(x: Tensor, t: float, s: float) -> tuple[float, Array, Array]:
        found = coupled(schedule, x, s, window) if s > cutoff else np.full(len(x), s)
        return s, found, found

    return shift


def adm(schedule: Schedule, steps: int, window: int, cutoff: int) -> Shift:
    """As pnm, by the other rule."""

    def shift(x: Tensor, t: float, s: float) -> tuple[float, Array, Array]:
        if t <= cutoff:
            return t, np.full(len(x), t), np.full(len(x), s)
        labels = t + np.arange(-(window // 2), window // 2 + 1)
        labels = labels[(labels >= 0) & (labels < LABELS)]
        reversed_alpha_bar = schedule.alpha(time_of(schedule, LABELS - 1 - labels)) ** 2
        found = labels[nearest(variance(x), reversed_alpha_bar)]
        return t, found, found - LABELS // (steps - 1) - 1

    return shift


SHIFTS = {"pnm": pnm, "adm": adm}


def transfer(schedule: Schedule, x: Tensor, e: Tensor, t: Array, s: Array, z: Tensor | None = None) -> Tensor:
    """DDIM's map from labels t (B,) to s along the noise e; with a draw z, DDPM's.  Song et al. 2021, Eq. (12)."""
    (a, sigma_t), (b, sigma_s) = (levels(schedule, time_of(schedule, np.floor(label)), x) for label in (t, s))
    D = (x - sigma_t * e) / a
    if z is None:
        return b * D + sigma_s * e
    fresh = (1 - (a / b) ** 2).sqrt() * sigma_s / sigma_t
    return b * D + (sigma_s**2 - fresh**2).sqrt() * e + fresh * z


def step_noise(schedule: Schedule, base: str, call: Call, x: Tensor, t: Array, s: Array, e: list[Tensor]) -> Tensor:
    """The noise that a step from t to s follows; `e` are those at the starts of the steps so far, newest first."""
    e.insert(0, call(x, t))
    if base == "pndm_s" and len(e) == 1:
        return (e[0] + call(transfer(schedule, x, e[0], t, s), s)) / 2
    if base == "pndm_f" and len(e) < 4:
        m = (t + s) / 2
        e_2 = call(transfer(schedule, x, e[0], t, m), m)
        e_3 = call(transfer(schedule, x, e_2, t, m), m)
        e_4 = call(transfer(schedule, x, e_3, t, s), s)
        return (e[0] + 2 * e_2 + 2 * e_3 + e_4) / 6
    first, *others = zip(ADAMS_BASHFORTH[PNDM_ORDER[base]], e, strict=False)
    return sum((w * e_j for w, e_j in others), first[0] * first[1])


def run(
    plan: Plan, base: str, shift: Shift, denoiser: Denoiser, x: Tensor, noise: Noise | None, cond: Cond | None
) -> Shifts:
    """The base's steps over the plan's labels, from the second on shifted."""
    schedule, labels = plan.schedule, label_of(plan.schedule, plan.times)
    nominal, found, called, e = list[float](), list[Array](), list[Array](), list[Tensor]()

    def call(x: Tensor, label: Array) -> Tensor:
        called.append(label)
        return denoiser.at_each(x, time_of(schedule, label), "noise", cond)

    for i, (t, s) in enumerate(pairwise(labels.tolist())):
        here, to = np.full(len(x), t), np.full(len(x), s)
        if i > 0:
            label, shown, to = shift(x, t, s)
            nominal.append(label)
            found.append(shown)
        e_bar = step_noise(schedule, base, call, x, here, to, e)
        x = transfer(schedule, x, e_bar, here, to, noise(i) if base == "ddpm" and noise else None)
    return Shifts(x, tuple(nominal), np.array(found), np.array(called))


def check(official: str, base: str, plan: Plan, window: int, cutoff: int) -> None:
    """Raises ValueError where the released code has no such solver, or would index what is not there."""
    where = f"time_shift: official={official}"
    if base not in BASES[official]:
        raise ValueError(f"{where} has the bases {', '.join(BASES[official])}, not {base}")
    labels = label_of(plan.schedule, plan.times)
    if not isinstance(plan.schedule, VPDiscrete) or len(plan.schedule.betas) != LABELS or (labels % 1).any():
        raise ValueError(f"{where} needs whole labels: a VPDiscrete schedule of 1000 betas, and a grid such as leading")
    if official == "pnm" and labels[-1] < 0:
        raise ValueError(f"{where} ends at label 0, not on the data: give grid=linspace or times")
    around = labels[2:] if official == "pnm" else labels[1:-1]
    shortest = float(min((-np.diff(labels)[1:])[around > cutoff], default=np.inf))
    if window // 2 >= shortest:
        raise ValueError(f"{where}: window={window} reaches beyond a step of {shortest:g} labels")
