"""A few golden recordings for the gate: python -m tests.gate.record > tests/gate/golden.json.

Of each solver on the list the shortest recording on a continuous schedule; two samples of it are enough, since none
depends on another.
"""

import json
import re
from typing import Any

import solvers
from bench.gate.facts import program
from tests.golden import Case, cases
from tests.solvers.test_golden import PLANS, claims, draws

SOLVERS = (
    "ddim", "pndm_f", "plms", "ipndm", "deis_tab2", "deis_rhoab", "dpm_solver_2", "dpm_solver_3", "dpm_solver_2m",
    "dpmpp_2s", "dpmpp_3s", "dpmpp_2m", "dpmpp_3m", "dpmpp_sde_2m", "unipc", "euler", "heun", "dpm_2", "lms",
    "euler_ancestral", "dpm_2_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde", "ghvb", "bdia",
)  # fmt: skip
KEPT = 2  # samples of a recording


def recording(case: Case) -> tuple[str, dict[str, Any]] | None:
    """The solver of a recorded run, and the run as the gate takes it; None where a solver's text is not all of it."""
    plan = PLANS[claims(case)[0]](case)
    ends = re.search("-d2z|-dtz|_dtz", case.id)  # on a grid of its own
    continuous = not isinstance(plan.schedule, solvers.VPDiscrete)  # which is a thousand numbers
    if ends or case.guidance != 1 or not continuous or plan.method not in SOLVERS:
        return None
    usual = solvers.method(plan.method).defaults
    options = {k: v for k, v in plan.options if v != usual.get(k)}
    again = solvers.method(plan.method).build(plan.schedule, times=case.times, options=options)
    if program(again) != program(plan):
        return None
    text = f"{plan.method}({', '.join(f'{k}={v}' for k, v in options.items())})" if options else plan.method
    noise = draws(case, plan)[: plan.draws, :KEPT].tolist() if plan.draws else []
    return plan.method, {
        "source": f"the official run {case.id}",
        "solver": text,
        "schedule": plan.schedule.to_dict(),
        "times": case.times,
        "x_init": case.x_init[:KEPT].tolist(),
        "x_final": case.x_final[:KEPT].tolist(),
        "noise": noise,
    }


def main() -> None:
    found: dict[str, dict[str, Any]] = {}
    for case in sorted(filter(claims, cases()), key=lambda case: (len(case.array("call_alpha")), case.id)):
        if len(case.array("call_alpha")) < 4 or re.search("thr", case.id):
            continue
        held = recording(case)
        if held:
            found.setdefault(held[0], held[1])
    print(
        "{\n"
        + ",\n".join(f"{json.dumps(name)}: {json.dumps(found[name])}" for name in SOLVERS if name in found)
        + "\n}"
    )


if __name__ == "__main__":
    main()
