"""DPM-Solver-v3: exact where its statistics are, of the orders it declares, on any times within them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import solvers
from solvers import testing
from solvers.dpm_solver_v3 import dpm_solver_v3
from solvers.grid import explicit, make_grid
from solvers.learned import Learned, LearnedError
from solvers.model import column
from solvers.plan import Instruction
from solvers.schedule import Array, Schedule
from tests.golden import v3

VP, EDM = solvers.VPLinear(), solvers.EDM()
K = np.arange(12) / 4  # twelve different pixels


def nodes_of(schedule: Schedule, count: int) -> Array:
    first, last = schedule.lam([schedule.t_max, schedule.t_end])
    return np.linspace(first, last, count + 1)


def smooth(schedule: Schedule, count: int, b: float = 0.2) -> Learned:
    """Statistics that no model has, and that leave every order as it is."""
    lam = nodes_of(schedule, count)
    z = lam[:, None] / 3 + K
    return v3.learned(
        schedule, {"lam": lam, "l": 0.6 + 0.3 * np.sin(z), "s": -0.3 + 0.2 * np.cos(z), "b": b * np.sin(z + 1)}
    )


def folder(path: Path, *found: Learned) -> str:
    for one in found:
        for name, data in one.to_files().items():
            (path / name).write_bytes(data)
    return str(path)


# Order: of the predictor, then of the corrector, which repairs or spoils it.
ORDERS: list[tuple[Schedule, dict[str, solvers.Option], int]] = [
    (VP, {"order": 1, "corrector": False}, 1),
    (VP, {"order": 2, "corrector": False}, 2),
    (VP, {"order": 3, "corrector": False}, 3),
    (VP, {"p_pseudo": True, "corrector": False}, 2),
    (VP, {"p_pseudo": True}, 3),
    (VP, {}, 3),
    (VP, {"c_pseudo": True}, 2),
    (VP, {"order": 1, "c_pseudo": True}, 2),
    (VP, {"order": 1, "c_pseudo": True, "half": True}, 1),
    (EDM, {"order": 3, "corrector": False}, 3),
    (EDM, {"order": 1, "c_pseudo": True}, 2),
]


@pytest.fixture(scope="module")
def finely(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Schedule], str]:
    """A folder of statistics at so many nodes that the trapezoid sums do not hide the order."""

    @cache
    def of(schedule: Schedule) -> str:
        return folder(tmp_path_factory.mktemp("fine"), smooth(schedule, 20000))

    return of


@pytest.mark.parametrize(("schedule", "options", "order"), ORDERS, ids=lambda value: str(value))
def test_the_order_is_what_is_declared(
    schedule: Schedule, options: dict[str, solvers.Option], order: int, finely: Callable[[Schedule], str]
) -> None:
    grid, t_end = {"VPLinear": ("logsnr", 1e-2), "EDM": ("karras", 2e-3)}[type(schedule).__name__]
    told = options | {"tuned": finely(schedule)}
    assert dpm_solver_v3.build(schedule, 4, t_end=t_end, options=told).order == order
    found = testing.measured_order("dpm_solver_v3", told, schedule, grid, t_end)
    assert abs(found - order) <= testing.SLACK


# A Gaussian of mean m and variance v: with u = sigma/alpha the model is u eps = l (y - m), l = u^2/(u^2 + v), and
# y - m grows as sqrt(u^2 + v).  So f is known, and first order with the right statistics is exact.
M, V = testing.MEANS[0].numpy(), testing.VARIANCES[0].numpy()


def gaussian(lam: Array, kind: str) -> dict[str, Array]:
    u2 = np.exp(-2 * lam)[:, None]
    l, zero = u2 / (u2 + V), np.zeros((len(lam), 12))  # noqa: E741
    if kind == "l and b":  # f = -l m whatever x is, and f' = 2 v u^2 m/(u^2 + v)^2
        return {"lam": lam, "l": l, "s": zero, "b": 2 * V * u2 / (u2 + V) ** 2 * M}
    if kind == "s":  # l = 0 and m = 0: f = u eps, which follows f' = (l - 2) f
        return {"lam": lam, "l": zero, "s": l - 2, "b": zero}
    return {"lam": lam, "l": zero + 0.5, "s": l - 2, "b": zero}  # wrong ones


def missed(
    schedule: Schedule, kind: str, nodes: int, steps: int, grid: str = "logsnr", **options: solvers.Option
) -> float:
    """How far samples of the Gaussian end from where they should."""
    mean = torch.from_numpy(M if kind == "l and b" else 0 * M)

    def noise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (column(f(t.double().numpy()), x) for f in (schedule.alpha, schedule.sigma))
        return sigma * (x - alpha * mean) / (alpha**2 * torch.from_numpy(V) + sigma**2)

    at = make_grid(grid, schedule, steps)
    plan = dpm_solver_v3.on(at, options, v3.learned(schedule, gaussian(nodes_of(schedule, nodes), kind)))
    x_T = testing.start(schedule, 4)
    x = solvers.sample(plan, solvers.Denoiser(noise, schedule), x_T)
    first, last = (at.u[k] ** 2 + V for k in (0, -1))
    y = (x_T / at.alpha[0] - mean) * torch.from_numpy(np.sqrt(last / first)) + mean
    return float((x / at.alpha[-1] - y).abs().max())


@pytest.mark.parametrize("schedule", [VP, EDM], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", ["l and b", "s"])
def test_first_order_is_exact_with_the_statistics_of_a_gaussian(schedule: Schedule, kind: str) -> None:
    """But for the trapezoid sums, whose error falls with the square of the nodes' distance."""
    for steps in (1, 4, 8):
        coarse, fine = (missed(schedule, kind, nodes, steps, order=1) for nodes in (1000, 2000))
        assert fine < 1e-3
        assert 3.5 < coarse / fine < 4.5
    assert missed(schedule, "wrong", 2000, 3, order=1) > 0.01


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("corrector", [False, True])
def test_higher_orders_keep_what_is_exact(order: int, corrector: bool) -> None:
    """On times between the nodes."""
    assert missed(VP, "l and b", 4000, 6, "karras", order=order, corrector=corrector, c_pseudo=True) < 1e-5


def test_degenerate_is_unipc_s_predictor_in_data_prediction() -> None:
    grid = make_grid("logsnr", VP, 8)
    denoiser, x_T = testing.mixture(VP), testing.start(VP, 4)
    data = solvers.plan("unipc", VP, times=grid.times, variant="vary", corrector=False)
    expected = solvers.sample(data, denoiser, x_T)
    off = []
    for nodes in (1000, 2000):
        plan = dpm_solver_v3.on(grid, {"degenerate": True, "corrector": False}, smooth(VP, nodes))
        off.append(float((solvers.sample(plan, denoiser, x_T) - expected).abs().max()))
    assert off[1] < 1e-4
    assert 3.5 < off[0] / off[1] < 4.5


def test_times_between_nodes_are_nodes_of_lines() -> None:
    """Statistics told at the grid's times too, on the lines between their nodes, give the same plan."""
    coarse, grid = smooth(VP, 40), make_grid("karras", VP, 6)
    lam = np.union1d(coarse.arrays["lam"], grid.lam)
    told = {
        k: np.stack([np.interp(lam, coarse.arrays["lam"], c) for c in coarse.arrays[k].T], 1) for k in ("l", "s", "b")
    }
    plans = [dpm_solver_v3.on(grid, {"c_pseudo": True}, one) for one in (coarse, v3.learned(VP, {"lam": lam} | told))]
    denoiser, x_T = testing.mixture(VP), testing.start(VP, 4)
    x, same = (solvers.sample(plan, denoiser, x_T) for plan in plans)
    torch.testing.assert_close(x, same, rtol=1e-12, atol=1e-12)
    assert plans[0].times == grid.times


@pytest.mark.parametrize("schedule", [VP, EDM], ids=lambda s: type(s).__name__)
def test_it_spends_every_budget(schedule: Schedule, tmp_path: Path) -> None:
    told = {"tuned": folder(tmp_path, smooth(schedule, 50))}
    for nfe in (*range(1, 13), 20, 35, 50):
        denoiser = testing.mixture(schedule)
        testing.run(testing.build("dpm_solver_v3", schedule, told, nfe), denoiser, testing.start(schedule, 1))
        assert denoiser.calls == nfe


@pytest.mark.parametrize(
    "options", [{}, {"c_pseudo": True}, {"corrector": False, "p_pseudo": True}, {"order": 2, "c_pseudo": True}]
)
def test_plans_conform(options: dict[str, solvers.Option], tmp_path: Path) -> None:
    """JSON, buffers, batches; and, without b, what is linear in the model is linear in the plan."""
    told = options | {"tuned": folder(tmp_path, smooth(VP, 50, b=0.0))}
    for nfe in (1, 2, 3, 4, 5, 9, 12):
        plan = testing.build("dpm_solver_v3", VP, told, nfe)
        testing.check_plan(plan, buffers=int(dpm_solver_v3.resolve(options)["order"]) + 2)
        assert plan.linear


def test_a_plan_of_pixels_survives_json_and_says_where_it_comes_from(tmp_path: Path) -> None:
    plan = testing.build("dpm_solver_v3", VP, {"tuned": folder(tmp_path, smooth(VP, 50))}, 6)
    again = solvers.Plan.from_json(plan.to_json())
    assert again == plan
    assert not plan.linear
    assert plan.learned_from is not None
    assert dict(plan.options)["tuned"] == plan.learned_from.sha256[:12]
    denoiser, x_T = testing.mixture(VP), testing.start(VP, 3)
    assert torch.equal(solvers.sample(again, denoiser, x_T), solvers.sample(plan, denoiser, x_T))
    assert denoiser.calls == 12


def test_half_corrects_before_the_half_alone() -> None:
    found = smooth(VP, 50)

    def plan(times: list[float], **options: solvers.Option) -> tuple[Instruction, ...]:
        return dpm_solver_v3.on(explicit(VP, times), options, found).instructions

    early, late = [1.0, 0.9, 0.8, 0.7, 0.6], [0.5, 0.4, 0.3, 0.2, 0.1]
    assert plan(early, half=True) == plan(early) != plan(early, corrector=False)
    assert plan(late, half=True) == plan(late, corrector=False) != plan(late)


def test_common_options_work(tmp_path: Path) -> None:
    told = {"tuned": folder(tmp_path, smooth(VP, 50))}
    plan = testing.build("dpm_solver_v3", VP, told | {"afs": True, "denoise_to_zero": True}, 6)
    assert (plan.nfe, plan.times[-1], plan.call_times[0] < 1) == (6, 0.0, True)
    with pytest.raises(ValueError, match="thresholding acts on data prediction, and this works in noise"):
        testing.build("dpm_solver_v3", VP, told | {"thresholding": "static"}, 6)


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    told = {"tuned": folder(tmp_path, smooth(VP, 50))}
    with pytest.raises(
        ValueError, match=r"its statistics reach from lambda = -5\.02\S* to 4\.55\S*, but the grid from"
    ):
        dpm_solver_v3.build(VP, 5, t_end=1e-4, options=told)
    with pytest.raises(ValueError, match=r"but the grid from -5\.02.* to inf"):
        dpm_solver_v3.build(VP, 5, grid="edm", options=told)
    for order in (0, 4):
        with pytest.raises(ValueError, match=f"order={order} must lie between 1 and 3"):
            dpm_solver_v3.build(VP, 5, options=told | {"order": order})
    with pytest.raises(ValueError, match="lower_order_final='sometimes' is none of never"):
        dpm_solver_v3.build(VP, 5, options=told | {"lower_order_final": "sometimes"})
    with pytest.raises(solvers.BudgetError, match="holds any budget at guidance 1, not 5 at guidance 4"):
        dpm_solver_v3.build(VP, 5, options=told | {"guidance": 4.0})
    with pytest.raises(LearnedError, match=r"was learned on VPLinear.*, not on EDM"):
        dpm_solver_v3.build(EDM, 5, options=told)
    with pytest.raises(LearnedError, match="run `fewstep tune dpm_solver_v3`"):
        dpm_solver_v3.build(VP, 5)
