"""Every recorded run of the official implementations, reproduced number by number."""

import re

import pytest
import torch

import solvers
from tests.golden import Case, cases

RULES = {"dpmpp-": "below_10", "kd-": "never", "ds-": "always", "df-": "below_15"}


def plan_of(case: Case) -> solvers.Plan:
    """The plan that a recording's id names, on its recorded grid."""
    options: dict[str, solvers.Option] = {"denoise_to_zero": "dtz" in case.id or "d2z" in case.id}
    if re.match("(edm|ds|kd|df)-heun", case.id):
        name = "heun"
    elif re.match("dpmpp-M2|(kd|ds|df)-dpmpp", case.id):
        name = "dpmpp_2m"
        rule = next(rule for prefix, rule in RULES.items() if case.id.startswith(prefix))
        options["lower_order_final"] = "never" if "nolof" in case.id else rule
    else:
        name = "ddim"
        options["eta"] = 1.0 if "eta1" in case.id else 0.0
    return solvers.plan(name, case.schedule, times=case.times, **options)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_reproduces_the_official_run(case: Case) -> None:
    plan, denoiser = plan_of(case), case.denoiser()
    noise = torch.from_numpy(case.array("noise")) if plan.draws else torch.empty(0)
    x = solvers.sample(plan, denoiser, case.x_init, noise=lambda k: noise[k], cond=case.cond)
    torch.testing.assert_close(x, case.x_final, rtol=0, atol=case.manifest.get("tolerance_max_abs", 1e-9))
    assert denoiser.calls == plan.nfe == case.manifest["nfe"]
    assert denoiser.forwards == denoiser.calls * (2 if case.guidance != 1 else 1)
