"""TSCD: jumps are exact within segments, then to the end, on a Gaussian and a ring; and what it must not depend on."""

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import solvers
from distill.batch import Batch, Draws
from distill.distillation import Distillation
from distill.method import Players, Teacher
from distill.steps import chord, jump, times
from distill.trainer import Recipe
from distill.tscd import TSCD
from solvers.model import Denoiser, Guidance
from solvers.schedule import Schedule
from tests.distill.toys import (
    EDM,
    MU,
    S0,
    Affine,
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

EXACT = {"solver": "dpm_solver_2", "calls": 4, "points": 16}  # ends 0.7 % from where the Gaussian's flow does
FAST = {"steps": 800, "batch": 128, "lr": 0.1, "warmup": 20, "ema": 0.98}
SCHEDULES = [EDM, solvers.VPLinear(), solvers.VPDiscrete.linear()]
PHASES = [(0.0, 8), (0.16, 8), (0.17, 4), (0.33, 4), (0.34, 2), (0.49, 2), (0.5, 1), (0.99, 1)]


def gap(a: Tensor, exact: Tensor) -> float:
    """Relative to the spread of what is exact."""
    return float((a - exact).norm() / (exact - exact.mean(0)).norm())


def flow(t: float, count: int = 2000) -> Tensor:
    """States of the Gaussian's flow on EDM at time t."""
    return MU + (S0**2 + t**2).sqrt() * torch.randn(count, 2, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def one_gaussian() -> Distillation:
    return distilled(TSCD(**EXACT), gaussian_teacher(), Affine(), **FAST)


def test_one_step_is_the_gaussians_exact_map(one_gaussian: Distillation) -> None:
    x_T, out = sampled(one_gaussian, 1)
    exact = exact_map(x_T, 80.0, 0.002)
    assert gap(out, exact) < 0.02
    assert gap(run(one_gaussian.teacher.denoiser, one_gaussian.sampler.plan(EDM, 1))[1], exact) > 0.9
    assert gap(run(Denoiser(Affine(), EDM, "data"), one_gaussian.sampler.plan(EDM, 1))[1], exact) > 0.9


@pytest.mark.parametrize("nfe", [2, 4])
def test_more_steps_keep_the_gaussian(one_gaussian: Distillation, nfe: int) -> None:
    out = sampled(one_gaussian, nfe, count=20_000)[1]
    torch.testing.assert_close(out.mean(0), MU, rtol=0, atol=0.03)
    torch.testing.assert_close(out.std(0), S0, rtol=0.03, atol=0)


def test_a_jump_to_the_end_is_exact_from_everywhere_on_the_way(one_gaussian: Distillation) -> None:
    for t in times(EDM, 16)[[2, 5, 9, 13]]:
        x = flow(t)
        D = one_gaussian.averaged(x, float(t))
        out = jump(EDM, x, D, np.full(len(x), t), np.full(len(x), EDM.t_end))
        assert gap(out, exact_map(x, t, EDM.t_end)) < 0.03


@pytest.fixture(scope="module", params=["edge", "uniform"])
def eight_segments(request: pytest.FixtureRequest) -> Distillation:
    """A student at the end of the first part of its training, which still has eight segments."""
    recipe = Recipe(**FAST | {"steps": 1800})
    training = Distillation(TSCD(**EXACT, ends=request.param), gaussian_teacher(), recipe, student=Affine())
    while training.step < 300:
        training.advance()
    assert training.method.segments_at((training.step - 1) / 1800) == 8
    return training


def test_with_eight_segments_eight_jumps_are_exact_and_fewer_are_not(eight_segments: Distillation) -> None:
    """From edge to edge; ends drawn from everywhere cost some of it, and the teacher's own jumps lead elsewhere."""
    within = 0.02 if eight_segments.method.ends == "edge" else 0.06
    eight, four = (solvers.plan("ddim", EDM, nfe, grid="karras") for nfe in (8, 4))
    x_T, out = run(eight_segments.averaged, eight)
    exact = exact_map(x_T, 80.0, 0.002)
    assert gap(out, exact) < within
    assert gap(run(eight_segments.teacher.denoiser, eight)[1], exact) > 0.2
    assert gap(run(eight_segments.averaged, four)[1], exact) > 0.2
    assert gap(sampled(eight_segments, 1)[1], exact) > 0.9


def test_a_corrupted_teacher_gives_a_corrupted_student() -> None:
    wrong = torch.tensor([-1.0, 1.5])
    made = distilled(TSCD(**EXACT, segments=2), gaussian_teacher(mu=wrong), Affine(), **FAST | {"steps": 300})
    mean = sampled(made, 1)[1].mean(0)
    assert (mean - wrong).norm() < 0.2 * (MU - wrong).norm()


@pytest.fixture(scope="module")
def of_ring(_ring_trained: nn.Module) -> Distillation:
    settings = {"steps": 1100, "batch": 256, "lr": 3e-3, "warmup": 50, "ema": 0.98}
    return distilled(TSCD(points=16), ring_teacher(), copy.deepcopy(_ring_trained).requires_grad_(True), **settings)


def test_the_ring_in_one_step(of_ring: Distillation, ring_floor: float) -> None:
    real = ring(99, 4096)
    out = sampled(of_ring, 1)[1]
    assert sliced_w2(out, real) < 2 * ring_floor
    assert abs(masses(out) - 1).max() < 0.2
    plan = of_ring.sampler.plan(EDM, 1)
    for control in (of_ring.teacher.denoiser, Denoiser(small(), EDM, "data")):
        assert sliced_w2(run(control, plan)[1], real) > 8 * ring_floor
    for nfe in (2, 4):
        assert sliced_w2(sampled(of_ring, nfe)[1], real) < 2 * ring_floor


@pytest.mark.parametrize(("progress", "segments"), PHASES)
def test_segments_are_halved_in_the_first_half_of_the_training(progress: float, segments: int) -> None:
    assert TSCD().segments_at(progress) == segments
    assert TSCD(segments=1).segments_at(progress) == 1


class Jumping(nn.Module):
    """The Gaussian's D whose jump is exact to the edge of each of so many segments."""

    def __init__(self, schedule: Schedule, points: int, segments: int) -> None:
        super().__init__()
        self.schedule, self.ts, self.length = schedule, times(schedule, points), points // segments

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        n = np.abs(self.ts[:, None] - t.double().numpy()).argmin(0)
        edges = self.ts[(np.maximum(n, 1) - 1) // self.length * self.length]
        at = np.where(n == 0, self.ts[1], self.ts[n])  # at the end itself nobody jumps
        y = torch.stack([exact_map(x[i], at[i], edges[i], self.schedule) for i in range(len(x))])
        return chord(self.schedule, x, y, at, edges)


def loss(method: TSCD, of: Teacher, student: nn.Module, progress: float, target: nn.Module | None = None) -> float:
    """In float64, on 256 samples."""
    schedule, draws = of.schedule, Draws(0, 0, 0, 256)
    batch = Batch(of.data(draws)[0].double(), of.data(draws)[1], draws)
    ours, theirs = (Denoiser(copy.deepcopy(n).double(), schedule, "data") for n in (student, target or student))
    return method.loss(Players(of, ours, theirs, progress=progress), "student", batch).item()


@pytest.mark.parametrize(("progress", "segments"), [(0.0, 8), (0.4, 2), (0.9, 1)])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_exact_jumps_lose_nothing_but_the_solvers_error(schedule: Schedule, progress: float, segments: int) -> None:
    of, exact = gaussian_teacher(schedule), Jumping(schedule, 16, segments)
    by_order = [
        loss(TSCD(solver=solver, calls=calls, points=16, distance="l2"), of, exact, progress)
        for solver, calls in (("ddim", 1), ("dpm_solver_2", 2), ("dpm_solver_3", 6))
    ]
    assert all(later < earlier / 3 for earlier, later in pairwise(by_order))
    assert loss(TSCD(points=16, distance="l2"), of, of.network, progress) > 30 * by_order[-1]


@pytest.mark.parametrize("ends", ["edge", "uniform"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_where_the_flow_is_straight_jumps_anywhere_are_exact(schedule: Schedule, ends: str) -> None:
    class Point(nn.Module):
        def __init__(self, at: Tensor) -> None:
            super().__init__()
            self.at = at

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.at.to(x.dtype).expand_as(x)

    of = replace(gaussian_teacher(schedule), denoiser=Denoiser(Point(MU), schedule, "data"))
    for progress in (0.0, 0.9):
        assert loss(TSCD(ends=ends, distance="l2"), of, Point(MU), progress) < 1e-24
        assert loss(TSCD(ends=ends, distance="l2"), of, Point(MU + 1), progress) > 1e-3


def test_a_segment_of_one_interval_is_the_teachers_own_step() -> None:
    """There the target's network does not matter: it stays where it is."""
    of, networks = gaussian_teacher(), [Affine(), small()]
    alone, wide = ([loss(TSCD(points=p), of, small(1), 0.0, target) for target in networks] for p in (8, 16))
    assert alone[0] == alone[1]
    assert wide[0] != wide[1]


def test_uniform_ends_differ_from_edges_where_there_is_room() -> None:
    of = gaussian_teacher()
    edge, uniform = (loss(TSCD(points=16, ends=ends), of, small(1), 0.9) for ends in ("edge", "uniform"))
    assert edge != uniform
    edge, uniform = (loss(TSCD(points=8, ends=ends), of, small(1), 0.0) for ends in ("edge", "uniform"))
    assert edge == uniform


class Labelled(nn.Module):
    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return MU.to(x.dtype) * y[:, None] + x / (1 + t[:, None])


def test_the_guidance_asked_for_is_the_teachers_own() -> None:
    """Guided by 3 on demand, and a teacher that always is: the same; and not the same as unguided."""
    one = replace(gaussian_teacher(), data=lambda draws: (torch.zeros(draws.count, 2), {"y": torch.ones(draws.count)}))
    teachers = [replace(one, denoiser=Denoiser(Labelled(), EDM, "data", Guidance(w, {"y": 0}))) for w in (1.0, 3.0)]
    asked, always = loss(TSCD(guidance=3.0), teachers[0], Labelled(), 0.0), loss(TSCD(), teachers[1], Labelled(), 0.0)
    assert asked == pytest.approx(always, rel=1e-12)
    assert asked != pytest.approx(loss(TSCD(), teachers[0], Labelled(), 0.0), rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": 6}, "segments = 6 must be a power of two"),
        ({"segments": 0}, "segments = 0 must be a power of two"),
        ({"points": 20}, "points = 20 must be a multiple of segments = 8"),
        ({"points": 0}, "points = 0 must be a multiple"),
        ({"ends": "middle"}, "ends = 'middle' must be edge or uniform"),
        ({"distance": "l1"}, "distance = 'l1' must be huber or l2"),
        ({"c": 0.0}, "c = 0 must be a number > 0"),
        ({"eta": 1.5}, r"eta = 1\.5 must lie in \[0, 1\]"),
        ({"guidance": 2.0}, "guidance = 2 needs a teacher with guidance, and this has none"),
        ({"solver": "euler_ancestral", "calls": 1}, "euler_ancestral cannot be stacked: it draws noise"),
    ],
)
def test_options_that_make_no_method_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TSCD(**options).check(gaussian_teacher())  # type: ignore[arg-type]
