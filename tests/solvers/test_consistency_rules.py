"""The rules that distilled models are sampled by: against diffusers run directly, and what they are to be exactly."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import solvers
from solvers.grid import explicit, make_grid
from solvers.lcm import boundary_condition
from solvers.tcd import jump
from solvers.testing import mixture, run, start

VP = solvers.VPDiscrete.scaled_linear()
EDM = solvers.EDM()
SD: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def labels(plan: solvers.Plan) -> list[int]:
    return [round(1000 * t - 1) for t in plan.times]


def plan(name: str, nfe: int, schedule: solvers.Schedule = VP, **options: solvers.Option) -> solvers.Plan:
    made = solvers.plan(name, schedule, nfe, **options)
    assert isinstance(made, solvers.Plan)
    return made


@pytest.mark.parametrize(("name", "end"), [("lcm", -1), ("tcd", 0)])
def test_the_grid_has_the_labels_of_diffusers_at_every_budget(name: str, end: int) -> None:
    scheduler = {"lcm": diffusers.LCMScheduler, "tcd": diffusers.TCDScheduler}[name](**SD)
    for nfe in range(1, 51):
        scheduler.set_timesteps(nfe)
        assert labels(plan(name, nfe)) == [*scheduler.timesteps.tolist(), end]


@pytest.mark.parametrize("grid", ["lcm", "tcd"])
def test_the_grid_has_room_for_fifty_steps_on_labels_alone(grid: str) -> None:
    with pytest.raises(ValueError, match="has 50 labels, fewer than 51 steps"):
        make_grid(grid, VP, 51)
    with pytest.raises(ValueError, match="discrete grids need a VPDiscrete schedule, not EDM"):
        make_grid(grid, EDM, 4)
    with pytest.raises(ValueError, match="has 50 labels"):
        make_grid(grid, solvers.VPDiscrete.linear(N=20), 4)
    with pytest.raises(solvers.BudgetError, match="cannot spend 60 calls: it can spend 49, 50"):
        plan(grid, 60)


def theirs(scheduler: Any, nfe: int, x: Tensor, **told: Any) -> Tensor:
    """What a scheduler of diffusers makes of x, its draws being those of a generator seeded with 1."""
    scheduler.set_timesteps(nfe)
    g, denoiser = torch.Generator().manual_seed(1), mixture(VP)
    for t in scheduler.timesteps:
        eps = denoiser(x, (int(t) + 1) / 1000, "noise")
        x = scheduler.step(eps, t, x, generator=g, **told).prev_sample
    return x


def ours(made: solvers.Plan, x: Tensor) -> Tensor:
    g = torch.Generator().manual_seed(1)
    z = [torch.randn(x.shape, generator=g, dtype=x.dtype) for _ in range(made.draws)]
    return solvers.sample(made, mixture(VP), x, lambda k: z[k])


@pytest.mark.parametrize("nfe", [1, 2, 4, 7, 50])
def test_lcm_is_the_scheduler_of_diffusers(nfe: int) -> None:
    x = start(VP, 3)
    expected = theirs(diffusers.LCMScheduler(**SD), nfe, x)
    torch.testing.assert_close(
        ours(plan("lcm", nfe, boundary=True), x), expected, rtol=0, atol=5e-5
    )  # its levels are float32


@pytest.mark.parametrize("nfe", [1, 2, 4, 7, 50])
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.75, 1.0])
def test_tcd_is_the_scheduler_of_diffusers(nfe: int, eta: float) -> None:
    x = start(VP, 3)
    expected = theirs(diffusers.TCDScheduler(**SD), nfe, x, eta=eta)
    torch.testing.assert_close(ours(plan("tcd", nfe, eta=eta), x), expected, rtol=0, atol=5e-5)


def test_tcd_without_noise_is_ddim_on_the_same_grid() -> None:
    x, made = start(VP, 3), plan("tcd", 6, eta=0.0)
    assert (made.draws, made.order) == (0, 1)
    assert plan("tcd", 6).order == 0
    ddim = solvers.plan("ddim", VP, 6, grid="tcd")
    torch.testing.assert_close(ours(made, x), ours(ddim, x), rtol=1e-12, atol=1e-12)


def test_one_tcd_step_is_ddim_to_the_end_whatever_eta() -> None:
    x, denoiser = start(EDM, 3), mixture(EDM)
    D = denoiser(x, 80.0, "data")
    for eta in (0.0, 0.3, 1.0):
        one = run(solvers.plan("tcd", EDM, 1, grid="karras", eta=eta), denoiser, x)
        torch.testing.assert_close(one, D + 0.002 / 80 * (x - D))


def test_consistency_adds_what_brings_the_noise_of_the_end_up_to_the_next_time() -> None:
    """Algorithm 1 of arXiv 2303.01469, by hand."""
    made = plan("consistency", 2, EDM)
    x, z, denoiser = start(EDM, 3), torch.ones(3, 12, dtype=torch.float64), mixture(EDM)
    t = made.times[1]
    middle = denoiser(x, 80.0, "data") + (t**2 - 0.002**2) ** 0.5 * z
    sample = solvers.sample(made, denoiser, x, lambda k: z)
    torch.testing.assert_close(sample, denoiser(middle, t, "data"), rtol=1e-13, atol=1e-13)
    assert (made.draws, made.times[0], made.times[-1]) == (1, 80.0, 0.002)


@pytest.mark.parametrize(("name", "options"), [("lcm", {}), ("consistency", {}), ("tcd", {"eta": 1.0})])
@pytest.mark.parametrize("schedule", [VP, EDM, solvers.RectifiedFlow(), solvers.VPLinear()], ids=str)
def test_a_model_that_knows_the_point_is_sampled_with_the_marginal_of_the_last_time(
    name: str, options: dict[str, solvers.Option], schedule: solvers.Schedule
) -> None:
    """With data prediction c the last state is alpha c + noise of the last time's level, less by u_end but for LCM."""
    times = [t * schedule.t_max for t in (0.9, 0.5, 0.2)]
    made = solvers.plan(name, schedule, times=times, **options)
    c, N = 0.7, 20_000
    x = solvers.sample(
        made, solvers.Denoiser(lambda x, t: torch.full_like(x, c), schedule, "data"), torch.zeros(N, 1),
        lambda k: torch.randn(N, 1, generator=torch.Generator().manual_seed(k)),
    )  # fmt: skip
    alpha, sigma = float(schedule.alpha(times[-1])), float(schedule.sigma(times[-1]))
    assert float(x.mean()) == pytest.approx(alpha * c, abs=4 * sigma / N**0.5)
    u_end = float(schedule.sigma(schedule.t_end) / schedule.alpha(schedule.t_end))
    expected = (sigma**2 - (alpha * u_end) ** 2) ** 0.5 if name != "lcm" else sigma
    assert float(x.std()) == pytest.approx(expected, rel=0.03)


def test_the_boundary_condition_is_the_identity_at_the_end() -> None:
    assert boundary_condition(VP, 1 / 1000) == (1.0, 0.0)
    m = 10 * 19  # label 19 is the time 0.02
    expected = (0.25 / (m**2 + 0.25), m / (m**2 + 0.25) ** 0.5)
    assert boundary_condition(VP, 0.02) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(
        ValueError, match=r"boundary=True holds from t = 0\.002 up, and the network is called at t = 0\.001"
    ):
        solvers.plan("lcm", EDM, times=[80.0, 0.001, 0.0], boundary=True)


def test_a_jump_lies_at_a_whole_label_between_the_next_time_and_the_end() -> None:
    grid = explicit(VP, plan("tcd", 4).times)
    for eta in (0.0, 0.1, 0.3, 0.9, 1.0):
        for t in grid.times[1:]:
            n, s = round(1000 * t - 1), 1000 * jump(VP, t, eta) - 1
            assert s == pytest.approx(int((1 - eta) * n + 1e-9), abs=1e-9)
    assert jump(EDM, 1.0, 0.25) == 0.002 + 0.75 * 0.998
    assert [jump(VP, t, 1.0) for t in (0.0, 0.001, 0.5)] == [0.0, 0.001, 0.001]


def test_eta_beyond_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tcd: eta=1.5 must lie in \[0, 1\]"):
        plan("tcd", 4, eta=1.5)
