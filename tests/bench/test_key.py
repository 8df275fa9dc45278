"""From a sweep to cells: which there are, and what their keys depend on."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.cells import Subjects, cells
from bench.checkpoints import Checkpoint, Task, load
from bench.errors import UsageError
from bench.metrics import Context, make_metric
from bench.spec import Cell, Sweep
from solvers import UnknownNameError
from solvers.plan import Combine, Evaluate, Instruction

GMM = load("gmm")


def sweep(**fields: Any) -> Sweep:
    return Sweep(**({"checkpoint": "gmm", "solvers": ("ddim",), "nfe": (6,), "samples": 10} | fields))


def cell(**fields: Any) -> Cell:
    return cells(sweep(**fields), Subjects(GMM))[0][0]


def keys(**fields: Any) -> set[str]:
    return {c.key for c in cells(sweep(**fields), Subjects(GMM))[0]}


def perturbed(cell: Cell, change: Callable[[Instruction], Instruction]) -> Cell:
    return replace(cell, plan=replace(cell.plan, instructions=tuple(map(change, cell.plan.instructions))))


def scaled(factor: float) -> Callable[[Instruction], Instruction]:
    """Every coefficient times a factor."""

    def change(i: Instruction) -> Instruction:
        return replace(i, terms=tuple((c * factor, r) for c, r in i.terms)) if isinstance(i, Combine) else i

    return change


def test_every_solver_gets_every_budget_it_can_spend() -> None:
    found, skipped = cells(sweep(solvers=("ddim", "heun"), nfe=(5, 6, 7, 8)), Subjects(GMM))
    assert [(c.solver, c.plan.nfe) for c in found] == [
        *(("ddim", n) for n in (5, 6, 7, 8)),
        *(("heun", n) for n in (5, 7)),
    ]
    (line,) = skipped
    assert line.startswith("heun cannot spend 6 calls: it can spend ")
    assert "5, 7" in line
    assert line.endswith("; nor 8")


def test_only_budgets_that_cannot_be_spent_are_refused_with_those_that_can() -> None:
    with pytest.raises(UsageError, match=r"heun cannot spend 6 calls: it can spend .*5, 7"):
        cells(sweep(solvers=("ddim", "heun"), nfe=(6, 8)), Subjects(GMM))


@pytest.mark.parametrize(
    ("asked", "without", "why"),
    [
        ({"nfe": (5,)}, {"deis_rhork3", "deis_rhork4", "pndm_f"}, "deis_rhork3 cannot spend 5 calls"),
        ({"nfe": (1, 6)}, {"deis_rhork4"}, "deis_rhork4 cannot spend 1 calls"),
        ({"nfe": (5,), "guidance": 0.6, "cfg_plus_plus": True}, {"heun", "dpm_2"}, "cfg_plus_plus is defined for"),
        ({"nfe": (5,), "metrics": ("trajectory",)}, {"euler_ancestral"}, "add another metric"),
    ],
)
def test_what_nobody_asked_for_and_cannot_run_is_left_out(asked: dict[str, Any], without: set[str], why: str) -> None:
    usual = Sweep(checkpoint="gmm", **asked)
    found, skipped = cells(usual, Subjects(GMM))
    assert without <= set(usual.solvers_on(GMM)) - {cell.solver for cell in found}
    assert "ddim" in {cell.solver for cell in found}
    assert any(why in line for line in skipped)
    with pytest.raises(UsageError, match=re.escape(why)):  # who asks for it is told
        cells(usual.model_copy(update={"solvers": tuple(sorted(without))}), Subjects(GMM))


def test_a_default_sweep_of_which_nothing_can_run_says_why() -> None:
    with pytest.raises(UsageError, match="guidance = 3: gmm has neither"):
        cells(Sweep(checkpoint="gmm", guidance=3.0), Subjects(replace(GMM, classes=())))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ddim(eta=2)", "eta"),
        ("ddim(speed=9)", "speed"),
        ("ddim(eta=fast)", "eta"),
        ("ddim(t_end=2)", "t_end"),
        ("dpmpp_2m(lower_order_final=sometimes)", "sometimes"),
        ("ddim(grid=leading)", "VPDiscrete"),
    ],
)
def test_options_a_solver_cannot_take_are_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        cells(sweep(solvers=(text,)), Subjects(GMM))


@pytest.mark.parametrize(
    ("fields", "near"),
    [
        ({"solvers": ("dimm",)}, "ddim"),
        ({"solvers": ("ddim(grid=karas)",)}, "karras"),
        ({"metrics": ("trajectry",)}, "trajectory"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(fields: dict[str, Any], near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean '{near}'"):
        cells(sweep(**fields), Subjects(GMM))


def test_keys_do_not_depend_on_order_or_repetition() -> None:
    ordered = keys(solvers=("ddim", "dpmpp_2m"), nfe=(5, 8), metrics=("trajectory", "frechet_exact"))
    other = keys(solvers=("dpmpp_2m", "ddim", "ddim"), nfe=(8, 5, 5), metrics=("frechet_exact", "trajectory"))
    assert ordered == other
    assert len(ordered) == 4


def test_keys_do_not_depend_on_latency() -> None:
    assert keys(latency=False) == keys(latency=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"samples": 11},
        {"guidance": 1.5},
        {"guidance_interval": (0.1, 2.0)},
        {"cfg_plus_plus": True},
        {"precision": "fp64"},
        {"nfe": (7,)},
        {"metrics": ("trajectory",)},
        {"solvers": ("dpmpp_2m",)},
        {"solvers": ("ddim(eta=0.1)",)},
        {"solvers": ("ddim(grid=karras)",)},
        {"solvers": ("ddim(t_end=0.002)",)},
        {"solvers": ("ddim(t_start=0.9)",)},
        {"solvers": ("ddim(denoise_to_zero=true)",)},
    ],
)
def test_whatever_changes_the_numbers_changes_the_key(fields: dict[str, Any]) -> None:
    assert cell(**fields).key != cell().key


def test_other_weights_change_the_key() -> None:
    assert replace(cell(), digest="0").key != cell().key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ddim", "ddim(eta=0)"),
        ("ddim", "ddim(grid=uniform, denoise_to_zero=false)"),
        ("dpmpp_2m", "dpmpp_2m(lower_order_final=below_10)"),
        ("heun(grid=edm, t_end=1e-2)", "heun(t_end=0.01,grid=edm)"),
    ],
)
def test_two_spellings_of_a_plan_are_one_cell(one: str, other: str) -> None:
    found, _ = cells(sweep(solvers=(one, other), nfe=(5, 9)), Subjects(GMM))
    assert [(c.solver, c.plan.nfe) for c in found] == [(one, 5), (one, 9)]


def test_the_last_bits_of_a_plan_do_not_change_the_key() -> None:
    assert perturbed(cell(), scaled(1 + 1e-13)).key == cell().key


def test_a_digit_of_a_plan_changes_the_key() -> None:
    def later(i: Instruction) -> Instruction:
        return replace(i, t=i.t * (1 - 1e-6)) if isinstance(i, Evaluate) else i

    assert perturbed(cell(), scaled(1 + 1e-6)).key != cell().key
    assert perturbed(cell(), later).key != cell().key
    assert replace(cell(), plan=replace(cell().plan, order=2)).key != cell().key


def test_a_key_is_that_of_any_process() -> None:
    """Pinned: results made elsewhere or earlier are found again; if it must change, raise spec.FORMAT."""
    assert cell().key == "2255c7241ac19aaaef2363e6ece119145a4a0aa6c2ade1fe76c3338d873317a4"


def against(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What a gmm cell's metrics compare within, all of them that need no images."""
    context = Context(checkpoint, 0, Task(), Path("unused"), torch.device("cpu"))
    return tuple(f"{name}: {make_metric(name, context).identity}" for name in ("frechet_exact", "energy", "trajectory"))


def test_the_last_bits_of_an_exact_reference_do_not_change_the_key() -> None:
    """Its moments are computed, by instructions that another processor has others for."""
    assert GMM.moments is not None
    assert GMM.draw is not None
    moved = tuple(np.nextafter(part, np.inf) for part in GMM.moments())
    assert not any(np.array_equal(a, b) for a, b in zip(moved, GMM.moments(), strict=True))
    draw = GMM.draw
    elsewhere = replace(GMM, moments=lambda: moved, draw=lambda *at: draw(*at) * (1 + 1e-15))
    keys = {cells(sweep(), Subjects(c), against(c))[0][0].key for c in (GMM, elsewhere)}
    assert len(keys) == 1
    assert against(replace(GMM, digest="0" * 64))[0] != against(GMM)[0]  # another distribution is another reference


def test_what_a_gmm_cell_is_against_is_that_of_any_machine() -> None:
    assert against(GMM) == (
        "frechet_exact: states against de176fb8aa4b6191682582c1412030e8d7cea841ab8be985af1af7955469edf2",
        "energy: states against de176fb8aa4b6191682582c1412030e8d7cea841ab8be985af1af7955469edf2",
        "trajectory: trajectory",
    )
