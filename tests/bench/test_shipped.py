"""The students that come with the package: what they weigh, what they say of themselves, and that they learned."""

from pathlib import Path

import pytest
import torch

from bench.cell import run
from bench.cells import Subjects, cells
from bench.checkpoints import load
from bench.distilled import SHIPPED, make_method, read_student, shipped, shipped_for
from bench.metrics import Context, make_metric
from bench.spec import Sweep
from bench.stats import Estimate, difference
from bench.students import open_student

DIGITS, CPU = load("digits"), torch.device("cpu")
WANTED = {
    "cd_digits": (1, 2, 4),
    "dmd2_digits_1step": (1,),
    "dmd2_digits_4step": (4,),
    "ect_digits": (1, 2, 4),
    "lcm_digits": (1, 2, 4, 8),
    "progressive_digits_1step": (1,),
    "progressive_digits_2step": (2,),
    "progressive_digits_4step": (4,),
    "reflow_digits": (1, 2, 4),
}


def test_all_are_there_and_stand_in_the_default_sweep() -> None:
    assert shipped() == sorted(WANTED)
    assert shipped_for(DIGITS) == tuple(sorted(WANTED))
    assert shipped_for(load("gmm")) == ()
    found, skipped = cells(Sweep(), Subjects(DIGITS))
    assert skipped == []  # nobody asked for cd_digits at 10 calls
    students = {(cell.solver, cell.nfe) for cell in found if cell.student}
    assert students == {(name, nfe) for name, budgets in WANTED.items() for nfe in budgets}
    _, skipped = cells(Sweep(solvers=("cd_digits",)), Subjects(DIGITS))
    assert skipped == ["cd_digits runs at 1, 2, 4 calls, which it was trained for"]


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_student_says_what_it_is_and_is_small(name: str) -> None:
    folder, card = SHIPPED / name, read_student(SHIPPED / name)
    assert sum(path.stat().st_size for path in Path(folder).iterdir()) < 4e6
    assert not card["made_with"]["commit"].endswith("+")  # from committed code
    assert card["options"] == make_method(card["method"]).options()
    assert f"fewstep distill {card['method']}" in (folder / "README.md").read_text().replace("'", "")
    assert card["training"]["calls"] > 1e5
    student = open_student(name, DIGITS)
    assert student.sampler.trained_for == WANTED[name]
    assert student.training == card["training"]


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_student_is_far_better_than_ddim_at_as_many_calls(name: str) -> None:
    budgets = WANTED[name][:3]
    sweep = Sweep(solvers=(name, "ddim"), nfe=budgets, samples=400, metrics=("frechet_digits",), latency=None)
    subjects = Subjects(DIGITS)
    reached = {}
    for cell in cells(sweep, subjects)[0]:
        context = Context(DIGITS, cell.seed, cell.task, Path("unused"), CPU)
        metrics = {"frechet_digits": make_metric("frechet_digits", context)}
        found = run(cell, subjects.of(cell), metrics, CPU, 400)[0]["metrics"][0]
        reached[cell.solver, cell.nfe] = Estimate.of(found, cell.seed)
    for nfe in budgets:
        apart = difference(reached["ddim", nfe], reached[name, nfe])
        assert apart.paired
        assert apart.value > 4 * apart.se


def test_lcm_takes_its_guidance_as_an_input() -> None:
    plain, guided = (open_student(f"lcm_digits{scale}", DIGITS) for scale in ("", "(guidance=3)"))
    assert plain.checkpoint.scale_as_input
    assert plain.guide.scale == 1
    x, t, y = torch.randn(4, 1, 8, 8), torch.full((4,), 20.0), torch.arange(4)
    one, three = (plain.checkpoint.network(x, t, y=y, w=torch.full((4,), w)) for w in (1.0, 3.0))
    assert not torch.allclose(one, three, atol=0.05)
    assert guided.guide.scale == 3
