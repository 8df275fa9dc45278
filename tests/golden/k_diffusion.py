"""Recordings of EDM, k-diffusion and what shares their methods: diff-sampler, diffusers and the consistency models."""

import re
from collections.abc import Callable

import torch
from torch import Tensor

import solvers
from tests.golden import Case

Make = Callable[[Case], solvers.Plan]


def build(name: str, case: Case, **options: solvers.Option) -> solvers.Plan:
    """The method on the recorded grid, with the options that an id tells of any method."""
    data, afs = re.search("-d2z|-dtz", case.id) is not None, "-afs" in case.id
    return solvers.plan(name, case.schedule, times=case.times, denoise_to_zero=data, afs=afs, **options)


def method(name: str, **fixed: solvers.Option) -> Make:
    return lambda case: build(name, case, **fixed)


def given(name: str, *names: str, **fixed: solvers.Option) -> Make:
    """The method with the recorded values of the options called `names`."""
    return lambda case: build(name, case, **{n: case.options[n] for n in names}, **fixed)


def churned(name: str) -> Make:
    """EDM writes S_churn, S_min, S_max, S_noise; k-diffusion s_churn, s_tmin, s_tmax, s_noise."""

    def make(case: Case) -> solvers.Plan:
        values = {k.lower().replace("_min", "_tmin").replace("_max", "_tmax"): v for k, v in case.options.items()}
        return build(name, case, **{k: float(v) for k, v in values.items()})

    return make


def churn_draws(case: Case, plan: solvers.Plan) -> Tensor:
    """The official code draws in every step, used or not."""
    options = dict(plan.options)
    sigma = case.array("sigma")[:-1]
    return case.noise[[i for i, s in enumerate(sigma) if options["s_tmin"] <= s <= options["s_tmax"]]]


def independent(case: Case, plan: solvers.Plan) -> Tensor:
    """The recorded pairs of draws, which share the path from u to u_m, as independent increments."""
    z = []
    for k, ((u, u_mid), (_, u_next)) in enumerate(case.array("noise_args").reshape(-1, 2, 2)):
        shared = (u - u_mid) / (u - u_next)
        first, both = case.noise[2 * k], case.noise[2 * k + 1]
        z += [first, (both - shared**0.5 * first) / (1 - shared) ** 0.5]
    return torch.stack(z)


PLANS = {
    "ds-euler-|kd-euler-|df-euler(?!_sigma_min-linspace)|cm-(euler|progdist)-": method("euler"),
    "edmabl-(edm|iddpm|vp)-linear-none-euler": method("euler"),
    "edm-heun|ds-heun-|kd-heun-|df-heun-|cm-heun-|edmabl-(edm|iddpm|vp)-linear-none-heun-": method("heun"),
    "kd-euler_churn-": churned("euler"),
    "kd-heun_churn-|edm-churn-": churned("heun"),
    "ds-dpm2-": given("dpm_2", "r"),
    "kd-dpm_2-|df-kdpm2-": method("dpm_2"),
    "edmabl-(edm|iddpm|vp)-linear-none-heun_mid-": method("dpm_2", midpoint="arithmetic"),
    "cm-dpm-": method("dpm_2", midpoint="cube_root"),
    "kd-lms": given("lms", "order"),
    "df-lms": method("lms"),
    "kd-euler_a|cm-ancestral-": lambda case: build("euler_ancestral", case, eta=case.options.get("eta", 1.0)),
    "kd-dpm_2_a-": given("dpm_2_ancestral", "eta"),
    "kd-dpmpp_2s": given("dpmpp_2s_ancestral", "eta"),
    "kd-dpmpp_sde_(eta0|brownian)-": given("dpmpp_sde", "eta", "r"),
    "kd-dpmpp_sde_iid-": given("dpmpp_sde", "eta", "r", noise="iid"),
    "kd-dpmpp_2m_?sde": given("dpmpp_2m_sde", "eta", "solver_type"),
    "kd-dpmpp_3m_?sde": given("dpmpp_3m_sde", "eta"),
}
DRAWS = {
    "kd-(euler|heun)_churn-|edm-churn-": churn_draws,
    "kd-dpmpp_sde_brownian-": independent,
}
EXPLAINED = {
    "df-euler_sigma_min-linspace-": "the grid ends twice on sigma_min: the last call is wasted",
    "edmabl-vp-vp-vp-": "steps in the t of the VP schedule and in the scaled x: not in sigma",
    "edmabl-(ve|edm)-ve-none-": "steps in t = sigma^2: not in sigma",
}
