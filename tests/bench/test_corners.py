"""Corners of plans, guidance and sweeps that were once got wrong."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from bench.errors import UsageError
from bench.runner import prepare
from bench.spec import Sweep
from solvers.plan import Combine, Evaluate, Instruction, Plan, PlanError, Threshold
from tests.solvers.common import start

VP = solvers.VPLinear()


def program(*instructions: Instruction, predicts: Any = "noise") -> Plan:
    return Plan("by hand", (), 1, predicts, VP, (1.0, 0.5), instructions)


def bumpy(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(x) + t[:, None]


@pytest.mark.parametrize("twice", [Combine(2, ((0.5, 1), (0.25, 1))), Combine(2, ((1.0, 1),), ((0.5, 0), (1.0, 0)))])
def test_a_register_or_a_draw_named_twice_in_one_combination_is_refused(twice: Combine) -> None:
    with pytest.raises(PlanError, match="names a register or a draw twice"):
        program(Evaluate(1, 0, 0.7), twice)


def test_the_network_may_be_called_on_a_converted_output() -> None:
    network, x_T = solvers.Denoiser(bumpy, VP, "data"), start(VP, 2)
    plan = program(Evaluate(1, 0, 0.7), Evaluate(2, 1, 0.5), Combine(3, ((1.0, 2),)))
    expected = network(network(x_T, 0.7, "noise"), 0.5, "noise")
    torch.testing.assert_close(solvers.sample(plan, network, x_T), expected)


def test_a_state_of_noise_alone_needs_no_register() -> None:
    plan, z = program(Evaluate(1, 0, 0.7), Combine(2, (), ((3.0, 0),))), torch.ones(2, 4, dtype=torch.float64)
    assert torch.equal(solvers.sample(plan, solvers.Denoiser(bumpy, VP), start(VP, 2), lambda k: z), 3 * z)


def test_the_callback_sees_the_thresholded_prediction() -> None:
    seen: dict[type, Tensor] = {}
    plan = program(Evaluate(1, 0, 0.7), Threshold(2, 1, "static"), Combine(3, ((1.0, 2),)), predicts="data")
    network = solvers.Denoiser(bumpy, VP, "noise")
    x = solvers.sample(plan, network, start(VP, 2), callback=lambda i, out: seen.update({type(i): out}))
    assert torch.equal(seen[Threshold], x)


@pytest.mark.parametrize(("t", "w"), [(3.0, 4.0), (0.002, 4.0)])
def test_the_intervals_upper_end_belongs_to_it(t: float, w: float) -> None:
    assert solvers.Guidance(w, {}, interval=(0.0, t)).at(solvers.EDM(), t) == w


def test_the_intervals_lower_end_does_not_belong_to_it() -> None:
    assert solvers.Guidance(4.0, {}, interval=(3.0, 5.0)).at(solvers.EDM(), 3.0) == 1.0


@pytest.mark.parametrize("ends", [{"t_end": 0.0}, {"t_start": 0.0}], ids=str)
def test_an_end_at_zero_is_refused(ends: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must lie between|strictly decreasing|finite lambda"):
        solvers.plan("dpm_solver_12", VP, **ends)


@pytest.mark.parametrize("name", ["heun", "flow_heun"])
def test_no_budget_of_zero_calls_is_offered(name: str) -> None:
    with pytest.raises(solvers.BudgetError, match="can spend ") as caught:
        solvers.plan(name, solvers.EDM(), 1, grid="edm", afs=True)
    assert "0" not in re.findall(r"\d+", str(caught.value).partition("can spend ")[2])


def job(folder: Path, *names: str, **others: Any) -> Any:
    fields = {"checkpoint": "gmm", "solvers": names, "nfe": (6,), "samples": 40, "latency": False}
    made = prepare(Sweep(**(fields | others)), folder / "run", "cpu")
    made.open()
    assert made.run("a test", lambda cell, samples: None) == []
    return made


@pytest.mark.parametrize("others", [{"cfg_plus_plus": True, "guidance": 0.6}, {}], ids=["CFG++", "noise"])
def test_a_sweep_whose_cells_would_have_no_number_is_refused(tmp_path: Path, others: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="follows no ODE"):
        job(tmp_path, "ddim" if others else "ddim(eta=1)", metrics=("trajectory",), **others)


def test_two_metrics_of_one_name_are_refused(tmp_path: Path) -> None:
    """Two numbers of one name and seed would be combined as two seeds' are."""
    once = ("energy(features=states)", "energy", "mmd(bandwidth=2)")
    prepare(Sweep(checkpoint="gmm", solvers=("ddim",), metrics=once), tmp_path, "cpu")
    for twice in ((*once, "energy( features=states )"), (*once, "mmd(bandwidth=2.0)"), ("trajectory", "trajectory()")):
        with pytest.raises(UsageError, match="metrics: two of them give"):
            prepare(Sweep(checkpoint="gmm", solvers=("ddim",), metrics=twice), tmp_path, "cpu")


def test_a_denoised_adaptive_sample_is_compared_with_the_denoised_solution(tmp_path: Path) -> None:
    solver = "dpm_solver_23(rtol=1e-5, atol=1e-5, denoise_to_zero=true)"
    [record] = job(tmp_path, solver, samples=128, precision="fp64").store.records()
    errors = {m["metric"]: m["value"] for m in record["metrics"]}
    assert errors["trajectory_rmse"] < 5e-5


@pytest.mark.parametrize("solver", ["dpm_solver_12", "heun(grid=karras)"])
def test_cfg_plus_plus_is_refused_where_it_is_not_defined(tmp_path: Path, solver: str) -> None:
    with pytest.raises(UsageError, match="defined for one call at the start of each step"):
        job(tmp_path, solver, cfg_plus_plus=True, guidance=0.6)
