"""Progressive distillation: halving keeps the map, in one run that can be interrupted anywhere."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import solvers
from distill.batch import LOSS, Batch, Draws
from distill.distillation import Distillation
from distill.method import Players
from distill.progressive import Progressive
from distill.steps import chord, times
from distill.student import FewStep
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
    small,
)  # fmt: skip

FAST = {"steps": 450, "batch": 128, "lr": 5e-2, "ema": 0.95, "warmup": 10}


def error(y: Tensor, exact: Tensor) -> float:
    """Root mean square, relative to the spread of what is exact."""
    return float((y - exact).norm() / (exact - exact.mean(0)).norm())


@pytest.fixture(scope="module")
def halved() -> Distillation:
    return distilled(Progressive(start=4, calls=4), gaussian_teacher(), Affine(), **FAST)


def test_the_student_of_one_step_is_the_odes_exact_map(halved: Distillation) -> None:
    x_T, y = sampled(halved, 1)
    exact = exact_map(x_T, EDM.t_max, EDM.t_end)
    assert error(y, exact) < 0.02
    _, teachers = run(gaussian_teacher().denoiser, halved.sampler.plan(EDM, 1))
    assert error(teachers, exact) > 0.5  # all of them at the mean


def test_students_of_4_and_2_steps_come_out_of_the_same_run(halved: Distillation) -> None:
    for found, steps in zip(halved.progress.finished, (4, 2), strict=True):
        sampler, student = FewStep.from_dict(found["sampler"]), Affine()
        assert sampler.trained_for == (steps,)
        student.load_state_dict(found["weights"], strict=False)
        plan = sampler.plan(EDM, steps)
        x_T, y = run(solvers.Denoiser(student, EDM, "data"), plan)
        _, teachers = run(gaussian_teacher().denoiser, plan)
        exact = exact_map(x_T, EDM.t_max, EDM.t_end)
        assert error(y, exact) < 0.02 < 0.1 * error(teachers, exact)


def test_a_corrupted_teacher_gives_a_corrupted_student() -> None:
    wrong = torch.tensor([-1.0, 1.0])
    made = distilled(Progressive(start=2, calls=4), gaussian_teacher(mu=wrong), Affine(), **FAST | {"steps": 150})
    _, y = sampled(made, 1)
    assert (y.mean(0) - wrong).norm() < 0.1
    assert (y.mean(0) - MU).norm() > 2


class Solved(nn.Module):
    """The D whose step from each of the grid's times lands on the Gaussian's exact solution at the next."""

    def __init__(self, schedule: Schedule, N: int) -> None:
        super().__init__()
        self.schedule, self.grid = schedule, times(schedule, N)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        n = np.abs(self.grid[:, None] - t.double().numpy()).argmin(0)
        t, s = self.grid[n], self.grid[n - 1]

        def level(f: object) -> tuple[Tensor, Tensor]:
            return tuple(torch.from_numpy(f(at))[:, None] for at in (t, s))  # type: ignore[operator,return-value]

        (a, c), (b, d) = level(self.schedule.alpha), level(self.schedule.sigma)
        y = c * MU + (x - a * MU) * ((c * S0).square() + d**2).sqrt() / ((a * S0).square() + b**2).sqrt()
        return chord(self.schedule, x, y, t, s)


SCHEDULES = [EDM, solvers.VPLinear(), solvers.VPDiscrete.linear(), solvers.RectifiedFlow()]


def batch_of(schedule: Schedule, count: int = 256) -> Batch:
    draws = Draws(0, 0, 0, count)
    x0, cond = gaussian_teacher(schedule).data(draws)
    return Batch(x0.double(), cond, draws)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("progress", [0.0, 0.5, 0.99])
def test_what_jumps_along_the_exact_solution_has_no_loss(schedule: Schedule, progress: float) -> None:
    method, teacher = Progressive(start=8, calls=8), gaussian_teacher(schedule)
    N = 8 >> int(progress * 4)
    exact = solvers.Denoiser(Solved(schedule, N), schedule, "data")
    if progress:  # the teacher is by then a student of twice as many steps
        teacher = replace(teacher, denoiser=solvers.Denoiser(Solved(schedule, 2 * N), schedule, "data"))
    losses = [
        method.loss(Players(teacher, d, d, progress=progress), "student", batch_of(schedule)).item()
        for d in (exact, gaussian_teacher(schedule).denoiser)
    ]
    assert losses[0] < 1e-3 * losses[1]
    if progress:  # no solver's error is left
        assert losses[0] < 1e-8 * losses[1]


def test_the_loss_weighs_by_the_truncated_snr() -> None:
    class Off(nn.Module):  # 1 away from the target everywhere
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return Solved(EDM, 4)(x, t) + 1

    teacher = gaussian_teacher()
    teacher = replace(teacher, denoiser=solvers.Denoiser(Solved(EDM, 8), EDM, "data"))
    method, off, batch = Progressive(start=8), solvers.Denoiser(Off(), EDM, "data"), batch_of(EDM)
    t = times(EDM, 4)[batch.draws.integers(LOSS, 4) + 1]
    expected = np.mean(np.maximum(1 / t**2, 1))
    assert method.loss(Players(teacher, off, off, progress=0.3), "student", batch).item() == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_step_makes_the_ring(seed: int, ring_network: nn.Module, ring_floor: float) -> None:
    method = Progressive(start=4, calls=4)
    student = ring_network.requires_grad_(True)
    untrained = copy.deepcopy(student)
    made = distilled(method, ring_teacher(), student, steps=450, batch=256, lr=4e-3, ema=0.98, warmup=20, seed=seed)
    _, y = sampled(made, 1, seed=seed)
    assert sliced_w2(y, ring(100 + seed, 4096)) < 2 * ring_floor
    assert (abs(masses(y) - 1) < 0.2).all()
    for control in (Ring(), untrained):
        _, blurred = run(solvers.Denoiser(control, EDM, "data"), made.sampler.plan(EDM, 1), seed)
        assert sliced_w2(blurred, ring(100 + seed, 4096)) > 10 * ring_floor


def test_each_step_is_of_the_stage_whose_sampler_it_has() -> None:
    made = Distillation(Progressive(start=4), gaussian_teacher(), Recipe(7, 4, 1e-3), student=Affine())
    found = []
    while not made.done:
        made.next_stage()
        made.advance()
        found.append((made.stage, made.sampler.trained_for))
        if made.loop.step == made.loop.recipe.steps:
            made.measure(lambda denoiser, sampler: 0.0)
    assert found == [(0, (4,))] * 3 + [(1, (2,))] * 2 + [(2, (1,))] * 2
    assert [f["sampler"]["budgets"] for f in made.progress.finished] == [[4], [2]]


@pytest.mark.parametrize("stop", [12, 15, 16, 24], ids=["first stage", "boundary", "just after", "second stage"])
def test_what_is_interrupted_goes_on_as_if_it_were_not(stop: int) -> None:
    recipe = Recipe(30, 32, 1e-2, ema=0.9, warmup=3)

    def begin() -> Distillation:
        return Distillation(Progressive(start=2), ring_teacher(), recipe, student=small(width=16))

    def quality(denoiser: solvers.Denoiser, sampler: FewStep) -> float:
        _, y = run(denoiser, sampler.plan(EDM, sampler.trained_for[0]), count=64)
        return sliced_w2(y, ring(1, 64))

    saved: list[dict[str, object]] = []
    whole, rest = begin(), begin()
    whole.run(
        quality, every=3, on_saved=lambda d: saved.append(copy.deepcopy(d.state_dict())) if d.step == stop else None
    )
    if not saved:  # between two points of the curve
        part = begin()
        while part.step < stop:
            part.next_stage()
            part.advance()
            if part.step % 3 == 0 or part.loop.step == part.loop.recipe.steps:
                part.measure(quality)
        saved.append(copy.deepcopy(part.state_dict()))
    rest.load_state_dict(saved[0])
    assert rest.step == stop
    rest.run(quality, every=3)
    assert whole.progress.curve == rest.progress.curve
    assert whole.progress.calls == rest.progress.calls
    for a, b in [(whole.weights(), rest.weights()), (whole.progress.best, rest.progress.best)]:
        assert all(torch.equal(a[name], b[name]) for name in a)
    for a, b in zip(whole.progress.finished, rest.progress.finished, strict=True):
        assert all(torch.equal(a["weights"][name], b["weights"][name]) for name in a["weights"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 6}, "start = 6 is not a power of two"),
        ({"end": 0}, "end = 0 is not a power of two"),
        ({"start": 2, "end": 4}, "end = 4 steps are more than start = 2"),
        ({"calls": 3}, "cannot spend 3 calls"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(Progressive(**options), gaussian_teacher(), Recipe(10, 4, 1e-3), student=Affine())
