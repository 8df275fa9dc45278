"""Recordings of DDIM, Euler and Heun."""

import re

import solvers
from tests.golden import Case


def ddim(case: Case) -> solvers.Plan:
    eta = 1.0 if "eta1" in case.id else 0.0
    return solvers.plan("ddim", case.schedule, times=case.times, eta=eta, denoise_to_zero=ends_on_data(case))


def heun(case: Case) -> solvers.Plan:
    return solvers.plan("heun", case.schedule, times=case.times, denoise_to_zero=ends_on_data(case))


def ends_on_data(case: Case) -> bool:
    """Whether one more call turns the end of the grid into a data prediction."""
    return re.search("dtz|d2z", case.id) is not None


PLANS = {
    "(dpmpp|ds)-S1-|ddim-gen|bdia-g0-|kd-euler-|ds-euler-(?!.*afs)": ddim,
    "df-ddim(?!-linspace|_a0-leading-nfe)|edmabl-edm-linear-none-euler": ddim,
    "edm-heun|ds-heun-(?!.*afs)|kd-heun-|df-heun-": heun,
}
EXPLAINED = {
    "df-ddim_a0-leading-nfe10": "the grid ends twice on the level of label 0: the last call is wasted",
    "df-ddim-linspace": "diffusers steps to t - T//N, not to the grid's next node: state and model time disagree",
    "edmabl-": "EDM's ablation of its own sampler: steps in the t of another schedule",
}
