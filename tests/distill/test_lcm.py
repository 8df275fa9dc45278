"""Latent consistency distillation: its parametrisation, what it learns with the scale of guidance told, and LoRA."""

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import solvers
from distill.batch import Batch, Draws
from distill.distillation import Distillation
from distill.embedding import WIDTH, ScaleEmbedded, scale_embedding
from distill.lcm import BUDGETS, LCM, bounded
from distill.method import Players
from solvers.lcm import boundary_condition
from solvers.schedule import Schedule
from tests.distill import conditional, toys
from tests.distill.conditional import guided, guided_teacher, start

VP = solvers.VPDiscrete.scaled_linear()
SCHEDULES = [toys.EDM, solvers.VPLinear(), VP, solvers.RectifiedFlow()]
PLAIN = LCM(embedded=False, guidance=1.0)


class ExactFunction(nn.Module):
    """The data prediction with which f, as LCM parametrises it, is the Gaussian's exact map to the schedule's end."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rows = []
        for row, at in zip(x, t.tolist(), strict=True):
            c_skip, c_out = boundary_condition(self.schedule, at)
            f = toys.exact_map(row, at, self.schedule.t_end, self.schedule)
            rows.append((f - c_skip * row) / c_out if c_out else row)
        return torch.stack(rows)


def _loss(method: LCM, network: nn.Module, schedule: Schedule) -> float:
    """The loss of a network as student and target of the exact Gaussian."""
    teacher = toys.gaussian_teacher(schedule)
    denoiser = solvers.Denoiser(network, schedule, "data")
    draws = Draws(0, 0, 0, 256)
    with torch.no_grad():
        return float(method.loss(Players(teacher, denoiser, denoiser), "student", Batch(*teacher.data(draws), draws)))


# The parametrisation


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_f_is_the_identity_at_the_end_whatever_the_network_says(schedule: Schedule) -> None:
    x, D = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bounded(schedule, x, D, np.full(5, schedule.t_end)), x)
    assert not torch.allclose(bounded(schedule, x, D, np.full(5, schedule.t_max)), x, atol=0.1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("nfe", BUDGETS)
def test_it_is_sampled_with_the_function_that_is_trained(schedule: Schedule, nfe: int) -> None:
    """Algorithm 3 by hand: f, noise to the next time of the training's, and none at the end."""
    method = replace(PLAIN, points=16)
    plan = method.sampler(schedule).plan(schedule, nfe)
    denoiser = solvers.Denoiser(toys.Gaussian(schedule), schedule, "data")
    z = torch.randn(nfe + 1, 64, 2, generator=torch.Generator().manual_seed(0))
    x = z[-1] * schedule.prior_std(schedule.t_max)
    sampled = solvers.sample(plan, denoiser, x, lambda k: z[k])
    for k, (t, s) in enumerate(pairwise(plan.times)):
        f = bounded(schedule, x, denoiser(x, t, "data"), np.full(64, t))
        x = float(schedule.alpha(s)) * f + float(schedule.sigma(s)) * z[k]
    assert torch.allclose(sampled, x, atol=1e-5)
    assert set(plan.times) <= {0.0, *method._times(schedule).tolist()}
    assert (plan.times[0], plan.times[-1]) == (schedule.t_max, 0.0)


def test_on_ddpms_schedule_the_labels_are_the_papers() -> None:
    labels = PLAIN._times(VP) * 1000 - 1
    assert np.allclose(labels, [0, *range(19, 1000, 20)], atol=1e-9)
    for nfe in BUDGETS:
        assert PLAIN.sampler(VP).plan(VP, nfe) == solvers.plan("lcm", VP, nfe, grid="lcm", boundary=True)


@pytest.mark.parametrize("schedule", [toys.EDM, VP], ids=["EDM", "VPDiscrete"])
def test_the_exact_function_has_the_loss_of_the_solver_alone(schedule: Schedule) -> None:
    """Which falls with the order and rises with the intervals that are skipped, to all of an untrained network's."""
    exact = ExactFunction(schedule)
    heun, ddim, skipping = (
        _loss(replace(PLAIN, solver=name, calls=calls, skip=skip), exact, schedule)
        for name, calls, skip in (("heun", 2, 1), ("ddim", 1, 1), ("ddim", 1, 4))
    )
    untrained = _loss(PLAIN, toys.Affine(schedule), schedule)
    assert 5 * heun < ddim < 0.5 * skipping < 0.5 * untrained


@given(st.integers(1, 16), st.integers(0, 15))
@settings(max_examples=30, deadline=None)
def test_the_teachers_step_goes_over_as_many_intervals_as_it_should(skip: int, k: int) -> None:
    method = replace(PLAIN, points=16, skip=skip)
    rising = method._times(toys.EDM)
    t, s = rising[k + 1], rising[max(0, k + 1 - skip)]
    D, x = torch.full((1, 2), 0.3, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    moved = method._steps(toys.EDM).run(np.array([k]), lambda x, at: D if at[0] == t else x / 0, x)
    assert torch.allclose(moved, D + s / t * (x - D), rtol=1e-12)


# What is learned, without guidance


def _gaussian(mu: Tensor) -> Distillation:
    method = replace(PLAIN, solver="heun", calls=4, points=10)
    recipe = {"steps": 400, "batch": 256, "lr": 5e-2, "warmup": 30, "ema": 0.98, "optimiser": "adamw"}
    return toys.distilled(method, toys.gaussian_teacher(VP, mu), toys.Affine(VP), **recipe)


def _distance(made: Distillation) -> float:
    """From the exact map of the uncorrupted Gaussian, over the spread of what that gives."""
    x_T, x = toys.sampled(made, 1)
    exact = toys.exact_map(x_T, VP.t_max, VP.t_end, VP)
    return float((x - exact).norm() / (exact - exact.mean(0)).norm())


def test_it_learns_the_gaussians_exact_map() -> None:
    assert _distance(_gaussian(toys.MU)) < 0.02


def test_a_corrupted_teacher_gives_a_corrupted_student() -> None:
    wrong = torch.tensor([-0.4, 0.7])
    made = _gaussian(wrong)
    assert torch.allclose(toys.sampled(made, 1)[1].mean(0), wrong, atol=0.05)
    assert _distance(made) > 1


# What is learned, with guidance

FAST = {"batch": 512, "lr": 6e-3, "warmup": 30, "ema": 0.98, "optimiser": "adamw"}


@pytest.fixture(scope="module")
def told() -> Distillation:
    return toys.distilled(LCM(points=10, w_max=3.0), guided_teacher(VP), steps=700, **FAST)


@pytest.fixture(scope="module")
def lora() -> Distillation:
    method = LCM(points=10, embedded=False, guidance=2.0, lora=8)
    return toys.distilled(method, guided_teacher(VP), steps=350, **FAST | {"batch": 256, "lr": 1e-2})


def _teachers(scale: float, nfe: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """What the guided teacher itself makes of `start` with all its steps in place of each of the student's."""
    method, teacher = LCM(points=10), guided_teacher(VP)
    falling, times = method._times(VP)[::-1], method.sampler(VP).plan(VP, nfe).times
    x, cond = start(VP)
    for k, (t, s) in enumerate(pairwise(times)):
        plan = solvers.plan("ddim", VP, times=falling[falling <= t].tolist())
        x0 = solvers.sample(plan, guided(teacher, scale), x, cond=cond)
        x = float(VP.alpha(s)) * x0 + float(VP.sigma(s)) * conditional.fresh(k, len(x))
    return x, cond


@pytest.mark.parametrize("nfe", [1, 2, 4])
@pytest.mark.parametrize("w", [1.0, 2.0, 3.0])
def test_told_w_a_step_is_all_of_the_teachers_guided_by_w(told: Distillation, w: float, nfe: int) -> None:
    """To a tenth of the spread in a class; the teacher unguided, and the student told another w, are far off."""
    expected, cond = _teachers(w, nfe)
    assert conditional.error(conditional.student(told, nfe, w), expected, cond) < 0.12
    if w > 1:
        assert conditional.error(_teachers(1.0, nfe)[0], expected, cond) > 0.6
        assert conditional.error(conditional.student(told, nfe, 1.0), expected, cond) > 0.6


def test_the_sampler_says_what_the_network_wants(told: Distillation, lora: Distillation) -> None:
    assert told.sampler.embedded
    assert (told.sampler.scale(), told.sampler.scale(3.0)) == (2.0, 3.0)
    assert (lora.sampler.embedded, lora.sampler.scale()) == (False, 1.0)  # its scale is in its weights


def test_adapters_learn_one_scale(lora: Distillation) -> None:
    expected, cond = _teachers(2.0)
    untrained = Distillation(lora.method, guided_teacher(VP), lora.recipe)
    assert conditional.error(conditional.student(lora, 1, 2.0), expected, cond) < 0.12
    assert conditional.error(conditional.student(untrained, 1, 2.0), expected, cond) > 0.9


def test_adapters_alone_are_trained_and_saved(lora: Distillation) -> None:
    base = {k.replace(".base_layer", ""): v for k, v in lora.averaged.network.state_dict().items() if "lora" not in k}
    before = lora.teacher.network.state_dict()
    assert base.keys() == before.keys()
    assert all(torch.equal(base[k], before[k]) for k in before)
    saved = lora.weights()
    buffers = dict(lora.averaged.network.named_buffers())
    assert {k for k in saved if "lora" not in k} == set(buffers)

    rebuilt = lora.method.student(guided_teacher(VP))
    x, cond = start(VP, 64)
    t = torch.full((64,), 0.5)
    assert not torch.allclose(rebuilt(x, t, **cond), lora.averaged.network(x, t, **cond), atol=0.01)
    rebuilt.load_state_dict(saved, strict=False)
    assert torch.equal(rebuilt(x, t, **cond), lora.averaged.network(x, t, **cond))


def test_students_begin_the_same_whatever_was_drawn_before() -> None:
    """And nothing is drawn from the global generator that is not put back."""
    method, teacher = LCM(points=10, embedded=False, lora=4), guided_teacher(VP)
    torch.manual_seed(1)
    one = method.student(teacher).state_dict()
    torch.manual_seed(2)
    two = method.student(teacher).state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)


# The scale as an input


def test_the_embedding_is_of_a_thousand_w() -> None:
    w = torch.tensor([0.25, 2.0], dtype=torch.float64)
    k = np.arange(WIDTH // 2)
    angles = 1000 * w.numpy()[:, None] * 10_000.0 ** (-k / (WIDTH // 2 - 1))
    assert np.allclose(scale_embedding(w), np.concatenate([np.sin(angles), np.cos(angles)], 1), atol=1e-9)


def _embedded() -> tuple[ScaleEmbedded, tuple[Tensor, Tensor], dict[str, Tensor]]:
    teacher = guided_teacher(VP)
    x, cond = start(VP, 16)
    return ScaleEmbedded(copy.deepcopy(teacher.network), teacher.time_embedding), (x, torch.full((16,), 0.4)), cond


def test_at_first_w_changes_nothing_and_then_it_does() -> None:
    network, at, cond = _embedded()
    plain = guided_teacher(VP).network(*at, **cond)
    w = torch.linspace(1, 4, 16)
    assert torch.equal(network(*at, w=w, **cond), plain)
    torch.nn.init.normal_(network.project.weight, generator=torch.Generator().manual_seed(0))
    told = network(*at, w=w, **cond)
    assert ((told - plain).norm(dim=1) > 1e-3).all()
    assert torch.equal(network(*at, **cond), plain)  # without w it is not added, nor is a hook left behind
    alone = network(at[0][3:4], at[1][3:4], w=w[3:4], y=cond["y"][3:4])
    assert torch.allclose(alone, told[3:4], atol=1e-5)  # each sample has its own


def test_a_copy_has_its_own_projection() -> None:
    network, at, cond = _embedded()
    w = torch.full((16,), 2.0)
    before = network(*at, w=w, **cond)
    copied = copy.deepcopy(network)
    torch.nn.init.normal_(copied.project.weight, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(*at, w=w, **cond), before)
    assert not torch.allclose(copied(*at, w=w, **cond), before, atol=1e-2)
    network.load_state_dict(copied.state_dict())
    assert torch.equal(network(*at, w=w, **cond), copied(*at, w=w, **cond))


# Refusals


@pytest.mark.parametrize("at", ["", "network.nothing", "network.network.frequencies"])
def test_a_module_that_is_not_there_is_refused(at: str) -> None:
    with pytest.raises(ValueError, match=f"no module '{at}' that embeds the time"):
        ScaleEmbedded(guided_teacher(VP).network, at)


def test_a_module_without_a_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'network\.network\.inner\.0' has no linear layer"):
        ScaleEmbedded(guided_teacher(VP).network, "network.network.inner.0")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (LCM(lora=4), "lora = 4: .* embedded=False"),
        (LCM(lora=-1, embedded=False), "lora = -1: a rank >= 0"),
        (LCM(points=7), "points = 7: at least 8"),
        (LCM(points=51), "50 labels, fewer than 51"),
        (LCM(skip=0), "skip = 0: from 1 to the number of points, 50"),
        (LCM(skip=51), "skip = 51"),
        (LCM(guidance=5.0), r"guidance = 5 lies outside \[w_min, w_max\] = \[1, 4\]"),
        (LCM(solver="heun"), "heun"),
        (LCM(solver="tcd"), "tcd cannot be stacked: it draws noise"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_options_that_make_no_sense_are_refused(method: LCM, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method.check(guided_teacher(VP))


@pytest.mark.parametrize("method", [LCM(), LCM(embedded=False, guidance=2.0)])
def test_a_teacher_without_guidance_is_refused_where_some_is_to_be_distilled(method: LCM) -> None:
    with pytest.raises(ValueError, match="no guidance to distil"):
        method.check(toys.gaussian_teacher(VP))


def test_a_network_without_layers_takes_no_adapters() -> None:
    with pytest.raises(ValueError, match="lora = 2: the network has neither linear nor convolutional layers"):
        replace(PLAIN, lora=2).student(toys.gaussian_teacher(VP))
