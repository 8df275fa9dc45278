"""Differentiating through a program: its values, its derivatives against differences, its cost, its memory."""

import numpy as np
import pytest
import torch
from torch import Tensor

import solvers
from bench.checkpoints import Guide, Task, load
from solvers.gradient import run
from solvers.model import levels
from solvers.plan import Combine, Evaluate, Instruction
from tests.solvers.common import SCHEDULES

GMM = load("gmm")
X_T = GMM.latents(3, 0, 4, 1.0)
COND = {"y": GMM.labels(3, 0, 4)}


def denoiser(scale: float = 1.0) -> solvers.Denoiser:
    return GMM.denoiser(Task(Guide(scale)), torch.device("cpu"), torch.float64)


def parametrised(plan: solvers.Plan, theta: Tensor) -> list[Instruction]:
    """The plan with theta[k] added to the k-th coefficient, then to the k-th time."""
    found: list[Instruction] = []
    k = 0
    for i in plan.instructions:
        if isinstance(i, Combine):
            found.append(Combine(i.out, tuple((c + theta[k + j], r) for j, (c, r) in enumerate(i.terms))))
            k += len(i.terms)
        elif isinstance(i, Evaluate):
            found.append(Evaluate(i.out, i.state, i.t + theta[k]))
            k += 1
    assert k == len(theta)
    return found


def loss(plan: solvers.Plan, theta: Tensor, scale: float = 1.0, checkpointed: bool = True) -> Tensor:
    made = run(parametrised(plan, theta), denoiser(scale), plan.predicts, X_T, COND, checkpointed)
    return made[plan.instructions[-1].out].square().mean()


def size(plan: solvers.Plan) -> int:
    return sum(len(i.terms) if isinstance(i, Combine) else 1 for i in plan.instructions)


@pytest.mark.parametrize("name", ["ddim", "unipc", "heun", "deis_tab3"])
def test_it_gives_what_the_executor_gives(name: str) -> None:
    plan = solvers.plan(name, GMM.schedule, 5)
    made = run(plan.instructions, denoiser(), plan.predicts, X_T, COND)
    exact = solvers.sample(plan, denoiser(), X_T, cond=COND)
    torch.testing.assert_close(made[plan.instructions[-1].out], exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("predicts", ["data", "noise"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_every_derivative_is_that_of_differences(predicts: str, scale: float) -> None:
    plan = solvers.plan("unipc", GMM.schedule, 4, grid="quadratic", predicts=predicts)
    theta = torch.zeros(size(plan), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(plan, theta, scale), theta)
    step = 1e-6
    for k in range(len(theta)):
        e = torch.zeros_like(theta.detach())
        e[k] = step
        difference = float(loss(plan, e, scale) - loss(plan, -e, scale)) / (2 * step)
        assert float(gradient[k]) == pytest.approx(difference, rel=2e-4, abs=2e-7), plan.instructions


def test_checkpointing_changes_no_digit_and_costs_the_calls_again() -> None:
    plan = solvers.plan("dpmpp_2m", GMM.schedule, 5)
    gradients, passed = [], []
    for checkpointed in (True, False):
        theta = torch.zeros(size(plan), dtype=torch.float64, requires_grad=True)
        network = denoiser()
        made = run(parametrised(plan, theta), network, plan.predicts, X_T, COND, checkpointed)
        gradients.append(torch.autograd.grad(made[plan.instructions[-1].out].sum(), theta)[0])
        passed.append((network.passed, network.backwards))
    assert torch.equal(*gradients)
    assert passed == [(2 * 5 * 4, 5 * 4), (5 * 4, 5 * 4)]


def test_nothing_is_counted_backwards_where_nothing_is_differentiated() -> None:
    plan, network = solvers.plan("ddim", GMM.schedule, 3), denoiser()
    with torch.no_grad():
        run(plan.instructions, network, plan.predicts, X_T, COND)
    assert (network.passed, network.backwards) == (12, 0)


def kept_bytes(calls: int, checkpointed: bool) -> int:
    """What autograd holds of a run through a network whose activations are 100 times its state."""
    schedule = solvers.VPLinear()
    wide = torch.nn.Sequential(torch.nn.Linear(8, 800), torch.nn.Tanh(), torch.nn.Linear(800, 8)).double()
    network = solvers.Denoiser(lambda x, t: wide(x), schedule)
    plan = solvers.plan("ddim", schedule, calls)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    program = [
        Combine(i.out, tuple((c * scale, r) for c, r in i.terms)) if isinstance(i, Combine) else i
        for i in plan.instructions
    ]
    held: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run(program, network, plan.predicts, torch.ones(64, 8, dtype=torch.float64), None, checkpointed)
    return sum(held.values())


def test_what_is_kept_grows_with_the_states_not_the_activations() -> None:
    plain = kept_bytes(12, False) - kept_bytes(6, False)
    saved = kept_bytes(12, True) - kept_bytes(6, True)
    activations = 6 * 64 * 800 * 8
    assert plain > activations
    assert saved < activations / 10


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_levels_are_the_schedules_with_their_slopes_in_both_modes(schedule: solvers.Schedule) -> None:
    t = torch.tensor([0.31, 0.47, 0.83], dtype=torch.float64)
    for k, exact in enumerate((schedule.alpha, schedule.sigma)):
        at = levels(schedule, t)[k]
        assert np.array_equal(at.numpy(), exact(t.numpy()))
        slopes = (exact(t.numpy() + 1e-6) - exact(t.numpy() - 1e-6)) / 2e-6
        backward = torch.func.grad(lambda t, k=k: levels(schedule, t)[k].sum())(t)
        _, forward = torch.func.jvp(lambda t, k=k: levels(schedule, t)[k], (t,), (torch.ones_like(t),))
        assert torch.equal(backward, forward)
        assert backward.numpy() == pytest.approx(slopes, rel=1e-6, abs=1e-9)
