"""Adaptive DPM-Solver: as near to the ODE's solution as the tolerance asks, a sample at a time, every call counted."""

import json
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import solvers
from solvers.model import Denoiser
from solvers.schedule import Schedule
from solvers.testing import mixture, solution, start

VP, EDM = solvers.VPLinear(), solvers.EDM()
ENDS: list[tuple[Schedule, float]] = [(VP, 1e-2), (EDM, 2e-3)]
NAMES = ("dpm_solver_12", "dpm_solver_23")
EACH = pytest.mark.parametrize("name", NAMES)
ON = pytest.mark.parametrize(("schedule", "t_end"), ENDS, ids=["VPLinear", "EDM"])
CONTROL = pytest.mark.parametrize("control", ["official", "integral"])


def adaptive(name: str, schedule: Schedule = VP, tolerance: float = 1e-2, **others: Any) -> solvers.Procedure:
    made = solvers.plan(name, schedule, **({"rtol": tolerance, "atol": tolerance} | others))
    assert not isinstance(made, solvers.Plan)
    return made


def error(name: str, schedule: Schedule, t_end: float, tolerance: float, **options: Any) -> tuple[float, int]:
    """RMS distance to the exact solution, and the calls of the slowest sample."""
    plan, denoiser = adaptive(name, schedule, tolerance, t_end=t_end, **options), mixture(schedule)
    x = solvers.sample(plan, denoiser, start(schedule, 4)).numpy()
    return float(np.sqrt(np.mean((x - solution(schedule, t_end, 3)) ** 2))), denoiser.calls


@EACH
@ON
@CONTROL
def test_a_smaller_tolerance_costs_calls_and_comes_nearer(
    name: str, schedule: Schedule, t_end: float, control: str
) -> None:
    errors, calls = zip(
        *(error(name, schedule, t_end, tol, control=control) for tol in (1e-1, 1e-2, 1e-3)), strict=True
    )
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 5e-3
    assert calls[0] < calls[1] < calls[2]


def test_the_higher_pair_is_cheaper_at_a_small_tolerance() -> None:
    (low, many), (high, few) = (error(name, EDM, 2e-3, 1e-4) for name in NAMES)
    assert few < many / 1.5
    assert max(low, high) < 1e-3


@EACH
@CONTROL
def test_a_sample_does_not_depend_on_its_batch(name: str, control: str) -> None:
    plan, x_T = adaptive(name, control=control), start(VP, 5)
    together, alone = mixture(VP), [mixture(VP) for _ in range(5)]
    apart = torch.cat([solvers.sample(plan, one, x_T[i : i + 1]) for i, one in enumerate(alone)])
    torch.testing.assert_close(solvers.sample(plan, together, x_T), apart, rtol=0, atol=1e-11)
    assert together.evaluated == together.passed == sum(one.calls for one in alone)
    assert together.calls == together.forwards == max(one.calls for one in alone)
    assert len({one.calls for one in alone}) > 1  # or steps of their own would show nothing


@EACH
@CONTROL
def test_joint_steps_depend_on_the_batch(name: str, control: str) -> None:
    plan, x_T, denoiser = adaptive(name, control=control, joint=True), start(VP, 5), mixture(VP)
    x = solvers.sample(plan, denoiser, x_T)
    apart = torch.cat([solvers.sample(plan, mixture(VP), x_T[i : i + 1]) for i in range(5)])
    assert (x - apart).abs().max() > 1e-6
    assert denoiser.evaluated == 5 * denoiser.calls


@EACH
def test_a_joint_step_of_one_sample_is_its_own_step(name: str) -> None:
    x_T = start(VP, 1)
    own, joint = (solvers.sample(adaptive(name, joint=flag), mixture(VP), x_T) for flag in (False, True))
    assert torch.equal(own, joint)


@EACH
def test_the_worst_sample_decides_for_all_in_the_official_joint_control(name: str) -> None:
    plan, x_T = adaptive(name, joint=True), start(VP, 5)
    alone = [mixture(VP) for _ in range(5)]
    for i, one in enumerate(alone):
        solvers.sample(plan, one, x_T[i : i + 1])
    together = mixture(VP)
    solvers.sample(plan, together, x_T)
    assert together.calls >= max(one.calls for one in alone)


@pytest.mark.parametrize(("name", "calls"), [("dpm_solver_12", 2), ("dpm_solver_23", 3)])
def test_a_step_of_the_pair_costs_as_many_calls_as_its_order(name: str, calls: int) -> None:
    denoiser = mixture(VP)
    solvers.sample(adaptive(name), denoiser, start(VP, 3))
    assert denoiser.calls % calls == denoiser.evaluated % calls == 0
    assert denoiser.calls > 5 * calls


@EACH
def test_a_linear_model_of_constant_noise_is_solved_in_a_few_long_steps(name: str) -> None:
    """A noise that does not change: both answers of the pair are exact, and every step is accepted."""
    eps, t_end = torch.linspace(-1, 1, 12, dtype=torch.float64), 1e-2
    denoiser, x_T = Denoiser(lambda x, t: eps.expand_as(x), VP), start(VP, 2)
    x = solvers.sample(adaptive(name, t_end=t_end), denoiser, x_T)
    (a_T, a), (s_T, s) = ([float(f(t)) for t in (1.0, t_end)] for f in (VP.alpha, VP.sigma))
    torch.testing.assert_close(x, a / a_T * x_T + (s - a / a_T * s_T) * eps, rtol=1e-6, atol=1e-6)
    assert denoiser.calls <= 2 * int(name[-1])


@EACH
@ON
def test_steps_end_where_asked(name: str, schedule: Schedule, t_end: float) -> None:
    times: list[float] = []
    network = mixture(schedule)
    watched = Denoiser(lambda x, t: (times.extend(t.tolist()), network.network(x, t))[1], schedule)
    t_start = 0.9 * schedule.t_max
    plan = adaptive(name, schedule, t_start=t_start, t_end=t_end)
    solvers.sample(plan, watched, 0.9 * start(schedule, 3))
    assert plan.times == (t_start, t_end)
    assert max(times) == pytest.approx(t_start, rel=1e-12)
    assert t_end * (1 - 1e-9) <= min(times) < 4 * t_end


@EACH
def test_denoising_adds_one_call_and_gives_the_data_prediction(name: str) -> None:
    x_T, (one, other) = start(VP, 4), (mixture(VP), mixture(VP))
    plain = solvers.sample(adaptive(name, t_end=1e-2), one, x_T)
    denoised = solvers.sample(adaptive(name, t_end=1e-2, denoise_to_zero=True), other, x_T)
    assert other.calls == one.calls + 1
    assert other.evaluated == one.evaluated + 4
    torch.testing.assert_close(denoised, mixture(VP)(plain, 1e-2, "data"), rtol=0, atol=1e-12)


@EACH
def test_conditions_go_with_their_samples(name: str) -> None:
    """Samples finish at different calls, so that parts of a batch must take their conditions along."""

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        assert len(x) == len(y)
        return torch.sin((1 + y[:, None]) * x)

    y, x_T, plan = torch.tensor([4, 0, 2, 1]), start(VP, 4), adaptive(name)
    together = solvers.sample(plan, Denoiser(network, VP), x_T, cond={"y": y})
    apart = [solvers.sample(plan, Denoiser(network, VP), x_T[i : i + 1], cond={"y": y[i : i + 1]}) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=1e-11)


@EACH
@pytest.mark.parametrize("predicts", ["data", "v", "velocity"])
def test_any_prediction_of_the_network_does(name: str, predicts: Any) -> None:
    x_T, noise = start(VP, 3), mixture(VP)
    other = Denoiser(lambda x, t: noise.at_each(x, t.numpy(), predicts), VP, predicts)
    x = solvers.sample(adaptive(name), mixture(VP), x_T)
    torch.testing.assert_close(solvers.sample(adaptive(name), other, x_T), x, rtol=0, atol=1e-7)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_start_is_left_alone_and_its_dtype_kept(name: str, dtype: torch.dtype) -> None:
    x_T = start(VP, 3).to(dtype)
    before = x_T.clone()
    x = solvers.sample(adaptive(name), mixture(VP), x_T)
    assert (x.dtype, x.shape) == (dtype, x_T.shape)
    assert torch.equal(x_T, before)
    assert not x.requires_grad


@EACH
def test_a_batch_of_images_is_like_its_vectors(name: str) -> None:
    x_T, vectors = start(VP, 3), mixture(VP)
    images = Denoiser(lambda x, t: vectors.network(x.flatten(1), t).reshape(x.shape), VP)
    x = solvers.sample(adaptive(name), images, x_T.reshape(3, 3, 2, 2))
    torch.testing.assert_close(x.flatten(1), solvers.sample(adaptive(name), vectors, x_T), rtol=0, atol=1e-12)


@EACH
@pytest.mark.parametrize("given", [{"nfe": 10}, {"grid": "logsnr"}, {"times": [1.0, 0.1]}], ids=str)
def test_a_budget_or_a_grid_is_refused(name: str, given: dict[str, Any]) -> None:
    message = f"{name} chooses its own steps: it takes no nfe, grid or times, but rtol and atol"
    with pytest.raises(solvers.BudgetError, match=message):
        solvers.plan(name, VP, **given)


@EACH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"rtol": bad}, f"rtol={bad} must be positive and finite") for bad in (0.0, -0.1, float("inf"))),
        ({"rtol": float("nan")}, "rtol=nan must be positive and finite"),
        ({"atol": 0}, r"atol=0\.0 must be positive and finite"),
        ({"h_init": -1.0}, r"h_init=-1\.0 must be positive and finite"),
        ({"rtol": "tight"}, r"rtol='tight' is not a float such as 0\.05"),
        ({"joint": 1}, "joint=1 is not a bool such as False"),
        ({"control": "pid"}, "control='pid' is none of official, integral"),
        ({"tol": 0.1}, "has no option 'tol': it has rtol, atol, h_init, control, joint, denoise_to_zero"),
        ({"afs": True}, "has no option 'afs'"),
    ],
)
def test_options_that_make_no_sense_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{name}:? {message}"):
        solvers.plan(name, VP, **options)


@EACH
@pytest.mark.parametrize(
    ("t_start", "t_end"), [(0.5, 0.5), (0.1, 0.5), (1.5, None), (None, -0.1), (float("nan"), None)]
)
def test_ends_outside_the_schedule_are_refused(name: str, t_start: float | None, t_end: float | None) -> None:
    with pytest.raises(ValueError, match=r"strictly decreasing|lies beyond|must lie between"):
        solvers.plan(name, VP, t_start=t_start, t_end=t_end)


@EACH
def test_rectified_flow_is_refused_from_pure_noise_and_sampled_from_later(name: str) -> None:
    flow = solvers.RectifiedFlow()
    with pytest.raises(ValueError, match=rf"{name} needs a finite lambda at both ends, and at \(1\.0, 0\.001\)"):
        solvers.plan(name, flow)
    x = solvers.sample(adaptive(name, flow, t_start=0.999), mixture(flow), start(flow, 3))
    assert x.isfinite().all()


@EACH
@CONTROL
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_network_that_is_not_finite_is_an_error_and_no_endless_loop(
    name: str, control: str, joint: bool, bad: float
) -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(torch.arange(len(x))[:, None] == 1, bad, x)  # one sample of three

    plan = adaptive(name, control=control, joint=joint)
    with pytest.raises(FloatingPointError, match=rf"{name}: no step meets rtol=0\.01, atol=0\.01"):
        solvers.sample(plan, Denoiser(network, VP), start(VP, 3))


def test_a_denoiser_on_another_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the plan is for VPLinear\(.*\), the denoiser for EDM"):
        solvers.sample(adaptive("dpm_solver_12"), mixture(EDM), start(EDM, 1))


@pytest.mark.parametrize(("name", "order"), [("dpm_solver_12", 2), ("dpm_solver_23", 3)])
def test_it_says_what_it_is_and_has_no_budget(name: str, order: int) -> None:
    made = adaptive(name, t_end=0.01)
    assert (made.method, made.order, made.nfe, made.draws, made.predicts) == (name, order, None, 0, "noise")
    assert made.times == (1.0, 0.01)
    assert dict(made.options)["rtol"] == 0.01
    assert f"{name}(rtol=0.01, " in str(made)
    assert f"order {order}, noise prediction" in str(made)
    assert solvers.method(name).adaptive
    assert isinstance(solvers.method(name), solvers.Solver)
    with pytest.raises(FrozenInstanceError):
        made.method = "other"  # type: ignore[misc]


@EACH
def test_json_says_everything_that_decides_the_samples(name: str) -> None:
    about = json.loads(adaptive(name).to_json())
    assert about.keys() == {"method", "options", "order", "schedule", "times"}
    assert about["options"].keys() == {"rtol", "atol", "h_init", "control", "joint", "denoise_to_zero"}
    changes: list[dict[str, Any]] = [
        {"rtol": 0.02},
        {"atol": 0.02},
        {"h_init": 0.1},
        {"control": "integral"},
        {"joint": True},
        {"denoise_to_zero": True},
        {"t_end": 0.01},
        {"t_start": 0.9},
        {"schedule": solvers.VPLinear(0.2)},
    ]
    assert len({adaptive(name).to_json(), *(adaptive(name, **change).to_json() for change in changes)}) == 10
    assert adaptive(name) == adaptive(name)
