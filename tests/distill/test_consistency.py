"""CD, CT and ECT: what their losses are, exactly, and what students learn from them."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor, nn

import solvers
from distill.batch import Batch, Draws
from distill.consistency import CD, CT, ECT, Consistency, Point
from distill.distillation import Distillation
from distill.method import Method, Players, Teacher
from distill.steps import times, usual_grid
from distill.trainer import Recipe
from solvers import Denoiser
from solvers.model import Prediction, conversion, levels
from solvers.schedule import Schedule
from tests.distill import toys
from tests.distill.toys import EDM, MU, S0

VP = solvers.VPLinear()
SCHEDULES = [EDM, VP, solvers.VPDiscrete.linear(), solvers.RectifiedFlow()]
UNFAMILIAR = torch.tensor([-0.4, 0.3])  # the mean that a corrupted teacher believes in
ACCURATE = CD(solver="dpm_solver_2", calls=8, points=8)
QUICK = {"steps": 400, "batch": 128, "lr": 5e-2, "ema": 0.97, "warmup": 20}


class Exact(nn.Module):
    """The data prediction of which the exact consistency function of the Gaussian is made, in float64."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level[:, None] for level in levels(self.schedule, t))
        a, s = (float(f(self.schedule.t_end)) for f in (self.schedule.alpha, self.schedule.sigma))
        spread = ((a * S0).square() + s**2).sqrt() / ((alpha * S0).square() + sigma**2).sqrt()
        f = a * MU + (x - alpha * MU) * spread
        left = a - alpha * s / sigma
        return (f - x * s / sigma) / left.where(left.abs() > 1e-12, 1.0)


class Heard(nn.Module):
    """A network that remembers what it was asked, and answered."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls.append((x, t, self.network(x, t)))
        return self.calls[-1][2]


def batch_of(teacher: Teacher, count: int = 256, seed: int = 0) -> Batch:
    """A step's batch in float64."""
    draws = Draws(seed, 0, 0, count)
    x0, cond = teacher.data(draws)
    return Batch(x0.double(), cond, draws)


def loss(
    method: Method, teacher: Teacher, student: nn.Module, progress: float = 0.0, predicts: Prediction = "data",
    count: int = 256,
) -> Tensor:  # fmt: skip
    """A method's loss of a student that is its own target."""
    denoiser = Denoiser(student, teacher.schedule, predicts)
    return method.loss(Players(teacher, denoiser, denoiser, progress=progress), "student", batch_of(teacher, count))


def apart(x: Tensor, y: Tensor) -> float:
    """Relative RMS distance of x to y, over y's spread."""
    return float((x - y).norm() / (y - y.mean(0)).norm())


def error(made: Distillation, nfe: int = 1) -> float:
    """How far the student's samples lie from where the exact ODE ends, over the spread of those."""
    schedule = made.teacher.schedule
    x, y = toys.sampled(made, nfe)
    return apart(y, toys.exact_map(x, schedule.t_max, schedule.t_end, schedule))


# ---- losses, exactly


@given(st.sampled_from([CD(), CT(), ECT()]), st.sampled_from(SCHEDULES), st.integers(0, 99))
def test_a_student_is_the_identity_at_the_end_whatever_its_network_says(
    method: Consistency, schedule: Schedule, seed: int
) -> None:
    teacher = toys.gaussian_teacher(schedule)
    odd = Denoiser(nn.Sequential(), schedule, "data")
    odd.network = lambda x, t: 1e3 * x.sin() - 77
    batch = batch_of(teacher, 8, seed)
    point = Point(5 * batch.noise(40), np.full(8, schedule.t_end))
    for end in method.ends(Players(teacher, odd, odd), batch, point, point):
        assert torch.equal(end, point.x)


@pytest.mark.parametrize(
    ("schedule", "solver", "order"),
    [(s, "ddim", 1) for s in SCHEDULES] + [(s, name, 2) for s in (EDM, VP) for name in ("heun", "dpm_solver_2")],
    ids=lambda value: type(value).__name__ if isinstance(value, Schedule) else value,
)
def test_an_exact_student_loses_only_the_error_of_the_solver(schedule: Schedule, solver: str, order: int) -> None:
    teacher, exact = toys.gaussian_teacher(schedule), Exact(schedule)

    def rms(points: int) -> float:
        method = CD(solver, order, points, "l2")
        return math.sqrt(float(loss(method, teacher, exact, count=2048)))

    coarse, fine = rms(48), rms(96)
    assert fine < 2e-2
    assert coarse / fine > 2 ** (order + 0.6)  # of one step, whose error is one order smaller than the solver's


def test_a_wrong_student_loses_more() -> None:
    teacher = toys.gaussian_teacher()
    losses = [float(loss(CD(points=48, distance="l2"), teacher, net)) for net in (Exact(EDM), toys.Gaussian())]
    assert losses[1] > 100 * losses[0]


@given(
    st.sampled_from([CD(), CD(distance="l2"), CT(), ECT()]), st.sampled_from(["noise", "v", "velocity"]),
    st.sampled_from([VP, solvers.VPCosine()]), st.floats(0, 0.99),
)  # fmt: skip
def test_a_loss_is_of_the_function_not_of_what_its_network_predicts(
    method: Method, predicts: Prediction, schedule: Schedule, progress: float
) -> None:
    data = toys.Gaussian(schedule)

    class Other(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            A, B = conversion("data", predicts, *(level[:, None] for level in levels(schedule, t)))
            return A * data(x, t) + B * x

    teacher = toys.gaussian_teacher(schedule)
    expected = loss(method, teacher, data, progress)
    assert float(loss(method, teacher, Other(), progress, predicts)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("method", [CD(), CT(), ECT()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("progress", [0.0, 0.6])
def test_a_loss_is_the_same_in_the_coordinates_of_every_schedule(method: Method, progress: float) -> None:
    """A VP schedule is EDM's with x/alpha for x and u for t, but for alpha_end, which is nearly 1."""
    u_end, u_max = np.exp(-VP.lam([VP.t_end, VP.t_max]))
    edm = solvers.EDM(float(u_end), float(u_max))
    losses = [float(loss(method, toys.gaussian_teacher(s), toys.Gaussian(s), progress)) for s in (edm, VP)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# ---- the schedules of CT and ECT


def test_ct_doubles_its_intervals_in_equal_parts_of_the_training() -> None:
    assert [CT(10, 80).intervals(p) for p in (0, 0.249, 0.25, 0.5, 0.749, 0.75, 0.999)] == [10, 10, 20, 40, 40, 80, 80]
    assert {CT(10, 10).intervals(p) for p in (0, 0.5, 0.999)} == {10}
    assert CT(10, 50).intervals(0.999) == 50


def test_ct_draws_neighbours_as_often_as_a_lognormal_says_with_one_noise() -> None:
    teacher, net = toys.gaussian_teacher(), Heard(toys.Gaussian())
    loss(CT(s0=12, s1=12), teacher, net, count=2**14)
    (earlier, r, _), (later, t, _) = net.calls
    grid = times(EDM, 12)
    n = np.searchsorted(grid, t.numpy())
    assert np.array_equal(grid[n], t.numpy())
    assert np.array_equal(grid[n - 1], r.numpy())
    x0 = (earlier * t[:, None] - later * r[:, None]) / (t - r)[:, None]  # of the one line through both
    torch.testing.assert_close(x0, batch_of(teacher, 2**14).x0, atol=1e-6, rtol=1e-6)
    expected = np.diff(norm.cdf(np.log(grid), -1.1, 2.0))
    seen = np.bincount(n - 1, minlength=12) / len(n)
    assert seen == pytest.approx(expected / expected.sum(), abs=4 * 0.5 / math.sqrt(len(n)))


@pytest.mark.parametrize(("method", "c"), [(CT(s0=12, c=0.3), 0.3 * 2**0.5), (ECT(q=4.0, c=1e-9), 0.0)])
def test_distances_are_weighed_by_their_interval(method: Method, c: float) -> None:
    net = Heard(Exact(EDM))
    value = loss(method, toys.gaussian_teacher(), net, progress=0.1)
    (x_r, r, D_r), (x_t, t, D_t) = net.calls
    f_r, f_t = (D + EDM.t_end / s[:, None] * (x - D) for x, s, D in ((x_r, r, D_r), (x_t, t, D_t)))
    distance = ((f_t - f_r).square().sum(1) + c**2).sqrt() - c
    assert float(value) == pytest.approx(float((distance / (t - r)).mean()), rel=1e-5)


def test_cd_measures_by_pseudo_huber_unless_told_otherwise() -> None:
    teacher, net = toys.gaussian_teacher(), toys.Gaussian()
    huber, square = (float(loss(CD(distance=kind, c=50.0), teacher, net)) for kind in ("huber", "l2"))
    assert huber == pytest.approx(square * 2 / (2 * 50 * 2**0.5), rel=1e-3)  # ||.||^2/2c where that is small
    assert float(loss(CD(), teacher, net)) > 5 * huber


@given(st.floats(1.5, 8), st.floats(0, 10), st.floats(0, 2), st.floats(0.002, 80), st.floats(0, 0.999))
def test_ect_comes_ever_closer(q: float, k: float, b: float, u: float, progress: float) -> None:
    ect = ECT(q, k, b, tightenings=4)
    before, now = (ect.earlier(np.array([u]), p)[0] for p in (progress / 2, progress))
    assert 0 <= before <= now < u
    ratio = 1 - (1 + k / (1 + math.exp(b * u))) / q ** (int(progress * 4) + 1)
    assert now == pytest.approx(u * max(ratio, 0))


def test_ect_begins_as_denoising() -> None:
    teacher, net = toys.gaussian_teacher(), Heard(toys.Gaussian())
    value = loss(ECT(b=0.0, c=1e-9), teacher, net)  # q = 2: r = 0 wherever 1 + k/2 > 2
    _, t, D = net.calls[-1]
    assert float(value) == pytest.approx(float(((D - batch_of(teacher).x0).norm(dim=1) / t).mean()), rel=1e-5)
    assert np.log(t.numpy()).std() > 1.5  # lognormal, though within the schedule
    assert (EDM.t_end <= t).all()
    assert (t <= EDM.t_max).all()


@pytest.mark.parametrize("method", [CD(), CT(), ECT()], ids=lambda m: type(m).__name__)
def test_student_and_target_drop_the_same(method: Method) -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.dropout(torch.ones_like(x))

    net = Heard(Dropping())
    with torch.random.fork_rng():
        for seed in (0, 1):
            torch.manual_seed(seed)
            loss(method, toys.gaussian_teacher(), net)
    masks = [out for _, _, out in net.calls]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


# ---- one Gaussian


@pytest.fixture(scope="module")
def gaussian() -> Distillation:
    return toys.distilled(ACCURATE, toys.gaussian_teacher(), toys.Affine(), **QUICK)


def test_cd_finds_the_exact_map(gaussian: Distillation) -> None:
    assert error(gaussian) < 0.02
    _, y = toys.sampled(gaussian, 4)  # with fresh noise between: the same distribution
    assert y.mean(0).tolist() == pytest.approx(MU.tolist(), abs=0.05)
    assert y.std(0).tolist() == pytest.approx(S0.tolist(), rel=0.05)


def test_without_training_and_without_a_student_there_is_no_such_map(gaussian: Distillation) -> None:
    teacher = gaussian.teacher
    untrained = Distillation(ACCURATE, teacher, gaussian.recipe, student=toys.Affine())
    assert error(untrained) > 0.5
    x, y = toys.run(teacher.denoiser, solvers.method("ddim").build(EDM, 1, usual_grid(EDM)))
    assert apart(y, toys.exact_map(x, EDM.t_max, EDM.t_end)) > 0.5


def test_cd_pays_for_the_teacher_the_target_and_twice_the_way_back(gaussian: Distillation) -> None:
    assert gaussian.progress.calls == gaussian.recipe.steps * gaussian.recipe.batch * (8 + 1 + 1 + 2)


def test_cd_finds_the_exact_map_on_a_vp_schedule() -> None:
    assert error(toys.distilled(ACCURATE, toys.gaussian_teacher(VP), toys.Affine(VP), **QUICK)) < 0.02


def test_cd_believes_a_corrupted_teacher() -> None:
    method = replace(ACCURATE, calls=2, distance="l2")
    made = toys.distilled(method, toys.gaussian_teacher(mu=UNFAMILIAR), toys.Affine(), **QUICK | {"steps": 200})
    _, y = toys.sampled(made, 1)
    assert y.mean(0).tolist() == pytest.approx(UNFAMILIAR.tolist(), abs=0.05)


@pytest.mark.parametrize("method", [CT(), ECT()], ids=lambda m: type(m).__name__)
def test_ct_and_ect_ask_no_teacher(method: Method) -> None:
    teachers = [toys.gaussian_teacher(mu=mu) for mu in (MU, UNFAMILIAR)]
    made = [toys.distilled(method, teacher, toys.Affine(), steps=20, batch=64) for teacher in teachers]
    first, second = (m.weights()["net.weight"] for m in made)
    assert torch.equal(first, second)
    assert teachers[0].denoiser.calls == 0
    assert made[0].progress.calls == 20 * 64 * (1 + 1 + 2)


NEAR = solvers.EDM(0.02, 5.0)  # fewer decades of noise, which are soon seen


def without_a_teacher(levels: list[float]) -> float:
    """By how much too narrow a Gaussian's student becomes, in its widest direction, on these rising levels.

    With l2 f(x_t) = E[f(x_r) | x_t], where x_r has the noise of x_t: a slope (S^2 + r t)/(S^2 + t^2) a step, which is
    less than the ODE's sqrt((S^2 + r^2)/(S^2 + t^2)), and goes to it with r/t.
    """
    S = float(S0[0])
    slope = math.prod((S**2 + r * t) / (S**2 + t**2) for r, t in pairwise(levels))
    return 1 - slope / math.sqrt((S**2 + levels[0] ** 2) / (S**2 + levels[-1] ** 2))


def of_ect(ect: ECT) -> list[float]:
    """The levels that lead from the noise to the end in its last stage."""
    down = [NEAR.t_max]
    while down[-1] > NEAR.t_end:
        down.append(max(float(ect.earlier(np.array(down[-1]), 0.999)), NEAR.t_end))
    return down[::-1]


@pytest.mark.parametrize(
    ("method", "path"),
    [(CT(5, 20), lambda m: times(NEAR, m.s1).tolist()), (ECT(tightenings=4, c=0.02), of_ect)],
    ids=["CT", "ECT"],
)
def test_without_a_teacher_a_student_comes_as_near_as_its_intervals_allow(
    method: CT | ECT, path: Callable[[CT | ECT], list[float]]
) -> None:
    assert 0.04 < without_a_teacher(path(method)) < 0.07
    recipe = {"steps": 400, "batch": 512, "lr": 3e-2, "ema": 0.98, "warmup": 20}
    made = toys.distilled(method, toys.gaussian_teacher(NEAR), toys.Affine(NEAR), **recipe)
    assert error(made) < 0.2  # 0.07 of it the intervals', the rest of noise: the gradient never dies down
    assert error(Distillation(method, made.teacher, made.recipe, student=toys.Affine(NEAR))) > 0.5


# ---- the ring


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cd_draws_the_ring_in_one_step(ring_network: nn.Module, ring_floor: float, seed: int) -> None:
    recipe = {"steps": 300, "batch": 256, "lr": 4e-3, "ema": 0.98, "warmup": 20, "seed": seed}
    method = CD(solver="dpm_solver_2", calls=4, points=8)
    made = toys.distilled(method, toys.ring_teacher(), ring_network.requires_grad_(True), **recipe)
    _, y = toys.sampled(made, 1, seed=seed)
    assert toys.sliced_w2(y, toys.ring(100 + seed, len(y))) < 2 * ring_floor
    assert np.abs(toys.masses(y) - 1).max() < 0.2


def test_the_ring_cannot_be_drawn_in_one_step_otherwise(ring_network: nn.Module, ring_floor: float) -> None:
    one = CD().sampler(EDM).plan(EDM, 1)
    for network in (toys.Ring(), ring_network, toys.small()):
        _, y = toys.run(Denoiser(network, EDM, "data"), one)
        assert toys.sliced_w2(y.detach(), toys.ring(100, len(y))) > 5 * ring_floor
    _, y = toys.run(toys.ring_teacher().denoiser, solvers.method("heun").build(EDM, 2, usual_grid(EDM)))
    assert toys.sliced_w2(y, toys.ring(100, len(y))) > 5 * ring_floor


# ---- bad input


@pytest.mark.parametrize(
    ("method", "schedule", "says"),
    [
        (CD(points=0), EDM, "points = 0"),
        (CD(distance="l1"), EDM, "distance = l1: it must be huber or l2"),
        (CD(c=0.0), EDM, "c = 0"),
        (CD(solver="heun", calls=1), EDM, "heun cannot spend 1"),
        (CD(solver="euler_ancestral", calls=1), EDM, "draws noise"),
        (CD(), solvers.RectifiedFlow(), "signal|pure noise|finite"),
        (CT(s0=0), EDM, "s0 = 0"),
        (CT(s0=20, s1=10), EDM, "s1 = 10: it must be a whole number >= s0 = 20"),
        (CT(), solvers.RectifiedFlow(), "take ect"),
        (ECT(q=1.0), EDM, "q = 1"),
        (ECT(k=-1.0), EDM, "k = -1"),
        (ECT(b=-1.0), EDM, "b = -1"),
        (ECT(tightenings=0), EDM, "tightenings = 0"),
        (ECT(c=-1.0), EDM, "c = -1"),
    ],
)
def test_bad_options_are_refused_in_one_line(method: Method, schedule: Schedule, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        Distillation(method, toys.gaussian_teacher(schedule), Recipe(1, 1, 1e-3), student=toys.Affine(schedule))
    assert "\n" not in str(refused.value)
