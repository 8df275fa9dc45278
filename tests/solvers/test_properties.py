"""What holds for every plan, whatever the method, schedule, budget and data: hypothesis draws them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import solvers
from tests.solvers.common import NAMES, SCHEDULES, some_plan

PLANS = st.builds(
    lambda name, schedule, nfe: some_plan(name, SCHEDULES[schedule], nfe),
    st.sampled_from(NAMES),
    st.sampled_from(list(SCHEDULES)),
    st.integers(1, 12),
)


def sampled(plan: solvers.Plan, x_T: Tensor, z: Tensor) -> Tensor:
    """On a linear model, eps = 0.3 x, which a plan can only combine linearly."""
    return solvers.sample(plan, solvers.Denoiser(lambda x, t: 0.3 * x, plan.schedule), x_T, lambda k: z[k])


def inputs(plan: solvers.Plan, seed: int) -> tuple[Tensor, Tensor]:
    """A start (5, 4) and the draws (draws, 5, 4)."""
    g = torch.Generator().manual_seed(seed)
    x_T, *z = torch.randn(1 + plan.draws, 5, 4, generator=g, dtype=torch.float64)
    return x_T, torch.stack(z) if z else torch.empty(0, 5, 4, dtype=torch.float64)


@settings(max_examples=150)
@given(plan=PLANS, seed=st.integers(0, 99), factor=st.floats(0.01, 100))
def test_scaling_the_start_and_the_noise_scales_the_sample(plan: solvers.Plan, seed: int, factor: float) -> None:
    x_T, z = inputs(plan, seed)
    torch.testing.assert_close(
        sampled(plan, factor * x_T, factor * z), factor * sampled(plan, x_T, z), rtol=1e-9, atol=1e-9 * factor
    )


@settings(max_examples=150)
@given(plan=PLANS, seed=st.integers(0, 99), samples=st.permutations(range(5)), components=st.permutations(range(4)))
def test_samples_and_components_are_treated_alike(
    plan: solvers.Plan, seed: int, samples: list[int], components: list[int]
) -> None:
    x_T, z = inputs(plan, seed)
    moved = sampled(plan, x_T[samples][:, components], z[:, samples][:, :, components])
    assert torch.equal(moved, sampled(plan, x_T, z)[samples][:, components])


@settings(max_examples=150)
@given(plan=PLANS, seed=st.integers(0, 99), start=st.integers(0, 4), other=PLANS)
def test_neither_its_batch_nor_another_run_changes_a_sample(
    plan: solvers.Plan, seed: int, start: int, other: solvers.Plan
) -> None:
    x_T, z = inputs(plan, seed)
    whole = sampled(plan, x_T, z)
    sampled(other, *inputs(other, seed))
    assert torch.equal(sampled(plan, x_T[start:], z[:, start:]), whole[start:])
    assert torch.equal(sampled(solvers.Plan.from_json(plan.to_json()), x_T, z), whole)
