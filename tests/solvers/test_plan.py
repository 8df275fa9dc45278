"""Plans: what is refused, what is kept through JSON, how they print, and when each register dies."""

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import solvers
from solvers.plan import Combine, Evaluate, Instruction, Plan, PlanError, reads
from solvers.schedule import Schedule
from tests.solvers.common import PLANNED, SCHEDULES, plan_of, some_plan

BUDGETS = (1, 2, 3, 5, 12, 19)
EVERY = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
finite = st.floats(allow_nan=False, allow_infinity=False)


def program(*instructions: Instruction, **fields: Any) -> Plan:
    """A hand-written plan on VP-linear."""
    plan = Plan("by hand", (), 1, "noise", solvers.VPLinear(), (1.0, 0.5), instructions)
    return replace(plan, **fields)


CALL, LAST = Evaluate(1, 0, 1.0), Combine(2, ((0.5, 0), (0.25, 1)))


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        ((), "ends with a Combine"),
        ((CALL,), "ends with a Combine"),
        ((Evaluate(1, 7, 1.0), LAST), "instruction 0 .* reads register 7, which nothing has written"),
        ((CALL, Combine(2, ((1.0, 2),))), "reads register 2, which nothing"),
        ((CALL, Combine(1, ((1.0, 0),))), "writes register 1 a second time"),
        ((CALL, Combine(0, ((1.0, 1),))), "writes register 0 a second time"),
        ((Evaluate(1, 0, 0.0), LAST), r"instruction 0 \(Evaluate\) calls the network at t = 0.0"),
        ((Evaluate(1, 0, -0.1), LAST), "calls the network at t = -0.1"),
        ((Evaluate(1, 0, 1.01), LAST), r"at t = 1.01, outside \(0, 1.0\]"),
        ((Evaluate(1, 0, float("nan")), LAST), "at t = nan"),
        ((CALL, Combine(2, ((float("nan"), 0),))), "coefficient nan at register 0"),
        ((CALL, Combine(2, ((1.0, 0), (float("inf"), 1)))), "coefficient inf at register 1"),
        ((CALL, Combine(2, ((1.0, 0),), ((-float("inf"), 0),))), "coefficient -inf"),
        ((CALL, Combine(2, ())), "has no terms"),
    ],
)
def test_a_program_that_cannot_run_is_refused(instructions: tuple[Instruction, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        program(*instructions)


def test_an_unknown_parametrisation_is_refused() -> None:
    with pytest.raises(PlanError, match="predicts must be one of noise, data, v, velocity, not 'score'"):
        program(CALL, LAST, predicts="score")


def test_calls_and_draws_are_counted() -> None:
    noisy = Combine(3, ((1.0, 2),), ((0.5, 0), (0.5, 1)))
    assert (program(CALL, LAST).nfe, program(CALL, LAST).draws) == (1, 0)
    assert (program(CALL, LAST, Evaluate(4, 2, 0.5), noisy).nfe, program(CALL, LAST, noisy).draws) == (2, 2)


@PLANNED
@EVERY
def test_json_round_trip_is_exact(name: str, schedule: Schedule) -> None:
    plans = [plan for nfe in BUDGETS if (plan := plan_of(name, schedule, nfe))]
    assert plans
    for plan in plans:
        assert Plan.from_json(plan.to_json()) == plan


@given(finite, finite, st.floats(1e-300, 1, exclude_max=True))
def test_every_float_survives_json(c: float, d: float, t: float) -> None:
    plan = program(Evaluate(1, 0, t), Combine(2, ((c, 0), (d, 1)), ((c, 0),)), times=(1.0, t))
    assert Plan.from_json(plan.to_json()) == plan


def test_json_is_one_object_of_plain_fields() -> None:
    d = json.loads(program(CALL, LAST).to_json())
    assert d["method"] == "by hand"
    assert d["instructions"] == [
        {"out": 1, "model": 0, "t": 1.0},
        {"out": 2, "terms": [[0.5, 0], [0.25, 1]], "noise": []},
    ]


RUBBISH = ["", "{", "3", "null", "[]", "{}", '"plan"', '{"method": "ddim"}']


@pytest.mark.parametrize("text", RUBBISH)
def test_rubbish_is_a_plan_error(text: str) -> None:
    with pytest.raises(PlanError, match="not a plan"):
        Plan.from_json(text)


def test_json_is_validated_like_any_plan() -> None:
    text = program(CALL, LAST).to_json().replace('"out": 2', '"out": 1')
    with pytest.raises(PlanError, match="a second time"):
        Plan.from_json(text)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"schedule": {"name": "Nope"}}, id="unknown schedule"),
        pytest.param({"instructions": [{"out": 1, "terms": [[1.0]], "noise": []}]}, id="term without register"),
        pytest.param({"options": {"a": [1]}}, id="unhashable option"),
        pytest.param({"times": "abc"}, id="times that are no numbers"),
    ],
)
def test_json_with_wrong_fields_is_a_plan_error(change: dict[str, Any]) -> None:
    text = json.dumps({**json.loads(program(CALL, LAST).to_json()), **change})
    with pytest.raises(PlanError):
        Plan.from_json(text)


@PLANNED
def test_prints_one_row_an_instruction_and_its_calls(name: str) -> None:
    plan = some_plan(name, solvers.EDM())
    head, *rows = str(plan).splitlines()
    assert head.startswith(f"{name}(")
    assert f" {plan.nfe} calls" in head
    assert len(rows) == len(plan.instructions)
    assert sum("model(" in row for row in rows) == plan.nfe


def test_prints_registers_coefficients_and_noise() -> None:
    noisy = program(CALL, Combine(2, ((0.5, 0), (-0.25, 1)), ((2.0, 0),)))
    assert [" ".join(row.split()) for row in str(noisy).splitlines()[1:]] == [
        "r1 = model(r0) N at t = 1",
        "r2 = 0.5 r0 -0.25 r1 +2 z0",
    ]


@PLANNED
@EVERY
def test_hashable_and_equal_when_built_twice(name: str, schedule: Schedule) -> None:
    plan, again, other = (some_plan(name, schedule, nfe) for nfe in (4, 4, 30))
    assert plan == again != other
    assert {plan: "here"}[again] == "here"


@pytest.mark.parametrize("thing", [program(CALL, LAST), CALL, LAST, solvers.VPLinear()], ids=type)
def test_immutable(thing: object) -> None:
    with pytest.raises(FrozenInstanceError):
        thing.method = "other"  # type: ignore[attr-defined]


@PLANNED
@EVERY
def test_every_register_dies_once_when_last_read(name: str, schedule: Schedule) -> None:
    for plan in (plan for nfe in BUDGETS if (plan := plan_of(name, schedule, nfe))):
        freed = [r for dead in plan.dies for r in dead]
        assert sorted(freed) == sorted({0, *(i.out for i in plan.instructions)} - {plan.instructions[-1].out})
        for k, dead in enumerate(plan.dies):
            assert not any(r in reads(later) for r in dead for later in plan.instructions[k + 1 :])
            assert all(r in (*reads(plan.instructions[k]), plan.instructions[k].out) for r in dead)


def test_a_register_that_nothing_reads_dies_where_it_is_written() -> None:
    assert program(CALL, Combine(2, ((1.0, 0),))).dies == ((1,), (0,))
