"""Adapter guidance distillation: one forward for two, along guided trajectories, by adapters that are told w."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import solvers
from distill.batch import Batch, Draws
from distill.distillation import Distillation
from distill.guidance import AGD, BUDGETS, ScaleAdapted
from solvers.schedule import Schedule
from tests.distill import conditional, toys
from tests.distill.conditional import guided, guided_teacher, start

VP = solvers.VPDiscrete.scaled_linear()
EDM = toys.EDM


@pytest.fixture(scope="module")
def made() -> Distillation:
    recipe = {"steps": 350, "batch": 64, "lr": 1e-2, "warmup": 30, "ema": 0.98}
    return toys.distilled(AGD(rank=4), guided_teacher(EDM), **recipe)


def _met(schedule: Schedule, method: AGD, w: float, count: int = 512) -> tuple[Tensor, np.ndarray, Tensor, Tensor]:
    """States of guided trajectories that nothing was trained on, times, guided predictions, and the states' classes."""
    teacher = guided_teacher(schedule)
    draws = Draws(99, 0, 0, count)
    batch = Batch(*teacher.data(draws), draws)
    x, t, D = method._guided(teacher, batch, np.full(count, w))
    return x, t, D, batch.cond["y"].repeat(method.calls)


@pytest.mark.parametrize("w", [1.5, 3.0, 6.0])
def test_one_forward_says_what_two_did(made: Distillation, w: float) -> None:
    """Over trajectories, relative to what guidance adds; without adapters nothing of that is said."""
    x, t, D, y = _met(EDM, made.method, w)
    told = {"y": y, "w": torch.full((len(x),), w)}
    with torch.no_grad():
        plain = made.teacher.denoiser.at_each(x, t, "data", {"y": y})
        before = made.averaged.passed
        one = made.averaged.at_each(x, t, "data", told)
    assert float((one - D).norm() / (plain - D).norm()) < 0.15
    untrained = Distillation(made.method, guided_teacher(EDM), made.recipe).averaged
    assert torch.equal(untrained.at_each(x, t, "data", told), plain)
    assert before == 0


@pytest.mark.parametrize("w", [1.5, 3.0, 6.0])
@pytest.mark.parametrize("nfe", BUDGETS)
def test_samples_are_the_guided_teachers_for_half_of_its_forwards(made: Distillation, nfe: int, w: float) -> None:
    """Nearly, with as many calls as it was trained along or more; with fewer, its states are others."""
    x_T, cond = start(EDM)
    plan, two, one = made.sampler.plan(EDM, nfe), guided(made.teacher, w), made.averaged
    expected = solvers.sample(plan, two, x_T, cond=cond)
    unguided = solvers.sample(plan, guided(made.teacher, 1.0), x_T, cond=cond)
    x = solvers.sample(plan, one, x_T, cond=cond | {"w": torch.full((len(x_T),), w)})
    off = conditional.error(x, expected, cond)
    assert off < 0.5 * conditional.error(unguided, expected, cond)
    assert off < 0.15 or nfe < made.method.calls
    assert (one.calls, two.calls, one.forwards, two.forwards) == (nfe, nfe, nfe, 2 * nfe)
    assert 2 * one.passed == two.passed == 2 * nfe * len(x_T)


def test_unguided_it_is_the_teacher_itself(made: Distillation) -> None:
    x_T, cond = start(EDM)
    plan = made.sampler.plan(EDM, 5)
    expected = solvers.sample(plan, guided(made.teacher, 1.0), x_T, cond=cond)
    told = cond | {"w": torch.ones(len(x_T))}
    assert torch.equal(solvers.sample(plan, made.averaged, x_T, cond=told), expected)


def test_adapters_alone_are_trained_and_saved(made: Distillation) -> None:
    network = made.averaged.network
    base = network.network.state_dict()
    assert all(torch.equal(value, base[name]) for name, value in made.teacher.network.state_dict().items())
    saved = made.weights()
    assert not {name for name, _ in network.network.named_parameters(prefix="network")} & set(saved)

    x, cond = start(EDM, 64)
    told = cond | {"w": torch.linspace(1, 6, 64)}
    rebuilt = made.method.student(guided_teacher(EDM))
    assert not torch.allclose(rebuilt(x, x[:, 0].abs(), **told), network(x, x[:, 0].abs(), **told), atol=0.01)
    rebuilt.load_state_dict(saved, strict=False)
    assert torch.equal(rebuilt(x, x[:, 0].abs(), **told), network(x, x[:, 0].abs(), **told))


@pytest.mark.parametrize("schedule", [EDM, VP], ids=["EDM", "VPDiscrete"])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpm_solver_2m", "ddim"])  # of the data, of the noise
def test_it_is_trained_where_sampling_the_guided_teacher_leads(schedule: Schedule, solver: str) -> None:
    method = AGD(solver=solver, calls=8)
    x, t, D, y = _met(schedule, method, 3.0, 32)
    of = guided_teacher(schedule)
    seen: list[tuple[Tensor, float]] = []

    def watched(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if not (y == conditional.CLASSES).all():
            seen.append((x.clone(), float(t[0])))
        return of.network(x, t, y=y)

    denoiser = solvers.Denoiser(watched, schedule, "data", solvers.Guidance(3.0, {"y": conditional.CLASSES}))
    solvers.sample(method.sampler(schedule).plan(schedule, 8), denoiser, x[:32], cond={"y": y[:32]})
    assert len(seen) == 8
    for k, (state, at) in enumerate(seen):
        rows = slice(32 * k, 32 * k + 32)
        assert np.allclose(t[rows], at)
        assert torch.allclose(x[rows], state, rtol=1e-4, atol=1e-4 * (1 + float(schedule.sigma(at))))
        guided_by_two = guided(of, 3.0)(state, at, "data", {"y": y[rows]})
        assert torch.allclose(D[rows], guided_by_two, rtol=1e-3, atol=1e-3)


def test_trajectories_need_no_data() -> None:
    """What is learned from is the teacher's own: other data give the same loss."""
    method, teacher = AGD(), guided_teacher(EDM)
    made = Distillation(method, teacher, method.recipe)
    batch = made._batch(0, 0)
    garbage = Batch(torch.full_like(batch.x0, float("nan")), batch.cond, batch.draws)
    losses = [method.loss(made.players, "student", b) for b in (batch, garbage)]
    assert torch.isfinite(losses[0])
    assert torch.equal(*losses)


class Convolutional(nn.Module):
    """Images: a convolution with stride, one dilated, and a linear layer over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.dilated = nn.Conv2d(6, 6, 3, padding=2, dilation=2, padding_mode="reflect")
        self.mix = nn.Linear(6, 6)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.dilated(self.down(x).tanh()) + t[:, None, None, None]
        return self.mix(h.flatten(2).transpose(1, 2))


def _convolutional() -> tuple[ScaleAdapted, Convolutional, Tensor, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = Convolutional().requires_grad_(False)  # torch convolves otherwise for gradients, to an ulp
        x, t, w = torch.randn(4, 3, 8, 8), torch.rand(4), torch.tensor([1.0, 2.0, 3.0, 6.0])
    return ScaleAdapted(copy.deepcopy(base), 2), base, x, t, w


def test_convolutions_and_tokens_are_adapted_each_sample_by_its_own_w() -> None:
    network, base, x, t, w = _convolutional()
    assert torch.equal(network(x, t, w), base(x, t))  # nothing is changed at first
    generator = torch.Generator().manual_seed(0)
    for k, adapter in enumerate(network.adapters):
        others = copy.deepcopy(network)
        nn.init.normal_(others.adapters[k].up.weight, generator=generator)
        told = others(x, t, w)
        moved = (told - base(x, t)).flatten(1).norm(dim=1)
        assert moved[0] == 0  # w = 1
        assert (moved[1:] > 1e-2).all(), adapter
        alone = torch.cat([others(x[i : i + 1], t[i : i + 1], w[i : i + 1]) for i in range(4)])
        assert torch.allclose(alone, told, atol=1e-5)


def test_a_copy_adapts_itself_alone() -> None:
    network, base, x, t, w = _convolutional()
    copied = copy.deepcopy(network)
    for adapter in copied.adapters:
        nn.init.ones_(adapter.up.weight)
    assert torch.equal(network(x, t, w), base(x, t))
    assert not torch.allclose(copied(x, t, w), base(x, t), atol=0.1)
    assert torch.equal(copied.network(x, t), base(x, t))  # no hook is left behind


def test_students_begin_the_same_whatever_was_drawn_before() -> None:
    states = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            states.append(AGD().student(guided_teacher(EDM)).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (AGD(rank=0), "rank = 0: the adapters have a rank of 1 or more"),
        (AGD(guidance=7.0), r"guidance = 7 lies outside \[1, w_max\] = \[1, 6\]"),
        (AGD(guidance=1.0, w_max=1.0), "w_max > 1"),
        (AGD(solver="tcd"), "tcd cannot be stacked: it draws noise"),
        (AGD(solver="dpm_solver_12"), "dpm_solver_12"),
        (AGD(calls=0), "nfe must be a whole number of network calls >= 1, not 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_options_that_make_no_sense_are_refused(method: AGD, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method.check(guided_teacher(EDM))


def test_a_teacher_without_guidance_and_a_network_without_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="no guidance to distil"):
        AGD().check(toys.gaussian_teacher())
    with pytest.raises(ValueError, match="neither linear nor convolutional layers"):
        ScaleAdapted(toys.Gaussian(), 2)


def test_the_sampler_says_what_the_network_wants() -> None:
    sampler = AGD(guidance=3.0).sampler(EDM)
    assert (sampler.embedded, sampler.scale(), sampler.scale(1.0), sampler.scale(6.0)) == (True, 3.0, 1.0, 6.0)
    assert sampler.trained_for == BUDGETS
