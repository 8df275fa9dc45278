"""Execution: the input is left alone, rows are independent, runs repeat to the bit, registers are let go."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import solvers
from solvers.model import PREDICTIONS, Prediction
from solvers.plan import Combine, Evaluate, Instruction, Plan, PlanError, Rule, Threshold, reads
from solvers.schedule import Schedule
from tests.solvers.common import NAMES, PLANNED, SCHEDULES, denoiser, draws, some_plan, start

VP = solvers.VPLinear()
EVERY = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
PLANS = pytest.mark.parametrize(
    "plan",
    [
        *(some_plan(name, s) for name in NAMES for s in (VP, solvers.EDM())),
        solvers.plan("ddim", VP, 9, eta=1.0),
    ],
    ids=lambda plan: f"{plan.method}-{type(plan.schedule).__name__}-{plan.draws} draws",
)


def run(plan: solvers.Plan, x_T: Tensor, z: Tensor | None = None) -> Tensor:
    z = draws(plan, len(x_T)) if z is None else z
    return solvers.sample(plan, denoiser(plan.schedule), x_T, noise=lambda k: z[k])


@PLANS
def test_the_start_is_left_as_it_was(plan: solvers.Plan) -> None:
    x_T = start(plan.schedule, 3)
    before = x_T.clone()
    run(plan, x_T)
    assert torch.equal(x_T, before)


@PLANS
def test_the_same_plan_gives_the_same_bits_again(plan: solvers.Plan) -> None:
    x_T, network = start(plan.schedule, 3), denoiser(plan.schedule)
    z = draws(plan, 3)
    first, _, again = (solvers.sample(plan, network, x, noise=lambda k: z[k]) for x in (x_T, -x_T, x_T))
    assert torch.equal(first, again)


@PLANS
def test_rows_sampled_apart_are_the_rows_sampled_together(plan: solvers.Plan) -> None:
    x_T, z = start(plan.schedule, 5), draws(plan, 5)
    apart = torch.cat([run(plan, x_T[i : i + 1], z[:, i : i + 1]) for i in range(5)])
    torch.testing.assert_close(run(plan, x_T, z), apart, rtol=0, atol=1e-12)


@PLANS
def test_permuting_the_batch_permutes_the_samples(plan: solvers.Plan) -> None:
    x_T, z, order = start(plan.schedule, 5), draws(plan, 5), torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(run(plan, x_T[order], z[:, order]), run(plan, x_T, z)[order], rtol=0, atol=1e-12)


@PLANS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_sample_is_in_the_starts_dtype_and_shape(plan: solvers.Plan, dtype: torch.dtype) -> None:
    x = run(plan, start(plan.schedule, 3).to(dtype))
    assert (x.dtype, x.shape) == (dtype, (3, 4))
    assert x.isfinite().all()


def test_the_dtype_is_kept_when_the_network_answers_in_another() -> None:
    network = solvers.Denoiser(lambda x, t: x * t[:, None], solvers.EDM(), "data")
    x = solvers.sample(solvers.plan("ddim", solvers.EDM(), 3), network, torch.ones(2, 1, dtype=torch.float16))
    assert x.dtype == torch.float16


@PLANS
def test_the_callback_sees_every_instruction_once_and_the_sample_last(plan: solvers.Plan) -> None:
    seen: list[tuple[Instruction, Tensor]] = []
    z = draws(plan, 2)
    x = solvers.sample(
        plan,
        denoiser(plan.schedule),
        start(plan.schedule, 2),
        noise=lambda k: z[k],
        callback=lambda instruction, out: seen.append((instruction, out.clone())),
    )
    assert tuple(instruction for instruction, _ in seen) == plan.instructions
    assert torch.equal(seen[-1][1], x)


class Living(TorchDispatchMode):
    """Counts the tensors of a shape that operations made and that something still holds."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.shape == self.shape:
            self.made.append(weakref.ref(out))
        return out

    def count(self) -> int:
        return len({id(tensor) for ref in self.made if (tensor := ref()) is not None})


def still_read(plan: solvers.Plan, k: int) -> set[int]:
    """The registers written by instruction k, or x_T, that a later one reads or that are the sample."""
    later = {r for i in plan.instructions[k + 1 :] for r in reads(i)} | {plan.instructions[-1].out}
    return later & {0, *(i.out for i in plan.instructions[: k + 1])}


@PLANS
def test_buffers_are_the_most_registers_alive_between_two_instructions(plan: solvers.Plan) -> None:
    assert plan.buffers == max(len(still_read(plan, k)) for k in range(-1, len(plan.instructions)))


@PLANS
def test_registers_are_let_go_when_nothing_reads_them_any_more(plan: solvers.Plan) -> None:
    """With a network that predicts what the plan works in, where no register takes over another's memory."""
    network, x_T = solvers.Denoiser(lambda x, t: torch.sin(x), plan.schedule, plan.predicts), start(plan.schedule, 3)
    z, alive = draws(plan, 3), list[int]()

    def count(instruction: Instruction, out: Tensor) -> None:
        alive.append(living.count() - 1)  # but for the callback's own copy

    with Living((3, 4)) as living:
        x = solvers.sample(plan, network, x_T, lambda k: z[k], count)
    assert x.shape == (3, 4)
    held = [len(still_read(plan, k - 1) - {0}) + 1 for k in range(len(plan.instructions))]
    more = {there - needed for there, needed in zip(alive, held, strict=True)}
    assert more <= {0, 1}  # 1: what the last combination began with


def test_no_gradients_are_kept() -> None:
    weight = torch.ones(1, requires_grad=True)
    x = solvers.sample(solvers.plan("ddim", VP, 3), solvers.Denoiser(lambda x, t: weight * x, VP), torch.ones(1, 1))
    assert not x.requires_grad


@PLANNED
@EVERY
def test_every_solver_samples_every_schedule(name: str, schedule: Schedule) -> None:
    x = run(some_plan(name, schedule, 19), start(schedule, 64))
    assert x.isfinite().all()
    assert x.std() == pytest.approx(0.75, abs=0.35)  # the mixture's is about 0.7


def test_a_denoiser_on_another_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the plan is for VPLinear\(.*\), the denoiser for EDM"):
        solvers.sample(solvers.plan("ddim", VP, 3), denoiser(solvers.EDM()), start(VP, 1))


def test_a_plan_with_draws_asks_for_noise() -> None:
    with pytest.raises(ValueError, match="ddim needs 3 noise draws: pass noise"):
        solvers.sample(solvers.plan("ddim", VP, 3, eta=1.0), denoiser(VP), start(VP, 1))


@pytest.mark.parametrize(("schedule", "drawn"), [(VP, 6), (solvers.EDM(), 5)], ids=["VPLinear", "EDM"])
def test_ancestral_ddim_draws_once_a_step_except_onto_the_data(schedule: Schedule, drawn: int) -> None:
    plan, z, asked = solvers.plan("ddim", schedule, 6, eta=1.0), torch.ones(1, 4), []
    solvers.sample(plan, denoiser(schedule), start(schedule, 1), noise=lambda k: (asked.append(k), z)[1])
    assert asked == list(range(drawn)) == list(range(plan.draws))


def test_ancestral_ddim_follows_its_noise_and_plain_ddim_ignores_it() -> None:
    ancestral, plain = (solvers.plan("ddim", VP, 6, eta=eta) for eta in (1.0, 0.0))
    x_T, z = start(VP, 2), draws(ancestral, 2)
    assert not torch.allclose(run(ancestral, x_T, z), run(ancestral, x_T, -z))
    assert torch.equal(run(plain, x_T, z), run(plain, x_T, -z))


def test_conditions_reach_the_network() -> None:
    network = solvers.Denoiser(lambda x, t, y: x - y[:, None], VP, "data")
    plan = solvers.plan("ddim", VP, times=[0.5, 1e-3])
    given = solvers.sample(plan, network, torch.ones(2, 1), cond={"y": torch.tensor([0.0, 5.0])})
    assert given[0, 0] - given[1, 0] == pytest.approx(5, rel=0.1)


ON_VP = pytest.mark.parametrize("plan", [some_plan(name, VP) for name in NAMES], ids=NAMES)


@ON_VP
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_the_sample_does_not_depend_on_what_the_network_predicts(plan: solvers.Plan, predicts: Prediction) -> None:
    schedule, z = plan.schedule, draws(plan, 2)
    own = solvers.Denoiser(lambda x, t: 0.2 * torch.sin(x) + t[:, None], schedule, plan.predicts)
    other = solvers.Denoiser(lambda x, t: own(x, float(t[0]), predicts), schedule, predicts)
    a, b = (solvers.sample(plan, network, start(schedule, 2), lambda k: z[k]) for network in (own, other))
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


CACHED = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
ALIASING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "its input": lambda x, t: x,
    "a view of its input": lambda x, t: x.view_as(x),
    "a tensor it keeps": lambda x, t: CACHED,
}


@pytest.mark.parametrize("network", ALIASING.values(), ids=ALIASING)
@pytest.mark.parametrize(
    "plan",
    [
        *(some_plan(name, VP) for name in NAMES),
        solvers.plan("ddim", VP, 5, eta=1.0, denoise_to_zero=True),
        *(solvers.plan("dpmpp_3m", VP, 5, thresholding=rule) for rule in ("static", "dynamic")),
    ],
    ids=lambda plan: f"{plan.method}-{len(plan.instructions)}",
)
def test_no_tensor_of_the_caller_or_the_network_is_written_to(
    plan: solvers.Plan, network: Callable[[Tensor, Tensor], Tensor]
) -> None:
    for predicts in ("noise", "data", "velocity"):
        x_T, z = start(VP, 3), draws(plan, 3)
        kept = [(tensor, tensor.clone()) for tensor in (x_T, CACHED, z)]

        def watched(x: Tensor, t: Tensor, kept: list[tuple[Tensor, Tensor]] = kept) -> Tensor:
            out = network(x, t)
            kept += [(x, x.clone()), (out, out.clone())]
            return out

        solvers.sample(plan, solvers.Denoiser(watched, VP, predicts), x_T, lambda k, z=z: z[k])
        assert len(kept) == 3 + 2 * plan.nfe
        assert all(torch.equal(tensor, as_it_was) for tensor, as_it_was in kept)


@PLANS
def test_the_callback_may_write_into_what_it_sees(plan: solvers.Plan) -> None:
    x_T, network, z = start(plan.schedule, 2), denoiser(plan.schedule), draws(plan, 2)
    x, spoilt = (
        solvers.sample(plan, network, x_T, lambda k: z[k], callback)
        for callback in (None, lambda instruction, out: out.fill_(7))
    )
    assert torch.equal(x, spoilt)


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_the_callback_sees_outputs_in_the_plans_parametrisation(predicts: Prediction) -> None:
    network = solvers.Denoiser(lambda x, t: torch.sin(x) + t[:, None], VP, predicts)
    plan, x_T, seen = solvers.plan("dpmpp_2m", VP, 4), start(VP, 2), dict[int, Tensor]()
    solvers.sample(plan, network, x_T, callback=lambda instruction, out: seen.update({instruction.out: out}))
    for i in plan.instructions:
        if isinstance(i, Evaluate):
            state = seen.get(i.state, x_T)
            torch.testing.assert_close(seen[i.out], network(state, i.t, "data"), rtol=1e-12, atol=1e-12)


def thresholded(rule: Rule, **fields: Any) -> Plan:
    """One call whose thresholded data prediction is the sample."""
    instructions = (Evaluate(1, 0, 0.5), Threshold(2, 1, rule), Combine(3, ((1.0, 2),)))
    return replace(Plan("by hand", (), 1, "data", VP, (0.5, 0.0), instructions), **fields)


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    """Within the range, a little and far outside it, and within it but for one outlier: (4, 2, 16, 16)."""
    x = torch.randn(4, 2, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x.clamp(-3, 3) * torch.tensor([0.3, 1.0, 40.0, 0.2], dtype=torch.float64).reshape(-1, 1, 1, 1)
    x[3, 0, 0, 0] = -50
    return x.to(dtype)


def clipped(D: Tensor, rule: Rule) -> Tensor:
    """Saharia et al. 2022, Section 2.3, one sample at a time."""
    rows = []
    for row in D.numpy():
        S = 1.0 if rule == "static" else max(1.0, float(np.quantile(np.abs(row), 0.995)))
        rows.append(np.minimum(np.maximum(row, -S), S) / S)
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize("rule", ["static", "dynamic"])
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_thresholding_is_the_published_formula_on_each_samples_data(rule: Rule, predicts: Prediction) -> None:
    D, x_T = images(), torch.ones(4, 2, 16, 16, dtype=torch.float64)
    data = solvers.Denoiser(lambda x, t: D, VP, "data")
    network = solvers.Denoiser(lambda x, t: data(x, float(t[0]), predicts), VP, predicts)
    x = solvers.sample(thresholded(rule), network, x_T)
    torch.testing.assert_close(x, clipped(D, rule), rtol=1e-10, atol=1e-10)
    assert x.abs().max() <= 1 + 1e-10


def test_dynamic_thresholding_rescales_what_static_cuts_and_leaves_the_rest() -> None:
    D = images()
    network = solvers.Denoiser(lambda x, t: D, VP, "data")
    static, dynamic = (
        solvers.sample(thresholded(rule), network, torch.zeros_like(D)) for rule in ("static", "dynamic")
    )
    assert torch.equal(static[0], D[0])
    assert torch.equal(dynamic[0], D[0])
    assert torch.equal(dynamic[3], static[3])  # a single outlier lies beyond the quantile
    assert static[2].abs().mean() > 2 * dynamic[2].abs().mean()


@pytest.mark.parametrize("rule", ["static", "dynamic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thresholding_keeps_the_dtype(rule: Rule, dtype: torch.dtype) -> None:
    D = images(dtype)
    x = solvers.sample(thresholded(rule), solvers.Denoiser(lambda x, t: D, VP, "data"), torch.zeros_like(D))
    assert (x.dtype, x.shape) == (dtype, D.shape)


@pytest.mark.parametrize("rule", ["static", "dynamic"])
def test_every_output_of_a_thresholding_plan_is_thresholded_before_it_is_used(rule: Rule) -> None:
    plain, more = (solvers.plan("dpmpp_2m", VP, 5, thresholding=name) for name in ("none", rule))
    used = {r for i in more.instructions if isinstance(i, Combine) for r in reads(i)}
    calls = {i.out for i in more.instructions if isinstance(i, Evaluate)}
    assert [i.register for i in more.instructions if isinstance(i, Threshold)] == sorted(calls)
    assert not used & calls
    assert (more.nfe, more.linear, plain.linear) == (5, False, True)
    assert f"{rule} threshold(r1)" in str(more)


@pytest.mark.parametrize("rule", ["static", "dynamic"])
def test_a_thresholding_plan_survives_json(rule: Rule) -> None:
    for plan in (thresholded(rule), solvers.plan("dpmpp_3m", VP, 6, thresholding=rule)):
        again = Plan.from_json(plan.to_json())
        assert again == plan
        assert not again.linear


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"predicts": "noise"}, r"instruction 1 \(Threshold\): 'static' must be static or dynamic, on data prediction"),
        ({"predicts": "velocity"}, "on data prediction"),
        (
            {"instructions": (Evaluate(1, 0, 0.5), Threshold(2, 1, "soft"), Combine(3, ((1.0, 2),)))},  # type: ignore
            r"instruction 1 \(Threshold\): 'soft' must be static or dynamic",
        ),
        (
            {"instructions": (Evaluate(1, 0, 0.5), Threshold(2, 5, "static"), Combine(3, ((1.0, 2),)))},
            r"instruction 1 \(Threshold\) reads register 5, which nothing has written",
        ),
        (
            {"instructions": (Evaluate(1, 0, 0.5), Threshold(1, 1, "static"), Combine(3, ((1.0, 1),)))},
            "writes register 1 a second time",
        ),
        ({"instructions": (Evaluate(1, 0, 0.5), Threshold(2, 1, "static"))}, "ends with a Combine"),
    ],
)
def test_a_threshold_that_cannot_run_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        thresholded("static", **fields)


def test_a_threshold_in_json_is_validated_too() -> None:
    with pytest.raises(PlanError, match="'soft' must be static or dynamic"):
        Plan.from_json(thresholded("static").to_json().replace('"static"', '"soft"'))
