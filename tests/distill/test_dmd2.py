"""DMD2: the gradient is the difference of the scores, the states are the generator's own, and the ring is learned."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import solvers
from distill.adversarial import Critic, judged
from distill.batch import DATA, LOSS, Batch, Draws
from distill.distillation import Distillation
from distill.dmd2 import AGAIN, DMD2, START, STEP
from distill.method import Players, Teacher
from distill.steps import times
from solvers.model import Guidance, levels
from solvers.schedule import Schedule
from tests.distill.toys import (
    EDM,
    MU,
    S0,
    Affine,
    distilled,
    gaussian_teacher,
    masses,
    ring,
    ring_teacher,
    run,
    sampled,
    sliced_w2,
    small,
)  # fmt: skip

SCHEDULES = [EDM, solvers.VPLinear(), solvers.VPDiscrete.linear(), solvers.RectifiedFlow()]
DATA_FREE = DMD2(gan=0.0)


class Made(nn.Module):
    """A generator of N(mean, diag exp(log_std)^2), whatever the time of the noise it is made of."""

    def __init__(self, mean: Tensor, std: Tensor, schedule: Schedule = EDM) -> None:
        super().__init__()
        self.mean, self.log_std = nn.Parameter(mean.clone()), nn.Parameter(std.log())
        self.scale = schedule.prior_std(schedule.t_max)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.mean + self.log_std.exp() * x / self.scale


class ScoreOf(nn.Module):
    """E[x0 | x_t] of what a generator makes at this moment: a fake score that is exact."""

    def __init__(self, made: Made, schedule: Schedule = EDM) -> None:
        super().__init__()
        self.made, self.schedule = made, schedule

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level.to(x.dtype)[:, None] for level in levels(self.schedule, t.double()))
        variance = (2 * self.made.log_std).exp()
        return self.made.mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * self.made.mean)


def players(made: nn.Module, critic: nn.Module, of: Teacher) -> Players:
    student, fake = (solvers.Denoiser(net, of.schedule, "data") for net in (made, critic))
    return Players(of, student, student, {"critic": fake})


def batch_of(of: Teacher, step: int = 0, count: int = 256) -> Batch:
    draws = Draws(0, step, step * count, count)
    return Batch(*of.data(draws), draws)


def gradient(mean: Tensor, std: Tensor, schedule: Schedule = EDM, count: int = 256) -> tuple[Tensor, Tensor]:
    """Of the student's loss with exact scores, to the mean and the log of the spread of what it makes."""
    of = gaussian_teacher(schedule)
    made = Made(mean, std, schedule)
    DATA_FREE.loss(players(made, ScoreOf(made, schedule), of), "student", batch_of(of, count=count)).backward()
    assert made.mean.grad is not None
    assert made.log_std.grad is not None
    return made.mean.grad, made.log_std.grad


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_gradient_vanishes_where_the_generator_makes_the_data(schedule: Schedule) -> None:
    of_mean, of_std = gradient(MU, S0, schedule)
    shifted, _ = gradient(MU + 0.1, S0, schedule)
    _, widened = gradient(MU, 1.1 * S0, schedule)
    assert of_mean.norm() < 1e-4 * shifted.norm()
    assert of_std.norm() < 1e-4 * widened.norm()


offsets = st.tuples(*[st.floats(0.05, 3) | st.floats(-3, -0.05)] * 2).map(torch.tensor)
factors = st.tuples(*[st.floats(0.2, 0.9) | st.floats(1.1, 5)] * 2).map(torch.tensor)


@given(offset=offsets, schedule=st.sampled_from(SCHEDULES))
@settings(deadline=None, max_examples=20)
def test_the_gradient_leads_a_shifted_mean_back(offset: Tensor, schedule: Schedule) -> None:
    of_mean, _ = gradient(MU + offset, S0, schedule, count=64)
    assert (of_mean.sign() == offset.sign()).all()


@given(factor=factors, schedule=st.sampled_from(SCHEDULES))
@settings(deadline=None, max_examples=20)
def test_the_gradient_leads_a_wrong_spread_back(factor: Tensor, schedule: Schedule) -> None:
    _, of_std = gradient(MU, factor * S0, schedule, count=512)
    assert (of_std.sign() == factor.log().sign()).all()


def test_both_losses_are_the_paper_s() -> None:
    """By hand, for networks that shrink their input, and a critic that is undecided still."""
    of = ring_teacher(small())
    of = replace(of, denoiser=solvers.Denoiser(lambda x, t: 0.2 * x, EDM, "data"))
    half = lambda x, t: 0.5 * x  # noqa: E731
    both = players(Made(MU, S0), half, of)
    batch = batch_of(of)
    draws = batch.draws
    x = MU + S0 * draws.normal(LOSS + 1, (2,))
    s = times(EDM, 999)[20 + np.floor(960 * draws.uniform(LOSS + 2)).astype(int)]
    x_s = x + torch.from_numpy(s).float()[:, None] * draws.normal(LOSS + 3, (2,))
    grad = (0.5 * x_s - 0.2 * x_s) / (x - 0.2 * x_s).abs().mean(1, keepdim=True)
    student, critic = (DATA_FREE.loss(both, turn, batch) for turn in ("student", "critic"))
    torch.testing.assert_close(student, grad.square().mean() / 2)
    weight = torch.from_numpy(1 + s**-2).float()[:, None]
    torch.testing.assert_close(critic, (weight * (0.5 * x_s - x).square()).mean())

    judge = Critic(small(), "network.inner.3", torch.zeros(1, 2), torch.ones(1), {})
    (of_student, of_critic), (alone, data_free) = (
        [method.loss(players(both.student.network, judge, of), turn, batch) for turn in ("student", "critic")]
        for method in (DMD2(gan=0.5, gan_critic=0.25), DATA_FREE)
    )
    torch.testing.assert_close(of_student - alone, torch.tensor(0.5 * math.log(2)))
    torch.testing.assert_close(
        (of_critic - data_free) / data_free, 0.25 * 2 * math.log(2) / data_free, rtol=0.01, atol=0
    )


def test_its_critic_learns_what_is_real() -> None:
    of = gaussian_teacher()
    judge = Critic(small().requires_grad_(True), "network.inner.3", torch.zeros(1, 2), torch.ones(1), {})
    both = players(Made(MU - 2, S0), judge, of)
    optimiser = torch.optim.Adam(judge.parameters(), 3e-3)
    for step in range(60):
        optimiser.zero_grad()
        DMD2(gan=1.0, gan_critic=1.0).loss(both, "critic", batch_of(of, step)).backward()
        optimiser.step()
    real = batch_of(of, 99).x0
    seen = torch.cat([real, real - 2]) + 0.5 * torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    logits = judged(both.others["critic"], seen, np.full(512, 0.5), {})[1]
    assert (logits[:256, None] > logits[256:]).float().mean() > 0.9


def kl(made: Made, mu: Tensor = MU) -> float:
    """KL(what is made || N(mu, S0^2)), in nats."""
    ratio = made.log_std.detach().exp() / S0
    return float((ratio**2 / 2 - 0.5 - ratio.log() + ((made.mean.detach() - mu) / S0) ** 2 / 2).sum())


@pytest.mark.parametrize("mu", [MU, MU + torch.tensor([0.0, 1.0])], ids=["data", "corrupted teacher"])
def test_its_descent_is_that_of_the_divergence_from_the_teacher(mu: Tensor) -> None:
    of = gaussian_teacher(mu=mu)
    made = Made(torch.tensor([-1.0, 1.0]), torch.tensor([0.3, 1.5]))
    both = players(made, ScoreOf(made), of)
    optimiser = torch.optim.Adam(made.parameters(), 0.05)
    found = [kl(made, mu)]
    for step in range(150):
        optimiser.zero_grad()
        DATA_FREE.loss(both, "student", batch_of(of, step, 128)).backward()
        optimiser.step()
        found.append(kl(made, mu))
    assert found[0] > 5
    assert found[50] < found[0] / 3
    assert found[-1] < 1e-3


def test_the_critic_learns_the_score_of_what_the_generator_makes() -> None:
    of = gaussian_teacher()
    made = Made(MU - 1, 0.5 * S0).requires_grad_(False)
    critic = Affine()
    both = players(made, critic, of)
    optimiser = torch.optim.Adam(critic.parameters(), 0.1)
    for step in range(300):
        for group in optimiser.param_groups:
            group["lr"] = 0.1 * (1 - step / 300)
        optimiser.zero_grad()
        DATA_FREE.loss(both, "critic", batch_of(of, step)).backward()
        optimiser.step()
    for u in (0.3, 1.0, 10.0):
        x = MU - 1 + torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) * (S0**2 / 4 + u**2).sqrt()
        t = torch.full((1000,), u)
        exact, data = ScoreOf(made)(x, t), of.network(x, t)
        assert (critic(x, t).detach() - exact).norm() < 0.1 * (data - exact).norm()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [1, 4])
def test_it_is_trained_on_the_states_that_it_meets_when_sampled(steps: int, schedule: Schedule) -> None:
    method, of = DMD2(steps=steps, gan=0.0), gaussian_teacher(schedule)
    seen: list[tuple[Tensor, Tensor]] = []

    def recorded(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x.detach(), t))
        return of.network(x, t)

    student = solvers.Denoiser(recorded, schedule, "data")
    plan = method.sampler(schedule).plan(schedule, steps)
    drawn = []
    for step in range(8 * steps):
        batch = batch_of(of, step, 8)
        made = method._generated(Players(of, student, student), batch)  # what both losses begin with
        met, k = list(seen), len(seen)
        seen.clear()
        x_T = schedule.prior_std(plan.times[0]) * batch.noise(START)
        result = solvers.sample(plan, student, x_T, lambda i, b=batch: b.noise(AGAIN + i))
        for (x, t), (x_there, t_there) in zip(met, seen, strict=False):
            torch.testing.assert_close(x, x_there)
            torch.testing.assert_close(t, t_there)
        assert k < steps or torch.allclose(made, result, atol=1e-6)
        seen.clear()
        drawn.append(k)
    assert set(drawn) == set(range(1, steps + 1))


def test_only_the_last_call_of_a_generator_is_differentiated() -> None:
    of = gaussian_teacher()
    step = next(i for i in range(99) if Draws(0, i, 0, 8).shared(STEP) > 0.75)
    both = players(Affine().requires_grad_(True), copy.deepcopy(of.network), of)
    batch = batch_of(of, step, 8)
    DMD2(steps=4, gan=0.0).loss(both, "student", batch)
    assert (both.student.passed, both.student.backwards) == (4 * 8, 8)


def garbled(of: Teacher) -> Teacher:
    """The same teacher, whose data is nothing of the kind."""
    return replace(of, data=lambda draws: (1e3 * draws.normal(DATA, of.shape), {}))


@pytest.mark.parametrize("steps", [1, 4])
def test_without_a_gan_it_never_looks_at_data(steps: int) -> None:
    def weights(of: Teacher, gan: float) -> Tensor:
        made = distilled(DMD2(steps=steps, gan=gan, ttur=2), of, steps=8, batch=16, lr=1e-3, warmup=1)
        return torch.cat([p.flatten() for p in made.loop.players["student"].network.parameters()])

    of = ring_teacher(small())
    assert torch.equal(weights(of, 0.0), weights(garbled(of), 0.0))
    assert not torch.equal(weights(of, 0.1), weights(garbled(of), 0.1))


def affine(mu: Tensor = MU) -> Affine:
    """The Gaussian's denoiser, by weights that can be trained."""
    network = Affine()
    u = network.knots.exp()[:, None]
    b = S0**2 / (S0**2 + u**2)
    with torch.no_grad():
        network.net.weight.copy_(torch.cat([(1 - b) * mu, b * torch.hypot(torch.ones(1), u)], 1).T)
    return network


class OfGaussian(DMD2):
    """DMD2 of an exact teacher, which has no weights that could be trained: the fake score begins as `affine`."""

    rates: ClassVar = {"critic": 4.0}

    def others(self, teacher: Teacher) -> dict[str, nn.Module]:
        return {"critic": affine()}


@pytest.mark.parametrize("mu", [MU, -MU], ids=["data", "corrupted teacher"])
def test_in_one_step_it_makes_its_teachers_gaussian(mu: Tensor) -> None:
    settings = {"steps": 600, "batch": 128, "lr": 0.03, "warmup": 20, "ema": 0.98}
    method = OfGaussian(gan=0.0, ttur=4, low=0.15, high=0.6)
    made = distilled(method, gaussian_teacher(mu=mu), affine(), **settings)
    before, after = run(solvers.Denoiser(affine(), EDM, "data"), made.sampler.plan(EDM, 1))[1], sampled(made, 1)[1]
    assert (before.std(0) / S0 - 1).abs().min() > 0.9  # untrained: the mean
    assert (after.mean(0) - mu).abs().max() < 0.25
    assert (after.std(0) / S0 - 1).abs().max() < 0.1


@pytest.mark.parametrize("mu", [MU, -MU], ids=["data", "corrupted teacher"])
def test_in_four_steps_it_follows_its_teacher(mu: Tensor) -> None:
    """It is the mixture over steps that is matched, by an affine score in mean and spread alone: hence the bound."""
    settings = {"steps": 400, "batch": 128, "lr": 0.02, "warmup": 20, "ema": 0.98}
    made = distilled(OfGaussian(steps=4, gan=0.0, ttur=2), gaussian_teacher(mu=mu), affine(), **settings)
    _, x = sampled(made, 4)
    assert (x.mean(0) - mu).norm() < (x.mean(0) + mu).norm() / 2


RING = {"steps": 1000, "batch": 1024, "lr": 2e-3, "warmup": 50, "ema": 0.99}
SEEDS = (7, 8, 9)


def ring_student(network: nn.Module) -> Distillation:
    """A one-step student of the exact ring, which begins as `network` like its fake score.

    Scores are compared where there is something to see, at sigma of 0.05 to 4; the student is slower than its critic.
    """

    class OfRing(DMD2):
        rates: ClassVar = {"student": 0.2}

        def others(self, teacher: Teacher) -> dict[str, nn.Module]:
            return {"critic": copy.deepcopy(network).requires_grad_(True)}

    begins = copy.deepcopy(network).requires_grad_(True)
    return distilled(OfRing(ttur=1, gan=0.0, low=0.15, high=0.6), ring_teacher(), begins, **RING)


def test_one_step_makes_the_ring(ring_network: nn.Module, ring_floor: float) -> None:
    def found(make: Callable[[int], Tensor]) -> list[float]:
        return [sliced_w2(make(seed), ring(100 + seed, 4096)) / ring_floor for seed in SEEDS]

    made = ring_student(ring_network)
    students = [sampled(made, 1, seed)[1] for seed in SEEDS]
    assert max(found(lambda seed: students[seed - SEEDS[0]])) < 2
    assert np.abs(np.mean([masses(x) for x in students], axis=0) - 1).max() < 0.2
    for control in (ring_network, ring_teacher().network):  # untrained; the exact teacher, by DDIM, at one call
        denoiser = solvers.Denoiser(control, EDM, "data")
        assert min(found(lambda seed, d=denoiser: run(d, solvers.plan("ddim", EDM, 1), seed)[1])) > 8


class TwoClasses(nn.Module):
    """E[x0 | x, y] on EDM of N(c_y, 1), with centres -1 and 1, and 0 for y = 2, which is no class."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        centre = torch.tensor([-1.0, 1.0, 0.0])[y][:, None]
        return centre + (x - centre) / (1 + t[:, None] ** 2)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_data_s_score_is_guided(guidance: float) -> None:
    labels = lambda draws: {"y": torch.from_numpy(draws.integers(1, 2))}  # noqa: E731
    network = TwoClasses()
    denoiser = solvers.Denoiser(network, EDM, "data", Guidance(1.0, {"y": 2}))
    of = Teacher(denoiser, (2,), lambda draws: (draws.normal(DATA, (2,)), labels(draws)), labels)
    same = solvers.Denoiser(network, EDM, "data", Guidance(guidance, {"y": 2}))
    x_to_x = Made(torch.zeros(2), torch.ones(2))
    student = solvers.Denoiser(lambda x, t, y: x_to_x(x, t), EDM, "data")
    both = Players(of, student, student, {"critic": same})

    def norm(asked: float) -> float:
        (grad,) = torch.autograd.grad(DMD2(gan=0.0, guidance=asked).loss(both, "student", batch_of(of)), [x_to_x.mean])
        return float(grad.norm())

    assert norm(guidance) < 1e-5 < 1e-3 < norm(4.0 - guidance)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (DMD2(steps=0), "steps = 0 and ttur = 5 must be at least 1"),
        (DMD2(ttur=0), "steps = 1 and ttur = 0 must be at least 1"),
        (DMD2(gan=-1.0), "gan = -1 and gan_critic = 0.01 must not be negative"),
        (DMD2(low=0.5, high=0.5), "low = 0.5 and high = 0.5 must be shares"),
        (DMD2(gan=0.0, guidance=2.0), "guidance = 2 needs a teacher with guidance"),
        (DMD2(), "gan = 0.003 needs a teacher that names its features; gan = 0 does without"),
    ],
)
def test_what_cannot_be_trained_is_refused(wrong: DMD2, message: str) -> None:
    of = replace(ring_teacher(small()), features="")
    with pytest.raises(ValueError, match=message):
        Distillation(wrong, of, wrong.recipe)
