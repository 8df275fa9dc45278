"""What the gate is made of: the plain loop, differences of plans, ratios beyond their noise."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import solvers
from bench.gate.baseline import Past
from bench.gate.facts import cell_fault, plan_of, program, program_fault
from bench.gate.plain import Plain
from bench.gate.speed import Session, noise, slowness
from tests.solvers.common import NAMES, SCHEDULES, denoiser, draws, some_plan, start


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
def test_the_plain_loop_is_what_the_executor_does(name: str, schedule: str) -> None:
    plan = some_plan(name, SCHEDULES[schedule])
    network, z, x_T = denoiser(plan.schedule), draws(plan, 3), start(plan.schedule, 3)
    ours = solvers.sample(plan, network, x_T, noise=lambda k: z[k])
    plain = Plain(plan_of(program(plan)), network.network, network)(x_T, lambda k: z[k], {})
    torch.testing.assert_close(plain, ours, rtol=0, atol=1e-9 * float(ours.abs().max()))


@pytest.mark.parametrize("interval", [(0.0, float("inf")), (0.2, 2.0)])
def test_the_plain_loop_is_guided_alike(interval: tuple[float, float]) -> None:
    plan, free = some_plan("dpmpp_2m", SCHEDULES["VPLinear"]), denoiser(SCHEDULES["VPLinear"])
    guided = solvers.Denoiser(free.network, plan.schedule, guidance=solvers.Guidance(3.0, {"y": 3}, interval))
    x_T, cond = start(plan.schedule, 3), {"y": torch.tensor([0, 1, 2])}
    ours = solvers.sample(plan, guided, x_T, cond=cond)
    plain = Plain(plan, free.network, guided)(x_T, lambda k: x_T, cond)
    torch.testing.assert_close(plain, ours, rtol=0, atol=1e-9 * float(ours.abs().max()))
    assert not torch.allclose(ours, solvers.sample(plan, free, x_T, cond=cond))


@given(st.data(), st.sampled_from(["unipc", "dpmpp_2m_sde", "deis_tab3", "pndm_f"]), st.sampled_from([1e-12, 1e-6]))
def test_one_number_of_a_plan_that_moved_is_found(data: st.DataObject, name: str, by: float) -> None:
    """Rounding of another machine is not, and anything larger is, and told by its place and both values."""
    kept = program(some_plan(name, SCHEDULES["EDM"]))
    moved = copy.deepcopy(kept)
    k = data.draw(st.integers(0, len(kept["instructions"]) - 1))
    instruction = moved["instructions"][k]
    if "t" in instruction:
        before = instruction["t"]
        after = instruction["t"] = before * (1 + by)
    else:
        kind = data.draw(st.sampled_from([kind for kind in ("terms", "noise") if instruction[kind]]))
        term = data.draw(st.sampled_from(instruction[kind]))
        before = term[0]
        after = term[0] = before * (1 + by)
    fault = program_fault(kept, moved)
    assert bool(fault) == (by > 1e-9)
    assert not fault or fault.startswith(f"instruction {k}, ")
    assert not fault or f"{before!r} became {after!r}" in fault


def past(*sessions: Sequence[float]) -> Past:
    return Past(digest="", nfe=1, counted_nfe=1, forwards=1, plan={}, values={}, ratios=tuple(map(tuple, sessions)))


def session(centre: float, rng: np.random.Generator, spread: float = 0.05) -> tuple[float, ...]:
    return tuple(centre * np.exp(spread * rng.standard_normal(40)))


def timed(centre: float, rng: np.random.Generator, waits: float = 1.0) -> Session:
    """By the processor, and by a wall on which neighbours leave five times the spread."""
    return Session(session(centre, rng), session(waits * centre, rng, 0.25))


@pytest.mark.parametrize(("slower", "caught"), [(1.0, False), (1.04, False), (1.3, True), (0.7, False)])
def test_a_ratio_fails_that_is_worse_by_more_than_sessions_differ(slower: float, caught: bool) -> None:
    rng = np.random.default_rng(0)
    before = {f"{k}": past(*(session(np.exp(0.01 * rng.standard_normal()), rng) for _ in range(5))) for k in range(9)}
    now = {name: timed(slower, rng) for name in before}
    assert {bool(found.fault) for found in slowness(before, now, 1.05).values()} == {caught}


@pytest.mark.parametrize(("waits", "caught"), [(1.0, False), (0.8, False), (1.4, True)])
def test_waiting_fails_though_it_costs_no_processor(waits: float, caught: bool) -> None:
    rng = np.random.default_rng(2)
    before = {f"{k}": past(*(session(1, rng) for _ in range(5))) for k in range(9)}
    found = slowness(before, {name: timed(1, rng, waits) for name in before}, 1.05).values()
    assert all(("it waits: " in slow.fault) == caught for slow in found)
    assert caught or not any(slow.fault for slow in found)


def test_what_sessions_differ_by_is_allowed() -> None:
    rng = np.random.default_rng(1)
    wild = {f"{k}": past(*(session(np.exp(0.1 * rng.standard_normal()), rng) for _ in range(5))) for k in range(20)}
    assert 1.25 < noise(wild.values()) < 1.55  # three times 0.1, and a little for five sessions alone
    now = {name: timed(1.2, rng) for name in wild}
    assert not any(found.fault for found in slowness(wild, now, 1.05).values())


def test_another_network_or_nfe_is_named() -> None:
    cell = past([1.0])
    assert cell_fault(cell, cell) == ""
    assert cell_fault(cell, cell.model_copy(update={"nfe": 2})) == "NFE 1 became 2"
    assert "the network is another" in cell_fault(cell, cell.model_copy(update={"digest": "a" * 64}))
