"""Reflow straightens a flow, BOSS in the steps that dynamic programming finds."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import solvers
from distill.batch import Batch, Draws
from distill.distillation import Distillation
from distill.method import Players
from distill.reflow import BOSS, Reflow, bends, best_steps, flow_grid, tau
from distill.steps import chord, jump
from distill.trainer import Recipe
from solvers.schedule import Schedule
from tests.distill.toys import (
    EDM,
    MU,
    S0,
    Affine,
    Ring,
    distilled,
    exact_map,
    gaussian_teacher,
    masses,
    ring,
    ring_teacher,
    run,
    sampled,
    sliced_w2,
)  # fmt: skip

FAST = {"steps": 300, "batch": 256, "lr": 5e-2, "ema": 0.95, "warmup": 10}
SCHEDULES = [EDM, solvers.VPLinear(), solvers.VPDiscrete.linear(), solvers.RectifiedFlow()]


def error(y: Tensor, exact: Tensor) -> float:
    """Root mean square, relative to the spread of what is exact."""
    return float((y - exact).norm() / (exact - exact.mean(0)).norm())


@given(seed=st.integers(0, 2**32 - 1), K=st.integers(1, 8), data=st.data())
@settings(deadline=None)
def test_dynamic_programming_finds_the_best_of_all_paths(seed: int, K: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, K))
    cost = np.random.default_rng(seed).random((K + 1, K + 1))

    def total(path: tuple[int, ...]) -> float:
        return sum(cost[i, j] for i, j in pairwise(path))

    found = best_steps(cost, steps)
    assert found[0] == 0
    assert found[-1] == K
    assert len(found) == steps + 1
    assert total(found) == pytest.approx(min(total((0, *inner, K)) for inner in combinations(range(1, K), steps - 1)))


@pytest.mark.parametrize("steps", [0, 4])
def test_more_steps_than_there_are_points_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"{steps} steps between 4 points: there can be 1 to 3"):
        best_steps(np.ones((4, 4)), steps)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_costs_are_what_one_long_step_misses_by(schedule: Schedule) -> None:
    teacher, grid = gaussian_teacher(schedule), flow_grid(schedule, 8)
    assert tau(schedule, grid) == pytest.approx(np.linspace(*tau(schedule, grid[[0, -1]]), 9), abs=1e-9)
    x_T = schedule.prior_std(grid[0]) * torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).double()
    cost = bends(teacher, grid, x_T, {})
    ddim = solvers.method("ddim")
    along = [x_T] + [
        solvers.sample(ddim.build(schedule, times=grid[: k + 1]), teacher.denoiser, x_T) for k in range(1, 9)
    ]
    for i, j in zip(*np.triu_indices(9, 1), strict=True):
        step = solvers.sample(ddim.build(schedule, times=grid[[i, j]]), teacher.denoiser, along[i])
        scale = float(schedule.alpha(grid[j]) + schedule.sigma(grid[j]))
        assert cost[i, j] == pytest.approx(((step - along[j]) / scale).square().mean().item(), rel=1e-5, abs=1e-12)


def test_a_straight_flow_costs_nothing() -> None:
    class Point(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return MU.expand_as(x)

    x_T = 80 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).double()
    cost = bends(ring_teacher(Point()), flow_grid(EDM, 10), x_T, {})
    assert cost[np.triu_indices(11, 1)] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_the_steps_of_boss_are_better_than_equal_ones_for_the_teacher_itself(steps: int) -> None:
    teacher, euler = ring_teacher(), solvers.method("ddim")
    made = Distillation(BOSS(steps=steps, samples=256), teacher, Recipe(1, 8, 1e-3), student=Affine())
    assert made.progress.calls == 100 * 256
    chosen = made.sampler.plan(EDM, steps)
    x_T, best = run(teacher.denoiser, chosen, seed=3)
    equal = solvers.sample(euler.build(EDM, times=flow_grid(EDM, steps)), teacher.denoiser, x_T)
    many = solvers.sample(euler.build(EDM, times=flow_grid(EDM, 100)), teacher.denoiser, x_T)
    assert error(best, many) < 0.8 * error(equal, many)
    again = Distillation(BOSS(steps=steps, samples=256), teacher, Recipe(1, 8, 1e-3), student=Affine())
    assert again.method == made.method
    kept = Distillation(made.method, teacher, Recipe(1, 8, 1e-3), student=Affine())
    assert kept.method == made.method
    assert kept.progress.calls == 0


class Straight(nn.Module):
    """E[x0 | x_t] of the Gaussian's own pairs, whose lines from t to s never cross: x_t says which line it is on."""

    def __init__(self, schedule: Schedule, knots: tuple[float, ...]) -> None:
        super().__init__()
        self.schedule, self.knots = schedule, np.array(knots)

    def _line(self, x: Tensor, t: float, s: float) -> Tensor:
        return chord(self.schedule, x, exact_map(x, t, s, self.schedule), np.full(len(x), t), np.full(len(x), s))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        D = torch.empty_like(x)
        for k, at in enumerate(t.double().numpy()):
            piece = int((self.knots[1:-1] >= at * (1 - 1e-9)).sum())
            start, end = self.knots[piece : piece + 2].tolist()
            points = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).to(x)
            x0 = self._line(points, start, end)
            there = jump(self.schedule, points, x0, np.full(2, start), np.full(2, at))
            share = (x[k] - there[0]) / (there[1] - there[0])
            D[k] = x0[0] + share * (x0[1] - x0[0])
        return D


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_the_velocity_of_exact_pairs_has_no_loss(schedule: Schedule, steps: int, progress: float) -> None:
    teacher, draws = gaussian_teacher(schedule), Draws(0, 0, 0, 96)
    x0, cond = teacher.data(draws)
    batch, knots = Batch(x0.double(), cond, draws), tuple(flow_grid(schedule, steps).tolist())
    method = BOSS(calls=64, steps=steps, times=" ".join(map(str, knots))) if steps > 1 else Reflow(calls=128)
    exact = solvers.Denoiser(Straight(schedule, knots), schedule, "data")
    losses = [
        method.loss(Players(teacher, d, d, progress=progress), "student", batch).item()
        for d in (exact, teacher.denoiser)
    ]
    assert losses[0] < 2e-3 * losses[1]


@pytest.fixture(scope="module")
def straight() -> Distillation:
    return distilled(Reflow(), gaussian_teacher(), Affine(), **FAST)


def test_a_reflowed_gaussian_is_straight_and_exact(straight: Distillation) -> None:
    teacher = gaussian_teacher().denoiser
    of: dict[str, dict[int, float]] = {"student": {}, "teacher": {}}
    for n in (1, 2, 4):
        plan = straight.sampler.plan(EDM, n)
        x_T, y = sampled(straight, n)
        exact = exact_map(x_T, EDM.t_max, EDM.t_end)
        of["student"][n], of["teacher"][n] = error(y, exact), error(run(teacher, plan)[1], exact)
        assert of["student"][n] < 0.04
    assert of["teacher"][1] > 0.5
    _, one = sampled(straight, 1)
    _, four = sampled(straight, 4)
    bent = [error(*(run(d, straight.sampler.plan(EDM, n))[1] for n in (1, 4))) for d in (straight.averaged, teacher)]
    assert error(one, four) == bent[0] < 0.05 * bent[1]


def test_boss_lands_exactly_in_its_steps() -> None:
    made = distilled(BOSS(steps=2, points=40, samples=128), gaussian_teacher(), Affine(), **FAST)
    x_T, y = sampled(made, 2)
    exact = exact_map(x_T, EDM.t_max, EDM.t_end)
    assert error(y, exact) < 0.04
    assert error(run(gaussian_teacher().denoiser, made.sampler.plan(EDM, 2))[1], exact) > 0.3
    with pytest.raises(solvers.BudgetError, match="no 1 calls: the student was trained for 2"):
        sampled(made, 1)


def test_a_corrupted_teacher_gives_a_corrupted_student() -> None:
    wrong = torch.tensor([-1.0, 1.0])
    made = distilled(Reflow(distil=1.0), gaussian_teacher(mu=wrong), Affine(), **FAST | {"steps": 60})
    _, y = sampled(made, 1)
    assert (y.mean(0) - wrong).norm() < 0.1
    assert (y.std(0) - S0).norm() < 0.1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_step_makes_the_ring(seed: int, ring_network: nn.Module, ring_floor: float) -> None:
    real = ring(100 + seed, 4096)
    plan = Reflow().sampler(EDM).plan(EDM, 1)
    for control in (Ring(), ring_network):
        _, blurred = run(solvers.Denoiser(control, EDM, "data"), plan, seed)
        assert sliced_w2(blurred, real) > 10 * ring_floor
    student = ring_network.requires_grad_(True)
    recipe = {"steps": 350, "batch": 512, "lr": 4e-3, "ema": 0.98, "warmup": 20, "seed": seed}
    made = distilled(Reflow(), ring_teacher(), student, **recipe)
    for n in (1, 2, 4):
        _, y = sampled(made, n, seed=seed)
        assert sliced_w2(y, real) < 2 * ring_floor
        assert (abs(masses(y) - 1) < 0.2).all()


def test_pairs_are_the_seeds_and_shared_by_their_times() -> None:
    seen: list[Tensor] = []

    class Seeing(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(x)
            return Ring()(x, t)

    made = Distillation(Reflow(calls=4, each=4), ring_teacher(Seeing()), Recipe(2, 10, 1e-3), student=Affine())
    made.advance()
    assert len(seen) == 4
    assert {len(x) for x in seen} == {3}  # pairs of 10 samples, four a pair
    assert made.progress.calls == 4 * 3 + 3 * 10


def test_the_last_part_is_for_one_step() -> None:
    method = Reflow(distil=0.25)
    assert method.sampler(EDM, 0.74).trained_for == (1, 2, 4)
    assert method.sampler(EDM, 0.75).trained_for == method.sampler(EDM).trained_for == (1,)
    assert Reflow().sampler(EDM).trained_for == (1, 2, 4)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Reflow(each=0), "each = 0: a pair"),
        (Reflow(distil=1.5), "distil = 1.5 is no part of the training"),
        (Reflow(solver="dpmpp_sde"), "solver = dpmpp_sde: the ODE"),
        (Reflow(calls=5), "cannot spend 5 calls"),
        (BOSS(steps=5, points=4), "steps = 5 of 4 points: it takes 1 to 4"),
        (BOSS(samples=0), "samples = 0"),
        (BOSS(steps=2, times="80 0.002"), "times = '80 0.002' is not 3 falling numbers"),
        (BOSS(steps=2, times="80 x 0.002"), "times = '80 x 0.002' is not 3 falling numbers"),
    ],
)
def test_options_that_make_no_sense_are_refused(method: Reflow, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(method, gaussian_teacher(), Recipe(10, 4, 1e-3), student=Affine())
