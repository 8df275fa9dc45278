"""Plans run side by side: each sample gets what its own plan alone would make of it, whatever its neighbours do."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import solvers
from solvers.coefficient import Pixelwise
from solvers.plan import Combine, PlanError
from solvers.schedule import Array, Schedule
from solvers.stacked import Stacked
from tests.solvers.common import denoiser

SOLVERS = {
    "ddim": 1, "euler": 1, "heun": 2, "dpm_2": 2, "dpm_solver_2": 2, "dpm_solver_3": 3, "dpmpp_2s": 2, "dpmpp_2m": 3,
    "dpmpp_3m": 4, "unipc": 3, "deis_tab2": 3, "lms": 3, "ipndm": 4, "pndm_s": 4, "dpm_solver_fast": 5,
}  # fmt: skip
EDM = solvers.EDM()
SCHEDULES = EDM, solvers.VPLinear(), solvers.VPDiscrete.linear()
times = st.lists(st.floats(0.01, 0.99), min_size=3, max_size=6, unique_by=lambda t: round(t, 2))


def plans(name: str, schedule: Schedule, fractions: list[float], calls: int) -> list[solvers.Plan]:
    """A plan for each interval between neighbouring times, at these fractions of the schedule's."""
    falling = schedule.t_max * np.sort(fractions)[::-1]
    built = [solvers.method(name).build(schedule, calls, "uniform", t_start=a, t_end=b) for a, b in pairwise(falling)]
    assert all(isinstance(plan, solvers.Plan) for plan in built)
    return built  # type: ignore[return-value]


def states(schedule: Schedule, starts: list[float], seed: int = 0) -> Tensor:
    """Samples as noisy as their starts, (B, 4), float64."""
    z = torch.randn(len(starts), 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z * torch.tensor([float(np.hypot(schedule.alpha(t), schedule.sigma(t))) for t in starts])[:, None]


@pytest.mark.parametrize("name", SOLVERS)
@given(schedule=st.sampled_from(SCHEDULES), fractions=times, seed=st.integers(0, 99))
@settings(max_examples=8)
def test_every_sample_gets_what_its_plan_alone_gives(
    name: str, schedule: Schedule, fractions: list[float], seed: int
) -> None:
    built = plans(name, schedule, fractions, SOLVERS[name])
    which = np.random.default_rng(seed).integers(0, len(built), 2 * len(built))
    x, network = states(schedule, [built[k].times[0] for k in which], seed), denoiser(schedule)
    stacked = Stacked(built)
    found = stacked.run(which, lambda x, t: network.at_each(x, t, stacked.predicts), x)
    apart = [solvers.sample(built[k], denoiser(schedule), x[i : i + 1]) for i, k in enumerate(which)]
    torch.testing.assert_close(found, torch.cat(apart), rtol=1e-9, atol=1e-11 * float(x.abs().max()))
    assert network.calls == stacked.calls == SOLVERS[name]


def test_the_network_is_asked_at_the_times_of_the_samples_own_plans() -> None:
    built, asked = plans("heun", EDM, [0.2, 0.5, 0.9], 2), []

    def watching(x: Tensor, t: Array) -> Tensor:
        asked.append(t.tolist())
        return x

    Stacked(built).run(np.array([1, 0, 1]), watching, torch.ones(3, 1, dtype=torch.float64))
    assert asked == [[40.0, 72.0, 40.0], [16.0, 40.0, 16.0]]


@pytest.mark.parametrize("rule", ["static", "dynamic"])
def test_thresholding_is_of_each_sample(rule: str) -> None:
    ends = [(60.0, 20.0), (20.0, 3.0)]
    built = [solvers.plan("ddim", EDM, 1, grid="uniform", t_start=a, t_end=b, thresholding=rule) for a, b in ends]
    x, which = states(EDM, [20.0, 60.0, 20.0]), np.array([1, 0, 1])
    network = solvers.Denoiser(lambda x, t: x / 4, EDM, "data")
    found = Stacked(built).run(which, lambda x, t: network.at_each(x, t, "data"), x)
    apart = [solvers.sample(built[k], network, x[i : i + 1]) for i, k in enumerate(which)]
    torch.testing.assert_close(found, torch.cat(apart), rtol=1e-9, atol=1e-12)
    free = solvers.sample(solvers.plan("ddim", EDM, 1, grid="uniform", t_start=60.0, t_end=20.0), network, x[1:2])
    assert not torch.isclose(found[1:2], free).any()


def made_by(name: str, schedule: Schedule = EDM, nfe: int = 2, **options: str) -> solvers.Plan:
    plan = solvers.plan(name, schedule, nfe, grid="karras", **options)
    assert isinstance(plan, solvers.Plan)
    return plan


def pixelwise(plan: solvers.Plan) -> solvers.Plan:
    """The plan whose last coefficients are arrays of the sample's shape."""
    *first, last = plan.instructions
    assert isinstance(last, Combine)
    terms = tuple((Pixelwise(np.full(4, c)), r) for c, r in last.terms)
    return replace(plan, instructions=(*first, replace(last, terms=terms)))


@pytest.mark.parametrize(
    ("built", "message"),
    [
        ([], "no plan to stack"),
        ([made_by("euler_ancestral")], "euler_ancestral cannot be stacked: it draws noise"),
        ([made_by("ddim"), made_by("ddim", solvers.EDM(sigma_max=20.0))], "for another network"),
        ([made_by("ddim"), made_by("dpm_solver_1")], "dpm_solver_1 cannot be stacked: .* another network"),
        ([made_by("ddim"), made_by("ddim", nfe=3)], "ddim: plans that call the network differently"),
        ([made_by("ddim", thresholding="static"), made_by("ddim", thresholding="dynamic")], "differently"),
        ([pixelwise(made_by("ddim"))], "coefficients of the image's shape"),
    ],
    ids=["none", "noise", "another schedule", "another solver", "other calls", "another rule", "pixelwise"],
)
def test_what_cannot_be_stacked_is_refused(built: list[solvers.Plan], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Stacked(built)
