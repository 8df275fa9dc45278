"""The loop of a distillation: what it resumes to, stops at, keeps as the best, counts, averages and hands over."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distill.batch import LOSS, Batch
from distill.distillation import Distillation
from distill.method import Method, Players
from distill.student import FewStep
from solvers.model import Denoiser, Guidance
from tests.distill.imitations import (
    MADE,
    RECIPE,
    Imitation,
    Rivals,
    Slow,
    Staged,
    assert_same,
    dropping,
    flat,
    learner,
    networks_teacher,
    no_quality,
)
from tests.distill.toys import EDM, MU, S0, gaussian_teacher, small


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_a_resumed_training_ends_with_the_bits_of_an_uninterrupted_one(
    made: Callable[[], Distillation], stop: int
) -> None:
    def quality(denoiser: Denoiser, sampler: FewStep) -> float:
        return float(denoiser(torch.ones(1, 2), 1.0).sum())

    whole, first, second = made(), made(), made()
    whole.run(quality, every=2)
    kept: list[dict[str, Any]] = []

    def save(training: Distillation) -> None:
        if training.step <= stop:
            kept[:] = [copy.deepcopy(training.state_dict())]

    if stop == 1:  # before anything was measured
        first.advance()
        save(first)
    else:
        first.run(quality, 2, on_saved=save)
    torch.manual_seed(99)  # the global generator is no part of it
    second.load_state_dict(kept[0])
    assert 0 < second.step <= stop
    second.run(quality, every=2)
    assert_same(second, whole)
    assert all(torch.equal(second.weights()[name], value) for name, value in whole.weights().items())


def test_training_changes_what_it_should_and_the_global_generator_not() -> None:
    student = dropping()
    before = torch.get_rng_state()
    training = learner(Slow(), student)
    start = copy.deepcopy(training.loop.state_dict())
    training.run(no_quality, 100)
    end = training.loop.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("averaged", "target"):
        assert not torch.equal(end[name]["network.first.weight"], start[name]["network.first.weight"])
    assert end["averaged"]["network.seen"] == 12 * 16  # buffers go along


def test_a_student_learns_what_it_imitates() -> None:
    training = learner(Imitation(), small(), steps=200, batch=64)
    x, t = MU + torch.randn(500, 2, generator=torch.Generator().manual_seed(0)), 1.5

    def error(denoiser: Denoiser) -> float:
        return float((denoiser(x, t) - training.teacher.denoiser(x, t)).norm() / S0.norm() / 500**0.5)

    untrained = error(training.averaged)
    training.run(no_quality, 1000)
    assert untrained > 0.4
    assert error(training.averaged) < 0.06


def test_the_target_is_the_average_of_its_own_decay() -> None:
    training = learner(Slow())
    student = training.players.student.network
    expected, slow = copy.deepcopy(student.network.last.weight.data), copy.deepcopy(student.network.last.weight.data)
    for step in range(12):
        training.advance()
        now = student.network.last.weight.detach()
        slow = torch.lerp(slow, now, 1 - 0.8)
        expected = torch.lerp(expected, now, 1 - min(0.9, (1 + step) / (10 + step)))
    torch.testing.assert_close(training.players.target.network.network.last.weight, slow)
    torch.testing.assert_close(training.weights()["network.last.weight"], expected)


def test_the_student_is_judged_without_dropout() -> None:
    training = learner(Imitation())
    training.advance()
    x = torch.ones(4, 2)
    assert torch.equal(training.averaged(x, 1.0), training.averaged(x, 1.0))
    assert not torch.equal(training.players.student(x, 1.0), training.players.student(x, 1.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("method", "step"), [(Imitation, 5), (Slow, 5), (Staged, 9)], ids=["student", "target", "the third stage"]
)
def test_a_loss_that_is_not_finite_names_its_step_and_leaves_the_weights(
    method: type[Imitation], step: int, bad: float
) -> None:
    training = Distillation(method(spoilt_at=step, bad=bad), networks_teacher(), RECIPE)
    kept: list[dict[str, Any]] = []
    with pytest.raises(FloatingPointError, match=rf"the loss became {bad} at step {step}$"):
        training.run(no_quality, 1, on_saved=lambda now: kept.append(copy.deepcopy(now.loop.state_dict())))
    assert training.step == step == len(kept)
    if method is not Staged or step % 4:
        assert all(
            torch.equal(leaf, flat(kept[-1])[path])
            for path, leaf in flat(training.loop.state_dict()).items()
            if isinstance(leaf, Tensor)
        )
    assert all(value.isfinite().all() for value in training.progress.best.values())


@dataclass(frozen=True)
class Rooted(Imitation):
    """A finite loss whose gradient is not: the root of zero."""

    def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
        value = super().loss(players, turn, batch)
        return (value - value.detach()).sqrt() if round(players.progress * 12) == 4 else value


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_stops_training_before_it_harms(clip: float | None) -> None:
    training = learner(Rooted(), clip=clip)
    with pytest.raises(FloatingPointError, match=r"the gradient became (nan|inf) at step 4$"):
        training.run(no_quality, 1)
    assert all(p.isfinite().all() for p in training.players.student.network.parameters())
    assert all(value.isfinite().all() for value in training.weights().values())


@settings(max_examples=15)
@given(st.lists(st.floats(0, 9) | st.sampled_from([math.nan, math.inf]), min_size=4, max_size=4))
def test_the_best_weights_are_those_of_the_curves_best_point(values: list[float]) -> None:
    training, weights, left = learner(Imitation(), steps=4), [], list(values)

    def quality(denoiser: Denoiser, sampler: FewStep) -> float:
        weights.append({name: p.clone() for name, p in denoiser.network.named_parameters()})
        return left.pop(0)

    training.run(quality, 1)
    assert [step for step, _ in training.progress.curve] == [1, 2, 3, 4]
    best = min(range(4), key=lambda k: (math.inf if math.isnan(values[k]) else values[k], k))
    assert training.progress.best_step == best + 1
    assert training.progress.best_quality == min(math.inf, values[best])
    assert all(torch.equal(training.progress.best[name], value) for name, value in weights[best].items())


@pytest.mark.parametrize(("every", "points"), [(5, [5, 10, 12]), (4, [4, 8, 12]), (100, [12])])
def test_the_curve_has_a_point_every_so_often_and_at_the_end(every: int, points: list[int]) -> None:
    training = learner(Imitation())
    training.run(no_quality, every)
    assert [step for step, _ in training.progress.curve] == points


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        (Imitation(), 16 * (1 + 1 + 3)),  # the teacher; the student as target; the student, forward and backward
        (Slow(), 16 * (1 + 1 + 3)),
        (Rivals(), 16 * (1 + 3 + (3 + 3) / 2)),  # one learns, and gradients pass through the critic, not to the student
    ],
)
def test_calls_are_counted_exactly(method: Method, calls: int) -> None:
    training = Distillation(method, networks_teacher(), RECIPE)
    training.run(lambda denoiser, sampler: float(denoiser(torch.ones(50, 2), 1.0).sum()), 3)  # judging is not training
    assert training.progress.calls == 12 * calls
    assert training.progress.seconds > 0


def test_a_guided_teacher_counts_twice() -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return self.weight * x + y[:, None]

    guided = Denoiser(Labelled().requires_grad_(False), EDM, "data", Guidance(3.0, {"y": 0}))
    given = replace(gaussian_teacher(), denoiser=guided)
    data = lambda draws: (given.data(draws)[0], {"y": torch.ones(draws.count)})  # noqa: E731
    training = Distillation(Imitation(), replace(given, data=data), RECIPE)
    training.advance()
    assert training.progress.calls == 16 * 2 * (1 + 1 + 3)  # all three carry the teacher's guidance


def test_each_player_learns_in_its_own_turns_alone_at_its_own_rate() -> None:
    training = Distillation(Rivals(), networks_teacher(), RECIPE, student=dropping())
    players = {name: player.network for name, player in training.loop.players.items()}

    def weights() -> dict[str, Tensor]:
        return {name: nn.utils.parameters_to_vector(net.parameters()).clone() for name, net in players.items()}

    for step in range(4):
        before = weights()
        training.advance()
        changed = {name for name, now in weights().items() if not torch.equal(now, before[name])}
        assert changed == set(training.method.turns(step))
        assert training.weights().keys() == dict(players["student"].named_parameters()).keys() | {"network.seen"}
    rates = {name: player.optimiser.param_groups[0]["lr"] for name, player in training.loop.players.items()}
    assert rates == {"critic": 0.5 * RECIPE.lr_at(3), "student": RECIPE.lr_at(2)}


def test_two_turns_of_a_step_draw_different_numbers() -> None:
    seen: list[Tensor] = []

    class Watching(Rivals):
        def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
            seen.append(batch.noise(LOSS))
            return super().loss(players, turn, batch)

    Distillation(Watching(), networks_teacher(), RECIPE).advance()
    assert len(seen) == 2
    assert not torch.isclose(*seen).any()


def test_only_what_is_trained_changes_and_is_saved_in_every_stage() -> None:
    training = Distillation(Staged(frozen="network.inner"), networks_teacher(), RECIPE)
    start = copy.deepcopy(training.players.student.network.state_dict())
    training.run(no_quality, 2)
    names = {name for name in start if not name.startswith("network.inner")}
    assert training.stage == 2
    assert training.weights().keys() == names == training.progress.finished[0]["weights"].keys()
    end = training.loop.averaged.state_dict()
    for name, value in start.items():
        constant = name.startswith("network.inner") or "frequencies" in name
        assert torch.equal(end[name], value) == constant, name


def test_each_stages_best_student_is_the_next_ones_teacher_and_beginning() -> None:
    qualities = iter([3.0, 1.0, 2.0, 9.0, 8.0, 7.0])
    budgets: list[tuple[int, ...]] = []

    def quality(denoiser: Denoiser, sampler: FewStep) -> float:
        budgets.append(sampler.trained_for)
        return next(qualities)

    training = Distillation(Staged(count=2), networks_teacher(), RECIPE)
    given = training.teacher.network
    training.run(quality, every=2)
    (first,) = training.progress.finished
    assert (first["step"], first["quality"]) == (4, 1.0)
    assert FewStep.from_dict(first["sampler"]).trained_for == (1,)
    assert budgets == [(1,)] * 3 + [(2,)] * 3
    assert training.teacher.network is not given
    taught = training.teacher.network.state_dict()
    assert all(torch.equal(taught[name], value) for name, value in first["weights"].items())
    assert not any(p.requires_grad for p in training.teacher.network.parameters())
    assert (training.progress.best_step, training.progress.best_quality) == (12, 7.0)
    fresh = Distillation(Staged(count=2), networks_teacher(), RECIPE)
    while fresh.step < 6:
        fresh.advance()
    fresh.measure(no_quality)
    fresh.next_stage()
    assert not fresh.loop.players["student"].optimiser.state  # the optimiser begins anew
    assert fresh.players.student.network.training  # as it was, though the best weights were those of an average
    assert not fresh.loop.averaged.training
    assert fresh.loop.recipe.lr_at(0) == RECIPE.lr_at(0)
    ours, best = fresh.players.student.network.state_dict(), fresh.progress.finished[0]["weights"]
    assert all(torch.equal(ours[name], value) for name, value in best.items())


@given(steps=st.integers(1, 400), stages=st.integers(1, 8))
def test_a_stage_begins_where_its_share_of_the_training_does(steps: int, stages: int) -> None:
    if steps < stages:
        with pytest.raises(ValueError, match=f"{steps} steps: the method needs one for each of its {stages} stages"):
            learner(Staged(count=stages), steps=steps)
        return
    training = learner(Staged(count=stages), steps=steps)
    starts = [training._starts(stage) for stage in range(stages + 1)]
    assert (starts[0], starts[-1]) == (0, steps)
    stage_of = [sum(step >= start for start in starts[1:]) for step in range(steps)]
    assert stage_of == [math.floor(step / steps * stages) for step in range(steps)]
    assert set(stage_of) == set(range(stages))


def test_a_state_is_not_changed_by_who_goes_on_from_it() -> None:
    training = learner(Imitation())
    training.advance()
    training.measure(no_quality)
    state = copy.deepcopy(training.state_dict())
    other = learner(Imitation())
    other.load_state_dict(state)
    other.run(no_quality, 1)
    assert len(state["progress"]["curve"]) == 1
    assert state["loop"]["step"] == 1


def test_what_networks_draw_themselves_differs_from_step_to_step_and_seed_to_seed() -> None:
    drawn: list[float] = []

    class Drawing(Imitation):
        def loss(self, players: Players, turn: str, batch: Batch) -> Tensor:
            drawn.append(float(torch.rand(())))
            return super().loss(players, turn, batch)

    for seed in (0, 1, 0):
        learner(Drawing(), steps=4, seed=seed).run(no_quality, 100)
    assert drawn[:4] == drawn[8:]
    assert len(set(drawn)) == 8


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_every_seed_is_a_training_of_its_own(seed: int) -> None:
    trainings = [learner(Imitation(), seed=s) for s in (seed, seed, seed + 5)]
    for training in trainings:
        training.advance()
    weights = [training.players.student.network.network.first.weight for training in trainings]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_half_precision_that_needs_a_scaled_loss_is_refused() -> None:
    class Half(Accelerator):
        mixed_precision = "fp16"

    with pytest.raises(ValueError, match="mixed precision fp16 is not supported: choose bf16 or no"):
        Distillation(Imitation(), gaussian_teacher(), RECIPE, Half(cpu=True), small())
