"""The search for times pays off for any solver that makes plans, goes on where it was, and keeps to its budget."""

import json

import numpy as np
import pytest

import solvers
from solvers.plan import Plan
from solvers.tracer import Method
from solvers.tune.autodiffusion import Schedules, autodiffusion
from solvers.tune.base import Finding, NoNotes
from tests.solvers.searches import TINY, InterruptedSearchError, Pages, error, problem

VP = solvers.VPLinear()


def found(finding: Finding) -> Plan:
    return Plan.from_json(json.dumps(finding.values["plan"]))


@pytest.mark.parametrize(("base", "nfe", "gain"), [("ddim", 6, 0.97), ("dpmpp_2m", 6, 0.7), ("dpm_solver_2", 6, 0.7)])
def test_the_search_improves_on_every_named_grid(base: str, nfe: int, gain: float) -> None:
    finding = autodiffusion.tune(
        task := problem(), nfe, NoNotes(), TINY | {"base": base, "calls": 1200, "screened": 80}
    )
    method = solvers.method(base)
    assert isinstance(method, Method)
    space = Schedules(method, VP, nfe)
    made = found(finding)
    assert finding.base == base
    assert (made.method, made.nfe, made.times[0], made.times[-1]) == (base, nfe, 1.0, 1e-3)
    assert made == space.plan(made.times)
    assert error(made) < gain * min(error(space.plan(times)) for times in space.published.values())
    assert 1200 - nfe * 12 < task.cost.calls <= 1200


def test_it_begins_with_the_solvers_own_grid_and_the_named_ones() -> None:
    ddim, euler = (solvers.method(name) for name in ("ddim", "euler"))
    assert isinstance(ddim, Method)
    assert isinstance(euler, Method)
    assert list(Schedules(ddim, VP, 5).published) == ["uniform", "logsnr", "karras", "quadratic"]
    on_edm = Schedules(euler, solvers.EDM(), 5).published  # Euler's own grid ends on the data, where no other does
    assert "edm" not in on_edm
    assert all(times[-1] == 0.002 for times in on_edm.values())


def test_children_have_falling_times_between_the_same_ends() -> None:
    ddim, rng = solvers.method("ddim"), np.random.default_rng(0)
    assert isinstance(ddim, Method)
    space = Schedules(ddim, VP, 8)
    a, b = list(space.published.values())[:2]
    for _ in range(200):
        child = space.child(a, b, rng)
        assert np.all(np.diff(child) < 0)
        assert (len(child), child[0], child[-1]) == (9, 1.0, 1e-3)
        a, b = child, a


def test_a_search_that_was_interrupted_finds_the_same() -> None:
    settings = TINY | {"base": "ipndm"}
    whole = (task := problem(), autodiffusion.tune(task, 5, NoNotes(), settings))
    pages = None
    for last in (2, 1):
        task = problem()
        pages = Pages(task, pages, last)
        with pytest.raises(InterruptedSearchError):
            autodiffusion.tune(task, 5, pages, settings)
    task = problem()
    assert autodiffusion.tune(task, 5, Pages(task, pages), settings) == whole[1]
    assert task.cost == whole[0].cost


def test_what_is_found_follows_from_the_seed() -> None:
    one, again, other = (autodiffusion.tune(problem(seed), 4, NoNotes(), TINY) for seed in (12345, 12345, 6))
    assert one == again
    assert one.values != other.values


@pytest.mark.parametrize(
    ("nfe", "settings", "message"),
    [
        (1, {}, r"nfe=1 must be at least 2"),
        (4, {"calls": 300}, r"calls=300 are too few for 12 samples: give at least 336 calls"),
        (4, {"base": "usf"}, r"base='usf' must make plans without tuning"),
        (4, {"base": "dpm_solver_12"}, r"base='dpm_solver_12' must make plans without tuning"),
        (4, {"base": "dpmpp_2m_sde"}, r"base='dpmpp_2m_sde' adds noise"),
        (4, {"base": "heun"}, r"heun cannot spend 4 calls: it can spend"),
        (4, {"objective": "metric"}, r"this problem has no metric"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_a_call(
    nfe: int, settings: dict[str, solvers.Option], message: str
) -> None:
    task = problem()
    with pytest.raises(ValueError, match=message):
        autodiffusion.tune(task, nfe, NoNotes(), TINY | settings)
    assert task.cost.calls == 0


def test_an_unknown_base_is_named() -> None:
    with pytest.raises(solvers.UnknownNameError, match=r"unknown solver 'dimm'"):
        autodiffusion.tune(problem(), 4, NoNotes(), TINY | {"base": "dimm"})
