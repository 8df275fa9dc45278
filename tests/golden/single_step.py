"""Recordings of DDIM."""

import re

import solvers
from tests.golden import Case


def ddim(case: Case) -> solvers.Plan | solvers.Procedure:
    eta, data = 1.0 if "eta1" in case.id else 0.0, re.search("dtz|d2z", case.id) is not None
    return solvers.plan("ddim", case.schedule, times=case.times, eta=eta, denoise_to_zero=data)


PLANS = {"(dpmpp|ds)-S1-|ddim-gen|bdia-g0-|df-ddim(?!-linspace|_a0-leading-nfe)": ddim}
EXPLAINED = {
    "df-ddim_a0-leading-nfe10": "the grid ends twice on the level of label 0: the last call is wasted",
    "df-ddim-linspace": "diffusers steps to t - T//N, not to the grid's next node: state and model time disagree",
}
