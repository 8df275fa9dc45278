"""Recordings of the linear multistep methods in noise, of DEIS and of momentum: PNDM, iPNDM, DEIS, GHVB, BDIA."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

import solvers
from solvers.grid import explicit
from solvers.plan import Combine, Evaluate
from solvers.tracer import Symbol, Tracer
from tests.golden import Case


def plan(case: Case, name: str, times: Sequence[float] | None = None, **options: solvers.Option) -> solvers.Plan:
    made = solvers.plan(name, case.schedule, times=times or case.times, **options)
    assert isinstance(made, solvers.Plan)
    ends_twice = (np.diff(case.array("sigma")[-2:]) == 0).all()
    return wasteful(made) if ends_twice else made


def wasteful(made: solvers.Plan) -> solvers.Plan:
    """The plan and a call at the end of its grid: an official last step from a level to itself, which moves nothing."""
    x = made.instructions[-1].out
    more = Evaluate(x + 1, x, made.times[-1]), Combine(x + 2, ((1.0, x), (0.0, x + 1)))
    return replace(made, instructions=made.instructions + more)


def pndm(case: Case) -> solvers.Plan:
    name = "plms" if "plms" in case.id else "pndm_s" if "S-PNDM" in case.id else "pndm_f"
    return plan(case, name)


def prk(case: Case) -> solvers.Plan:
    """The recorded times hold the midpoints of the three Runge-Kutta steps, which are no nodes of the grid."""
    calls = case.call_times
    nodes = {*calls[:12:4], *calls[12:], case.times[-1]}
    return plan(case, "pndm_f", sorted(nodes, reverse=True))


def ipndm(case: Case) -> solvers.Plan:
    """diff-sampler's, and DEIS's, whose order 3 has four outputs."""
    order = case.options.get("max_order", 4)
    options = {k: case.options.get(k, False) for k in ("afs", "denoise_to_zero")}
    if "ipndmv" in case.id:
        return plan(case, "ipndm_v", order=order, official=True, **options)
    return plan(case, "ipndm", order=order, **options)


def rhoab(case: Case) -> solvers.Plan:
    options = {k: case.options.get(k, False) for k in ("afs", "denoise_to_zero")}
    return plan(case, "deis_rhoab", order=case.options["max_order"] - 1, **options)


def rhork(case: Case) -> solvers.Plan:
    return plan(case, f"deis_rhork{case.options['rk_method'][0]}")


def logrho(case: Case) -> solvers.Plan:
    return plan(case, "deis_logrho", order=case.options["solver_order"])


def repeated_end(case: Case) -> solvers.Plan:
    """The official grid ends twice on its last level: orders fall towards a last step that moves nothing."""
    times, order = [*case.times, 0.0], case.options["solver_order"]
    made = solvers.plan("deis_logrho", case.schedule, times=times, order=order)
    assert isinstance(made, solvers.Plan)
    return wasteful(replace(made, times=tuple(case.times), instructions=made.instructions[:-2]))


def deis(case: Case) -> solvers.Plan:
    """DEIS on the recorded grid, with its own integrals."""
    options = {k: case.options.get(k, False) for k in ("afs", "denoise_to_zero")}
    order = case.options["max_order"] - 1 if "max_order" in case.options else case.options["ab_order"]
    if "rhoAB" in case.id:
        return plan(case, "deis_rhoab", order=order, **options)
    return plan(case, f"deis_tab{order}", **options)


def recorded_deis(case: Case) -> solvers.Plan:
    """The same with the recorded weights, which are rectangle sums; test_history compares them with the integrals."""
    made = deis(case)
    p, (A, C) = Tracer(explicit(made.schedule, case.times), "noise", dict(made.options)), recorded_weights(case)
    x, e = p.start(), list[Symbol]()
    for i in range(len(C)):
        e = [p.model(x, i), *e[: C.shape[1] - 1]]
        x = p.state(sum((c * e_j for c, e_j in zip(C[i], e, strict=False)), A[i] * x))
    if case.options.get("denoise_to_zero"):
        p.denoise()
    return replace(made, instructions=tuple(p.instructions))


def recorded_weights(case: Case) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(A, C) of x' = A_i x + sum_j C_ij e_{i-j}."""
    if case.has("deis_coeff"):
        C = np.nan_to_num(case.array("deis_coeff"))
        C[0, 0] = np.diff(case.array("sigma"))[0]
        return np.ones(len(C)), C
    A, C, alpha = case.array("x_coef"), case.array("eps_coef"), case.array("alpha")
    if "rhoAB" in case.id:  # the state is x/alpha there
        A, C = A * alpha[1:] / alpha[:-1], C * alpha[1:, None]
    return A, C


def momentum(case: Case) -> solvers.Plan:
    return plan(case, case.id.partition("-")[0], order=float(case.options["order"]))


def bdia(case: Case) -> solvers.Plan:
    return plan(case, "bdia", gamma=float(case.options["gamma"]))


PLANS = {
    "pndm-S-|pndm-F-PNDM-cons-speed(?!8)|plms-|df-pndm_plms-leading": pndm,
    "df-pndm_prk-leading": prk,
    "deis-ipndm|ds-ipndm": ipndm,
    "ds-deisrhoab": rhoab,
    "deis-rhoRK": rhork,
    "df-deis.-(?!karras)": logrho,
    "df-deis.-karras": repeated_end,
    "deis-(tAB|rhoAB)|ds-deistab": recorded_deis,
    "(ghvb|hb|nt)-": momentum,
    "bdia-g(0.5|1)-": bdia,
}
EXPLAINED = {
    "pndm-F-PNDM-cons-speed8": "steps of 125 labels: the official code truncates their midpoints to whole labels",
    "df-pndm_(plms|prk)-(linspace|trailing)": "diffusers steps to t - T//N, not to the grid's next node: state and "
    "model time disagree",
}
TOLERANCE = {
    # The official inverse of rho goes through 1 - abar = 0.9998, which costs 3e-13 in the level of a stage; the first
    # of two steps takes sigma/alpha from 157 to 1.3, and Kutta's weights 2 and -1 do the rest.
    "deis-rhoRK-3kutta-disc-log1-n2": 2e-9,
}
