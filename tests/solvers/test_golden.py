"""Every recorded run of the official implementations, reproduced number by number, or explained."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import solvers
from tests.golden import (
    Case,
    adaptive,
    cases,
    dc_solver,
    distilled,
    dpm_solver,
    flow,
    history,
    k_diffusion,
    single_step,
    time_shift,
    unipc,
    v3,
)

FAMILIES = (
    dpm_solver,
    history,
    adaptive,
    k_diffusion,
    single_step,
    flow,
    unipc,
    dc_solver,
    time_shift,
    v3,
    distilled,
)
PLANS: dict[str, Callable[[Case], solvers.Plan]] = {p: f for family in FAMILIES for p, f in family.PLANS.items()}
DRAWS: dict[str, Callable[[Case, solvers.Plan], Tensor]] = {
    p: f for family in FAMILIES for p, f in getattr(family, "DRAWS", {}).items()
}
EXPLAINED: dict[str, str] = {p: why for family in FAMILIES for p, why in family.EXPLAINED.items()}
TOLERANCE: dict[str, float] = {p: t for family in FAMILIES for p, t in getattr(family, "TOLERANCE", {}).items()}


def claims(case: Case) -> list[str]:
    return [pattern for pattern in PLANS if re.match(pattern, case.id)]


def draws(case: Case, plan: solvers.Plan) -> Tensor:
    """The draws that the official run used, one a draw of the plan."""
    own = [f for pattern, f in DRAWS.items() if re.match(pattern, case.id)]
    return own[0](case, plan) if own else case.noise


def tolerance(case: Case) -> float:
    """The recording's own, unless a family says why its is another."""
    return next((t for pattern, t in TOLERANCE.items() if re.match(pattern, case.id)), case.tolerance)


@pytest.mark.parametrize("case", [c for c in cases() if claims(c)], ids=lambda case: case.id)
def test_reproduces_the_official_run(case: Case) -> None:
    plan, denoiser = PLANS[claims(case)[0]](case), case.denoiser()
    noise = draws(case, plan) if plan.draws else torch.empty(0)
    x = solvers.sample(plan, denoiser, case.x_init, noise=lambda k: noise[k], cond=case.cond)
    torch.testing.assert_close(x, case.x_final, rtol=0, atol=tolerance(case))
    assert denoiser.calls == len(case.call_times)
    assert plan.nfe in (None, denoiser.calls)
    assert denoiser.forwards == denoiser.calls * (2 if case.guidance != 1 else 1)


def test_every_recording_is_reproduced_once_or_explained() -> None:
    twice = [case.id for case in cases() if len(claims(case)) > 1]
    silent = [case.id for case in cases() if not claims(case) and not any(re.match(p, case.id) for p in EXPLAINED)]
    assert (twice, silent) == ([], [])
