"""Budgets: a plan spends exactly the calls asked for, or the error says which budgets can be spent."""

from typing import Any

import pytest
import torch

import solvers
from solvers.grid import make_grid
from solvers.schedule import Schedule
from tests.solvers.common import PLANNED, SCHEDULES, first_time

VP = solvers.VPLinear()


@PLANNED
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_budgets_are_spent_to_the_call_on_every_schedule(name: str, schedule: Schedule) -> None:
    """Every budget up to 50 is tried by the conformance test, on two schedules."""
    spent = 0
    for nfe in (1, 4, 9, 15):
        try:
            plan = solvers.plan(name, schedule, nfe, t_start=first_time(schedule))
        except solvers.BudgetError:
            continue
        denoiser = solvers.Denoiser(lambda x, t: 0.1 * x, schedule)
        assert solvers.sample(plan, denoiser, torch.ones(1, 1), lambda k: torch.zeros(1, 1)).isfinite().all()
        assert plan.nfe == denoiser.calls == denoiser.forwards == nfe
        spent += 1
    assert spent


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_one_call_a_step(name: str) -> None:
    assert [solvers.plan(name, VP, nfe, grid="logsnr").nfe for nfe in range(1, 51)] == list(range(1, 51))


def test_heun_spends_odd_budgets_onto_the_data_and_even_ones_short_of_it() -> None:
    onto, short = ([nfe for nfe in range(1, 21) if budget(nfe, grid)] for grid in ("edm", "karras"))
    assert (onto, short) == (list(range(1, 21, 2)), list(range(2, 21, 2)))


def budget(nfe: int, grid: str) -> bool:
    try:
        return solvers.plan("heun", solvers.EDM(), nfe, grid=grid).nfe == nfe
    except solvers.BudgetError:
        return False


@pytest.mark.parametrize("nfe", [0, -1, 2.5, True, "10"])
def test_a_budget_that_is_no_count_is_refused(nfe: Any) -> None:
    with pytest.raises(solvers.BudgetError, match=r"whole number of network calls >= 1, not"):
        solvers.plan("ddim", VP, nfe)


@pytest.mark.parametrize(("nfe", "times"), [(None, None), (3, [1.0, 0.5])])
def test_a_plan_needs_a_budget_or_times_and_not_both(nfe: int | None, times: list[float] | None) -> None:
    with pytest.raises(ValueError, match=r"either nfe, .* or times"):
        solvers.plan("ddim", VP, nfe, times=times)


@PLANNED
def test_explicit_times_and_ends_are_kept(name: str) -> None:
    assert solvers.plan(name, VP, times=[0.9, 0.4, 0.2]).times == (0.9, 0.4, 0.2)
    plan = solvers.plan(name, VP, 12, grid="karras", t_start=0.8, t_end=0.1)
    assert plan.times == make_grid("karras", VP, len(plan.times) - 1, 0.8, 0.1).times


def test_the_grid_is_the_authors_for_the_schedule_unless_asked_for() -> None:
    ddim = solvers.method("ddim")
    assert (ddim.default_grid(solvers.EDM()), ddim.default_grid(VP)) == ("edm", "uniform")
    assert solvers.plan("ddim", VP, 4).times == make_grid("uniform", VP, 4).times
    assert solvers.plan("ddim", VP, 4, grid="quadratic").times == make_grid("quadratic", VP, 4).times


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_exponential_integrators_start_rectified_flow_from_pure_noise(name: str) -> None:
    plan = solvers.plan(name, solvers.RectifiedFlow(), 5)
    assert (plan.nfe, plan.times[0]) == (5, 1.0)


def test_a_budget_beyond_a_short_discrete_schedule_is_a_budget_error() -> None:
    with pytest.raises(solvers.BudgetError):
        solvers.plan("heun", solvers.VPDiscrete.linear(N=10), 16, grid="trailing")
