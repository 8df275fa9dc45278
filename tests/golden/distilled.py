"""Recordings of what distilled models are sampled with: consistency models, LCM, TCD and DMD2."""

from dataclasses import replace

import solvers
from solvers.plan import Combine, Threshold
from tests.golden import Case


def consistency(case: Case) -> solvers.Plan:
    """`raw` is the sampler alone; around it each output (`clip`) and the sample (both) are clamped to [-1, 1]."""
    rule = "static" if case.id.endswith("-clip") else "none"
    plan = solvers.plan("consistency", case.schedule, times=case.times, thresholding=rule)
    assert isinstance(plan, solvers.Plan)
    if case.id.endswith("-raw"):
        return plan
    x = plan.instructions[-1].out
    clamped = Threshold(x + 1, x, "static"), Combine(x + 2, ((1.0, x + 1),))
    return replace(plan, instructions=plan.instructions + clamped)


def on_labels(name: str, case: Case, **options: solvers.Option) -> solvers.Plan | solvers.Procedure:
    """The method at the labels that were asked for, ending on the data, or on its own grid, which is pinned so too."""
    labels = case.manifest["schedule"].get("timesteps")
    if labels is None:
        return solvers.plan(name, case.schedule, case.manifest["nfe"], **options)
    return solvers.plan(name, case.schedule, times=[(n + 1) / 1000 for n in [*labels, -1]], **options)


PLANS = {
    "cm-(onestep|multistep)-": consistency,
    "lcm-": lambda case: on_labels("lcm", case, boundary=True),
    "dmd2-": lambda case: on_labels("lcm", case),
    "tcd-": lambda case: on_labels("tcd", case, eta=case.options["eta"]),
}
EXPLAINED: dict[str, str] = {}
