"""Every solver, with the options that change its algorithm, shows what solvers.testing asks; broken ones do not."""

from pathlib import Path

import pytest

import solvers
from solvers.testing import check_solver
from tests.solvers.common import PLANNED

OPTIONS: list[tuple[str, dict[str, solvers.Option]]] = [
    ("ddim", {"eta": 1.0}),
    ("dpmpp_3m", {"exact": True}),
    ("dpm_solver_3m", {"exact": True}),
    ("dpmpp_2m", {"solver_type": "taylor"}),
    ("dpmpp_3s", {"solver_type": "taylor"}),
    ("unipc", {"order": 2, "variant": "bh1"}),
    ("unipc", {"order": 2, "variant": "vary"}),
    ("unipc", {"predicts": "noise"}),
    ("unipc", {"corrector": False}),
    ("lms", {"order": 2}),
    ("dpmpp_2m_sde", {"eta": 0.0}),
    ("dpmpp_3m_sde", {"eta": 0.0, "exact": True}),
    ("dpmpp_sde", {"eta": 0.0}),
    ("heun", {"s_churn": 10.0, "s_tmax": 40.0}),
    ("lcm", {"boundary": True}),
    ("tcd", {"eta": 0.0}),
    ("tcd", {"eta": 1.0}),
]


@PLANNED
def test_every_solver_conforms(name: str) -> None:
    check_solver(name)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=lambda value: str(value))
def test_every_variant_conforms(name: str, options: dict[str, solvers.Option]) -> None:
    check_solver(name, **options)


EULER = """
from math import expm1
from solvers import solver

@solver("euler_of_mine", order={order}, predicts="data", grids={{"*": "logsnr"}})
def mine(p, grid):
    x = p.start()
    for i in range(grid.steps):
        h = grid.lam[i + 1] - grid.lam[i]
        D = p.model(x, i)
        x = p.state({step})
"""
GOOD = "grid.sigma[i + 1] / grid.sigma[i] * x - grid.alpha[i + 1] * expm1(-h) * D"


def plugin(folder: Path, order: int = 1, step: str = GOOD, more: str = "") -> str:
    file = folder / "mine.py"
    file.write_text(EULER.format(order=order, step=step) + more)
    return f"{file}:mine"


def test_a_plug_in_that_is_right_passes(tmp_path: Path) -> None:
    check_solver(plugin(tmp_path))


def test_an_order_that_is_not_shown_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"declares order 2, shows (0\.9|1\.0)"):
        check_solver(plugin(tmp_path, order=2))


def test_a_wrong_coefficient_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="declares order 1, shows"):
        check_solver(plugin(tmp_path, step=GOOD.replace("expm1(-h)", "expm1(-0.9 * h)")))


def test_history_that_is_never_let_go_is_found(tmp_path: Path) -> None:
    more = """
@solver("hoarder", order=1, predicts="data", grids={"*": "logsnr"})
def mine(p, grid):
    x, kept = p.start(), []
    for i in range(grid.steps):
        h = grid.lam[i + 1] - grid.lam[i]
        kept = [*kept[-4:], p.model(x, i)]
        x = grid.sigma[i + 1] / grid.sigma[i] * x - grid.alpha[i + 1] * expm1(-h) * kept[-1]
        for D in kept:
            x = x + 1e-14 * D
        x = p.state(x)
"""
    with pytest.raises(AssertionError, match="buffers, where order \\+ 2 = 3 do"):
        check_solver(plugin(tmp_path, more=more))


def test_an_inexact_point_is_found(tmp_path: Path) -> None:
    second = "grid.sigma[i + 1] / grid.sigma[i] * x - grid.alpha[i + 1] * expm1(-h) * D * (1 - 1e-3 * h * h)"
    with pytest.raises(AssertionError, match="miss a single point by"):
        check_solver(plugin(tmp_path, step=second))


def test_an_adaptive_solver_is_said_to_have_no_plan() -> None:
    with pytest.raises(solvers.BudgetError, match="dpm_solver_12 chooses its own steps"):
        check_solver("dpm_solver_12")
