"""EDM's and k-diffusion's methods: their identities, coefficients, noise and limits."""

from math import hypot, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import solvers
from solvers import testing
from solvers.grid import make_grid
from solvers.karras import ancestral
from solvers.plan import Combine
from solvers.schedule import Schedule
from tests.solvers.common import SCHEDULES, denoiser, draws, first_time, start

EDM, VP, FLOW = solvers.EDM(), solvers.VPLinear(), solvers.RectifiedFlow()
EVERY = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
ETA = ["euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"]
CHURN = ["euler", "heun", "dpm_2"]
LEVELS = st.floats(1e-3, 1e3)


def run(name: str, schedule: Schedule, **options: solvers.Option) -> Tensor:
    """Six steps onto the data and one draw a step more than any method takes."""
    grid = make_grid("edm", schedule, 6, first_time(schedule))
    plan = solvers.plan(name, schedule, times=grid.times, **options)
    z = torch.randn(12, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return solvers.sample(plan, denoiser(schedule), start(schedule, 3), noise=lambda k: z[k])


@EVERY
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("euler", {}), ("ddim", {})),
        (("euler_ancestral", {"eta": 1.0}), ("ddim", {"eta": 1.0})),
        (("euler_ancestral", {"eta": 0.4}), ("ddim", {"eta": 0.4})),
        (("lms", {"order": 1}), ("euler", {})),
        (("dpm_2", {"r": 1.0}), ("heun", {})),
        (("dpm_2_ancestral", {"eta": 0.0}), ("dpm_2", {})),
        (("dpmpp_sde", {"eta": 0.0}), ("dpmpp_2s_ancestral", {"eta": 0.0})),
        (("dpmpp_2m_sde", {"eta": 0.0}), ("dpmpp_2m", {"lower_order_final": "never"})),
        (("heun", {"s_churn": 9.0, "s_tmin": 1e4}), ("heun", {})),
    ],
    ids=lambda run: "-".join([run[0], *map(str, run[1].values())]),
)
def test_two_names_of_one_method_agree(
    schedule: Schedule, one: tuple[str, dict[str, solvers.Option]], other: tuple[str, dict[str, solvers.Option]]
) -> None:
    first, second = (run(name, schedule, **options) for name, options in (one, other))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-10)


@given(u=LEVELS, ratio=st.floats(1e-6, 1 - 1e-9), eta=st.floats(0, 1))
def test_an_ancestral_step_ends_at_the_noise_asked_for(u: float, ratio: float, eta: float) -> None:
    down, up = ancestral(u, ratio * u, eta)
    assert hypot(down, up) == pytest.approx(ratio * u, rel=1e-12)
    assert up == pytest.approx(eta * ratio * u * sqrt((1 - ratio) * (1 + ratio)), rel=1e-12)
    assert ancestral(u, ratio * u, 1.0)[0] == pytest.approx(ratio**2 * u, rel=1e-9)


def states(plan: solvers.Plan) -> list[Combine]:
    return [i for i in plan.instructions if isinstance(i, Combine)]


@pytest.mark.parametrize(
    ("order", "weights"), [(2, (3 / 2, -1 / 2)), (3, (23, -16, 5)), (4, (55, -59, 37, -9))], ids=lambda v: str(v)
)
def test_lms_on_equal_steps_is_adams_bashforth(order: int, weights: tuple[float, ...]) -> None:
    last = states(solvers.plan("lms", EDM, times=[6, 5, 4, 3, 2, 1], order=order))[-1]
    scale = {2: 1, 3: 12, 4: 24}[order]
    assert [c for c, _ in last.terms[:0:-1]] == pytest.approx([-w / scale for w in weights], rel=1e-12)


@pytest.mark.parametrize(
    ("midpoint", "at"), [("geometric", 4.0), ("arithmetic", 5.0), ("cube_root", ((2 + 2 ** (1 / 3)) / 2) ** 3)]
)
def test_dpm_2_calls_at_its_midpoint(midpoint: str, at: float) -> None:
    calls = [i.t for i in solvers.plan("dpm_2", EDM, times=[8, 2], midpoint=midpoint).instructions if hasattr(i, "t")]
    assert calls == pytest.approx([8, at], rel=1e-12)


@pytest.mark.parametrize(("midpoint", "calls"), [("geometric", 3), ("arithmetic", 3), ("cube_root", 4)])
def test_dpm_2_steps_onto_the_data_at_one_call_or_two(midpoint: str, calls: int) -> None:
    assert solvers.plan("dpm_2", EDM, times=[8, 2, 0], midpoint=midpoint).nfe == calls


@pytest.mark.parametrize("name", ["dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "heun"])
def test_the_analytical_first_step_spares_one_call(name: str) -> None:
    assert [solvers.plan(name, EDM, times=[80, 5, 1], afs=afs).nfe for afs in (False, True)] == [4, 3]


@EVERY
@pytest.mark.parametrize("name", CHURN)
def test_churn_adds_the_noise_that_its_level_has(name: str, schedule: Schedule) -> None:
    grid = make_grid("edm", schedule, 6, first_time(schedule))
    low, high = grid.u[3] * 0.9, grid.u[2] * 1.1
    plan = solvers.plan(name, schedule, times=grid.times, s_churn=1.2, s_tmin=low, s_tmax=high)
    noisy = [i for i in states(plan) if i.noise]
    assert plan.draws == len(noisy) == 2
    for i, instruction in zip((2, 3), noisy, strict=True):
        ((kept, _),), ((added, _),) = instruction.terms, instruction.noise
        t_hat = float(schedule.t_of_lam(-np.log(1.2 * grid.u[i])))
        assert kept * grid.alpha[i] == pytest.approx(float(schedule.alpha(t_hat)), rel=1e-12)
        assert hypot(kept * grid.sigma[i], added) == pytest.approx(float(schedule.sigma(t_hat)), rel=1e-12)


def test_churn_never_more_than_doubles_the_variance_and_scales_its_noise() -> None:
    plan = solvers.plan("heun", EDM, times=[8, 4], s_churn=100.0, s_noise=0.5)
    assert states(plan)[0].noise[0][0] == pytest.approx(0.5 * 8, rel=1e-12)
    assert plan.instructions[1].t == pytest.approx(8 * sqrt(2), rel=1e-12)
    assert solvers.plan("heun", EDM, times=[8, 4], s_churn=1.0, s_noise=0.0).draws == 0


@pytest.mark.parametrize("schedule", [EDM, VP], ids=["EDM", "VPLinear"])
def test_churn_beyond_the_schedule_says_which_s_tmax_would_do(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match=r"euler: with s_tmax=1000000000.0 churn leads .*: take an s_tmax below ") as e:
        solvers.plan("euler", schedule, 5, s_churn=40.0)
    s_tmax = float(str(e.value).rpartition(" ")[2]) * (1 - 1e-5)
    assert solvers.plan("euler", schedule, 5, s_churn=40.0, s_tmax=s_tmax).draws > 0


def test_the_draws_of_dpmpp_sde_are_increments_of_one_path() -> None:
    u, u_mid, u_next = 8.0, 4.0, 2.0
    brownian, iid = (states(solvers.plan("dpmpp_sde", EDM, times=[u, u_next], noise=n)) for n in ("brownian", "iid"))
    assert brownian[0] == iid[0]
    assert iid[0].noise == ((pytest.approx(ancestral(u, u_mid, 1.0)[1], rel=1e-12), 0),)
    total = ancestral(u, u_next, 1.0)[1]
    assert iid[1].noise == ((pytest.approx(total, rel=1e-12), 1),)
    shared = (u - u_mid) / (u - u_next)
    assert {k: c for c, k in brownian[1].noise} == pytest.approx(
        {0: total * sqrt(shared), 1: total * sqrt(1 - shared)}, rel=1e-12
    )


@pytest.mark.parametrize("name", ETA)
def test_eta_0_draws_nothing(name: str) -> None:
    assert solvers.plan(name, VP, times=[0.9, 0.5, 0.2, 0.0], eta=0.0).draws == 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *((name, {"eta": eta}, rf"{name}: eta={eta} must lie in \[0, 1\]") for name in ETA for eta in (-0.1, 1.5)),
        *((name, {"s_churn": -1.0}, f"{name}: s_churn=-1.0 must be at least 0") for name in CHURN),
        ("heun", {"s_noise": float("nan")}, "heun: s_noise=nan must be at least 0"),
        ("heun", {"s_tmin": 2.0, "s_tmax": 1.0}, "heun: s_tmax=1.0 must be at least s_tmin, which is 2.0"),
        ("dpm_2", {"r": 0.0}, r"dpm_2: r=0.0 must lie in \(0, 1\]"),
        ("dpm_2", {"midpoint": "mean"}, "dpm_2: midpoint='mean' is none of geometric, arithmetic, cube_root"),
        ("lms", {"order": 5}, "lms: order=5 must be 1, 2, 3 or 4"),
        ("dpmpp_sde", {"r": 1.0}, r"dpmpp_sde: r=1.0 must lie in \(0, 1\)"),
        ("dpmpp_sde", {"noise": "white"}, "dpmpp_sde: noise='white' is none of brownian, iid"),
        ("dpmpp_2m_sde", {"solver_type": "euler"}, "dpmpp_2m_sde: solver_type='euler' is none of midpoint, heun"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused(
    name: str, options: dict[str, solvers.Option], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        solvers.plan(name, VP, times=[0.9, 0.5, 0.2], **options)


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_rectified_flow_starts_from_pure_noise(name: str, eta: float) -> None:
    options = {"eta": eta} if name in ETA else {}
    plan = solvers.plan(name, FLOW, 5, **options)
    network = solvers.Denoiser(lambda x, t: torch.full_like(x, 0.7), FLOW, "data")
    z = draws(plan, 3)
    x = solvers.sample(plan, network, start(FLOW, 3), noise=lambda k: z[k])
    assert plan.times[0] == 1
    torch.testing.assert_close(x, torch.full_like(x, 0.7), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["heun", "dpm_2", "lms", "dpm_2_ancestral", "dpmpp_sde"])
def test_a_step_in_u_from_pure_noise_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="from pure noise is infinite: start later"):
        solvers.plan(name, FLOW, times=[1.0, 0.5, 0.1])


def variance_error(plan: solvers.Plan, std: float = 0.3) -> float:
    """How far the samples' variance is from the exact one on one Gaussian, where every plan is a linear map."""
    schedule, eye = plan.schedule, torch.eye(1 + plan.draws, dtype=torch.float64)

    def variance(t: float) -> float:
        return float(schedule.alpha(t)) ** 2 * std**2 + float(schedule.sigma(t)) ** 2

    network = solvers.Denoiser(lambda x, t: float(schedule.sigma(float(t[0]))) / variance(float(t[0])) * x, schedule)
    x_T = variance(plan.times[0]) ** 0.5 * eye[:, :1]
    x = solvers.sample(plan, network, x_T, noise=lambda k: eye[:, k + 1 : k + 2])
    return abs(float((x**2).sum()) / variance(plan.times[-1]) - 1)


NOISY: list[tuple[str, dict[str, solvers.Option]]] = [
    *((name, {}) for name in ETA),
    ("dpmpp_sde", {"noise": "iid"}),
    ("dpmpp_2m_sde", {"solver_type": "heun", "eta": 0.5}),
    ("euler", {"s_churn": 5.0, "s_tmax": 50.0}),
    ("heun", {"s_churn": 5.0, "s_tmax": 50.0}),
    ("dpm_2", {"s_churn": 5.0, "s_tmax": 50.0}),
]


@pytest.mark.parametrize(("name", "options"), NOISY, ids=str)
@pytest.mark.parametrize(("schedule", "grid", "t_end"), testing.RANGES)
def test_the_variance_of_noisy_samples_is_right_to_the_declared_order(
    name: str, options: dict[str, solvers.Option], schedule: Schedule, grid: str, t_end: float
) -> None:
    steps = (80, 160, 320)
    plans = [
        solvers.plan(name, schedule, times=make_grid(grid, schedule, n, t_end=t_end).times, **options) for n in steps
    ]
    errors = [variance_error(plan) for plan in plans]
    assert all(plan.draws for plan in plans)
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(plans[0].order, abs=0.2)
    assert errors[-1] < 0.06


PLAIN: list[tuple[str, dict[str, solvers.Option]]] = [
    *(("lms", {"order": order}) for order in (2, 3)),
    *(("dpm_2", {"midpoint": midpoint}) for midpoint in ("arithmetic", "cube_root")),
    ("dpm_2", {"r": 0.3}),
    ("dpmpp_sde", {"eta": 0.0, "r": 0.3}),
    ("dpmpp_2m_sde", {"eta": 0.0, "solver_type": "heun"}),
    *(("dpmpp_3m_sde", {"eta": 0.0, "exact": exact}) for exact in (False, True)),
]


@pytest.mark.parametrize(("name", "options"), PLAIN, ids=str)
def test_without_noise_each_variant_has_its_order(name: str, options: dict[str, solvers.Option]) -> None:
    testing.check_order(name, options)


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde", "euler_ancestral"])
def test_the_variants_spend_budgets_and_make_sound_plans(name: str) -> None:
    testing.check_point(name, {"eta": 0.0}, EDM)
    testing.check_budgets(name, {"eta": 0.0}, VP)
    testing.check_plan(testing.build(name, VP, {"eta": 0.0}, 9), buffers=4)
