"""Recordings of DPM-Solver and DPM-Solver++: the official code, diff-sampler's, k-diffusion's and diffusers'."""

from collections.abc import Mapping

import numpy as np

import solvers
from solvers.grid import block_orders
from solvers.plan import Option
from tests.golden import Case


def on(name: str, case: Case, times: list[float], options: Mapping[str, Option]) -> solvers.Plan:
    plan = solvers.method(name).build(case.schedule, times=times, options=options)
    assert isinstance(plan, solvers.Plan)
    return plan


def named(case: Case, order: str | int, multistep: bool) -> str:
    data = case.options["algorithm_type"] == "dpmsolver++"
    return f"dpmpp_{order}{'m' if multistep else 's'}" if data else f"dpm_solver_{order}{'m' if multistep else ''}"


def official(case: Case) -> solvers.Plan:
    """A singlestep update calls where it was recorded to, at nodes that are not all of a grid of its own."""
    multistep, order = case.options["method"] == "multistep", case.id.split("-")[1][1]
    times = case.times
    if not multistep:
        times = [*case.call_times[: case.manifest["steps"]], times[-1]]
    options: dict[str, Option] = {"denoise_to_zero": case.options["denoise_to_zero"]}
    if case.options["dynamic_thresholding"]:
        options["thresholding"] = "dynamic"
    if case.options["solver_type"] == "taylor":
        options["solver_type"] = "taylor"
    if not case.options["lower_order_final"]:
        options["lower_order_final"] = "never"
    return on(named(case, order, multistep), case, times, options)


def diff_sampler(case: Case) -> solvers.Plan:
    options: dict[str, Option] = {
        "lower_order_final": "always" if case.options["lower_order_final"] else "never",
        "thresholding": "dynamic" if case.options.get("thr") else "none",
        "afs": case.options["afs"],
        "denoise_to_zero": case.options["denoise_to_zero"],
    }
    prefix = "dpmpp_" if case.options["predict_x0"] else "dpm_solver_"
    return on(f"{prefix}{case.options['max_order']}m", case, case.times, options)


def k_diffusion_2m(case: Case) -> solvers.Plan:
    return on("dpmpp_2m", case, case.times, {"lower_order_final": "never"})


def k_diffusion_fast(case: Case) -> solvers.Plan:
    """The ends of the updates were recorded; in between, steps equal in lambda, one a call."""
    lam = np.log(case.array("alpha") / case.array("sigma"))
    orders = block_orders(3, case.manifest["nfe"])
    inner = [np.linspace(lam[b], lam[b + 1], k + 1)[:-1] for b, k in enumerate(orders)]
    times = case.schedule.t_of_lam(np.append(np.concatenate(inner), lam[-1])).tolist()
    return on("dpm_solver_fast", case, times, {"eta": case.options["eta"]})


def diffusers_times(case: Case) -> list[float]:
    """The recorded grid; where it ends twice on one level, a wasted call, the second end is a hair later."""
    times = case.times_of(case.array("alpha"), case.array("sigma"))
    if times[-1] > times[-2] * (1 - 1e-9):
        times[-1] = times[-2] * (1 - 1e-12)
    return times


def diffusers_multistep(case: Case) -> solvers.Plan:
    algorithm, order = case.options["algorithm_type"], case.options["solver_order"]
    times = diffusers_times(case)
    if order == 1:
        return on("ddim", case, times, {"eta": float(algorithm.startswith("sde"))})
    if algorithm.startswith("sde"):
        return on("dpmpp_sde_2m", case, times, {})
    options: dict[str, Option] = {"lower_order_final": "below_15"}
    if not case.options.get("lower_order_final", True):
        options["lower_order_final"] = "never"
    if "eulerfinal" in case.id:
        options["lower_order_final"] = "always"
    if case.options.get("solver_type") == "heun":
        options["solver_type"] = "taylor"
    return on(named(case, order, multistep=True), case, times, options)


def diffusers_singlestep(case: Case) -> solvers.Plan:
    """Orders 1, 2, 3, 1, 2, 3, ..., each from the state that the last order 1 started from: blocks of three calls."""
    times, order = diffusers_times(case), case.options["solver_order"]
    options: dict[str, Option] = {"lower_order_final": "always" if case.options["lower_order_final"] else "never"}
    if order == 1:
        return diffusers_multistep(case)
    if order == 3:
        options["solver_type"] = "midpoint"
    return on(named(case, order, multistep=False), case, times, options)


PLANS = {
    "(dpmpp|ds)-[MS][23]-": official,
    r"ds-dpmpp(?!\dm-logsnr-(afs-)?d2z)": diff_sampler,
    "kd-dpmpp_2m-": k_diffusion_2m,
    "kd-dpm_fast": k_diffusion_fast,
    r"df-dpm(pp)?\dm_|df-sdedpmpp2m|dfdpm-sde-dpmsolverpp-o[12]": diffusers_multistep,
    r"df-dpm(pp)?\ds_": diffusers_singlestep,
}
EXPLAINED = {
    r"ds-dpmpp\dm-logsnr-(afs-)?d2z": "all data predictions are thresholded but the one of the call that denoises",
    "dfdpm-sde-dpmsolverpp-o3": "its third-order weight is phi_2 + 1/2 for phi_2 - 1/2, which does not vanish with h",
}
