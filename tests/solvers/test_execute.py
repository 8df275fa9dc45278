"""Execution: the input is left alone, rows are independent, runs repeat to the bit, registers are let go."""

import weakref

import pytest
import torch
from torch import Tensor

import solvers
from solvers.plan import Instruction
from solvers.schedule import Schedule
from tests.solvers.common import SCHEDULES, denoiser, draws, some_plan, start

VP = solvers.VPLinear()
SOLVERS = pytest.mark.parametrize("name", solvers.names())
EVERY = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
PLANS = pytest.mark.parametrize(
    "plan",
    [
        *(some_plan(name, s) for name in solvers.names() for s in (VP, solvers.EDM())),
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


@PLANS
def test_few_registers_are_alive_at_a_time(plan: solvers.Plan) -> None:
    written: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def count(instruction: Instruction, out: Tensor) -> None:
        written.append(weakref.ref(out))
        alive.append(sum(ref() is not None for ref in written))

    z = draws(plan, 2)
    solvers.sample(plan, denoiser(plan.schedule), start(plan.schedule, 2), noise=lambda k: z[k], callback=count)
    assert 1 < max(alive) <= plan.order + 3


def test_no_gradients_are_kept() -> None:
    weight = torch.ones(1, requires_grad=True)
    x = solvers.sample(solvers.plan("ddim", VP, 3), solvers.Denoiser(lambda x, t: weight * x, VP), torch.ones(1, 1))
    assert not x.requires_grad


@SOLVERS
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
