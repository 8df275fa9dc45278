"""Recordings of UniPC: its own code, diff-sampler's and diffusers'."""

import re
from dataclasses import replace

import solvers
from solvers.plan import Combine, Option, Plan, Threshold
from tests.golden import Case


def unipc(case: Case) -> Plan:
    given = case.options
    order = given.get("solver_order") or given.get("max_order") or int(re.findall(r"-o(\d)-", case.id)[0])
    data = given.get("algorithm_type", "data_prediction") == "data_prediction" and given.get("predict_x0", True)
    options: dict[str, Option] = {
        "order": order,
        "variant": given.get("variant") or given["solver_type"],
        "predicts": "data" if data else "noise",
        "lower_order_final": "always" if given.get("lower_order_final", True) else "never",
        "corrector": given.get("disable_corrector") != "all",
        "afs": given.get("afs", False),
        "denoise_to_zero": given.get("denoise_to_zero", False),
        "thresholding": "dynamic" if given.get("thr") else "none",
    }
    plan = solvers.plan("unipc", case.schedule, times=case.times, **options)
    return unthresholded_end(plan) if options["denoise_to_zero"] and not plan.linear else plan


def unthresholded_end(plan: Plan) -> Plan:
    """diff-sampler thresholds every data prediction but the one that it may end on."""
    *rest, threshold, end = plan.instructions
    assert isinstance(threshold, Threshold)
    assert isinstance(end, Combine)
    assert end.terms == ((1.0, threshold.out),)
    return replace(plan, instructions=(*rest, replace(end, terms=((1.0, threshold.register),))))


PLANS = {"unipc-|ds-unipc|df-unip(?!.*sigma_min-karras)": unipc}
EXPLAINED = {"df-unip.*sigma_min-karras": "the grid ends twice on the same level: the last call is wasted"}
