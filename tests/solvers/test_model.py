"""The denoiser: predictions convert into one another, guidance mixes two calls, precision is kept."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import solvers
from solvers.model import PREDICTIONS, Denoiser, Guidance, Prediction, conversion
from solvers.schedule import Schedule

values = st.floats(-3, 3)
LEVELS = [
    pytest.param(schedule, t, id=f"{type(schedule).__name__}-{t}")
    for schedule in (solvers.VPLinear(), solvers.VPDiscrete.linear(), solvers.EDM(), solvers.RectifiedFlow())
    for t in (0.05, 0.3, 0.9)
]
PAIRS = [(a, b) for a in PREDICTIONS for b in PREDICTIONS]
VP, EDM, FLOW = solvers.VPLinear(), solvers.EDM(sigma_max=20.0), solvers.RectifiedFlow()


def truth(predicts: Prediction, x_0: Any, eps: Any, alpha: float, sigma: float) -> Any:
    """The four parametrisations by their definitions; v as in Salimans & Ho 2022, velocity as in Liu et al. 2022."""
    return {"noise": eps, "data": x_0, "v": alpha * eps - sigma * x_0, "velocity": eps - x_0}[predicts]


@pytest.mark.parametrize(("schedule", "t"), LEVELS)
@given(x_0=values, eps=values)
def test_every_prediction_converts_into_every_other(schedule: Schedule, t: float, x_0: float, eps: float) -> None:
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    x = alpha * x_0 + sigma * eps
    for source, target in PAIRS:
        A, B = conversion(source, target, alpha, sigma)
        converted = A * truth(source, x_0, eps, alpha, sigma) + B * x
        assert converted == pytest.approx(truth(target, x_0, eps, alpha, sigma), abs=1e-11)


@pytest.mark.parametrize(("schedule", "t"), LEVELS)
def test_conversions_are_mutually_inverse(schedule: Schedule, t: float) -> None:
    level = float(schedule.alpha(t)), float(schedule.sigma(t))
    for source, target in PAIRS:
        (A, B), (C, D) = conversion(source, target, *level), conversion(target, source, *level)
        back = C * A, C * B + D
        assert back == pytest.approx((1, 0), abs=1e-11)


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_a_prediction_converts_into_itself_at_no_change(predicts: Prediction) -> None:
    assert conversion(predicts, predicts, 0.6, 0.8) == pytest.approx((1, 0))


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("schedule", [solvers.VPLinear(), solvers.RectifiedFlow()], ids=repr)
def test_the_denoiser_gives_the_prediction_asked_for(
    schedule: Schedule, source: Prediction, target: Prediction
) -> None:
    x_0, eps = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def level(t: float) -> tuple[float, float]:
        return float(schedule.alpha(t)), float(schedule.sigma(t))

    denoiser = Denoiser(lambda x, t: truth(source, x_0, eps, *level(float(t[0]))), schedule, source)
    for t in (0.2, 0.7, 0.2):
        alpha, sigma = level(t)
        out = denoiser(alpha * x_0 + sigma * eps, t, target)
        torch.testing.assert_close(out, truth(target, x_0, eps, alpha, sigma), rtol=0, atol=1e-12)


def test_without_a_wish_the_denoiser_gives_the_networks_own_prediction() -> None:
    denoiser = Denoiser(lambda x, t: 3 * x + t[:, None], solvers.VPLinear(), "v")
    assert denoiser(torch.ones(2, 1), 0.5).tolist() == [[3.5], [3.5]]


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="predicts must be one of noise, data, v, velocity, not 'score'"):
        Denoiser(lambda x, t: x, solvers.VPLinear(), "score")  # type: ignore[arg-type]


def labelled(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A network whose output tells its label: x^2 + y."""
    return x**2 + y[:, None]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 4.0, -1.0])
def test_guidance_is_null_plus_scale_times_the_difference(scale: float) -> None:
    denoiser = Denoiser(labelled, solvers.VPLinear(), "noise", Guidance(scale, {"y": 9}))
    x, y = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2), torch.arange(4)
    null, cond = labelled(x, x, torch.full((4,), 9)), labelled(x, x, y)
    torch.testing.assert_close(denoiser(x, 0.5, cond={"y": y}), null + scale * (cond - null), rtol=1e-14, atol=1e-14)
    assert y.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("scale", "forwards"), [(None, 1), (1, 1), (1.0, 1), (0.0, 2), (3.0, 2)])
def test_guidance_costs_two_forwards_a_call_unless_its_scale_is_one(scale: float | None, forwards: int) -> None:
    guidance = None if scale is None else Guidance(scale, {"y": 9})
    denoiser = Denoiser(labelled, solvers.VPLinear(), "noise", guidance)
    for _ in range(3):
        denoiser(torch.ones(2, 1), 0.5, "data", {"y": torch.zeros(2)})
    assert (denoiser.calls, denoiser.forwards) == (3, 3 * forwards)


def test_guidance_is_mixed_before_it_is_converted() -> None:
    schedule, x, y = solvers.VPLinear(), torch.ones(2, 1, dtype=torch.float64), torch.tensor([1, 2])
    denoiser = Denoiser(labelled, schedule, "noise", Guidance(3.0, {"y": 0}))
    eps = 1 + 3 * y[:, None]
    expected = (x - float(schedule.sigma(0.4)) * eps) / float(schedule.alpha(0.4))
    torch.testing.assert_close(denoiser(x, 0.4, "data", {"y": y}), expected)


@pytest.mark.parametrize(
    ("dtype", "time_dtype"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_time_is_never_in_half_precision_and_the_output_is_in_the_states(
    dtype: torch.dtype, time_dtype: torch.dtype
) -> None:
    seen: list[Tensor] = []
    denoiser = Denoiser(lambda x, t: (seen.append(t), x)[1], solvers.VPLinear())
    out = denoiser(torch.ones(3, 2, dtype=dtype), 0.123456789, "data")
    assert out.dtype == dtype
    assert (seen[0].dtype, seen[0].shape) == (time_dtype, (3,))
    assert seen[0].tolist() == torch.full((3,), 0.123456789, dtype=time_dtype).tolist()


@pytest.mark.parametrize(
    ("t", "forwards"), [(0.25, 1), (0.5, 1), (0.501, 2), (1.0, 2), (2.0, 2), (2.001, 1), (80.0, 1)]
)
def test_guidance_acts_in_its_interval_alone_and_costs_nothing_elsewhere(t: float, forwards: int) -> None:
    denoiser = Denoiser(labelled, solvers.EDM(), "noise", Guidance(4.0, {"y": 9}, interval=(0.5, 2.0)))
    x, y = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2), torch.arange(3)
    null, cond = labelled(x, x, torch.full((3,), 9)), labelled(x, x, y)
    expected = cond if forwards == 1 else null + 4.0 * (cond - null)
    torch.testing.assert_close(denoiser(x, t, cond={"y": y}), expected, rtol=1e-14, atol=1e-14)
    counted = denoiser.calls, denoiser.forwards, denoiser.evaluated, denoiser.passed
    assert counted == (1, forwards, 3, 3 * forwards)
    assert denoiser.cost(t) == forwards


@pytest.mark.parametrize("schedule", [solvers.VPLinear(), solvers.RectifiedFlow()], ids=repr)
def test_the_interval_is_of_sigma_over_alpha_on_every_schedule(schedule: Schedule) -> None:
    guidance = Guidance(4.0, {}, interval=(0.5, 2.0))
    times = schedule.t_of_lam([-np.log(u) for u in (0.4, 0.6, 1.9, 2.1)]).tolist()
    assert [guidance.at(schedule, t) for t in (*times, 1.0)] == [1.0, 4.0, 4.0, 1.0, 1.0]


def test_counters_add_up_over_batches_of_any_size() -> None:
    denoiser = Denoiser(labelled, solvers.EDM(), "noise", Guidance(4.0, {"y": 9}, interval=(0.5, 2.0)))
    for batch, t in ((3, 1.0), (5, 10.0), (1, 2.0)):
        denoiser(torch.ones(batch, 2), t, cond={"y": torch.zeros(batch)})
    assert (denoiser.calls, denoiser.forwards, denoiser.evaluated, denoiser.passed) == (3, 5, 9, 13)


def bumpy(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A smooth network that depends on everything it is given."""
    return torch.sin(3 * x) + t[:, None] * x + 0.3 * torch.cos(y[:, None].to(x) + x)


def null_of(cond: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: torch.full_like(v, 9) for k, v in cond.items()}


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("plan", "predicts"),
    [
        pytest.param(solvers.plan("ddim", VP, 6), "noise", id="VPLinear"),
        pytest.param(solvers.plan("ddim", VP, times=[0.9, 0.5, 0.1, 0.0]), "data", id="VPLinear onto the data"),
        pytest.param(solvers.plan("ddim", VP, 4, denoise_to_zero=True), "v", id="VPLinear with a denoising call"),
        pytest.param(solvers.plan("ddim", EDM, 6), "noise", id="EDM onto the data"),
        pytest.param(solvers.plan("ddim", FLOW, 6, grid="shifted"), "velocity", id="RectifiedFlow from pure noise"),
    ],
)
def test_cfgpp_keeps_the_unguided_noise_and_guides_the_data(
    plan: solvers.Plan, predicts: Prediction, scale: float
) -> None:
    """Chung et al. 2024, Algorithm 2: x' = alpha' D_lambda + sigma' eps_null."""
    schedule, cond = plan.schedule, {"y": torch.arange(4)}
    x_T = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, x = Denoiser(bumpy, schedule, predicts), x_T
    for t, s in pairwise(plan.times):
        D_null, D_cond = plain(x, t, "data", null_of(cond)), plain(x, t, "data", cond)
        eps_null = plain(x, t, "noise", null_of(cond))
        x = float(schedule.alpha(s)) * (D_null + scale * (D_cond - D_null)) + float(schedule.sigma(s)) * eps_null
    guided = Denoiser(bumpy, schedule, predicts, Guidance(scale, {"y": 9}, cfgpp=plan.times))
    torch.testing.assert_close(solvers.sample(plan, guided, x_T, cond=cond), x, rtol=1e-9, atol=1e-9)


def test_cfgpp_is_plain_guidance_on_the_step_onto_the_data() -> None:
    guidance = Guidance(0.6, {}, cfgpp=(5.0, 1.0, 0.0))
    assert guidance.at(EDM, 1.0) == 0.6
    assert guidance.at(EDM, 5.0) == pytest.approx(0.6 / (1 - 1 / 5))


def test_cfgpp_outside_the_interval_is_no_guidance() -> None:
    guidance = Guidance(0.6, {}, interval=(0.5, 2.0), cfgpp=(5.0, 1.0, 0.1, 0.0))
    assert [guidance.at(EDM, t) for t in (5.0, 1.0, 0.1)] == [1.0, pytest.approx(0.6 / 0.9), 1.0]


@pytest.mark.parametrize("t", [0.5, 0.4])
def test_cfgpp_refuses_a_time_that_none_follows(t: float) -> None:
    denoiser = Denoiser(bumpy, VP, "noise", Guidance(0.6, {"y": 9}, cfgpp=(1.0, 0.5)))
    with pytest.raises(ValueError, match=rf"CFG\+\+ needs the time that follows t = {t}: its grid ends at 0\.5"):
        denoiser(torch.ones(1, 1), t, cond={"y": torch.zeros(1)})


TIMES = np.array([0.9, 0.2, 0.5, 0.2, 0.05])
GUIDES = {
    "unguided": None,
    "one scale": Guidance(3.0, {"y": 9}),
    "an interval": Guidance(3.0, {"y": 9}, interval=(0.2, 2.0)),
    "a scale each": Guidance(0.7, {"y": 9}, cfgpp=(0.9, 0.5, 0.2, 0.05, 0.01)),
}


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("guidance", GUIDES.values(), ids=GUIDES)
def test_times_of_their_own_give_what_calls_one_by_one_give(
    guidance: Guidance | None, source: Prediction, target: Prediction
) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, denoiser = torch.arange(5), Denoiser(bumpy, VP, source, guidance)
    apart = [denoiser(x[i : i + 1], float(t), target, {"y": y[i : i + 1]}) for i, t in enumerate(TIMES)]
    torch.testing.assert_close(denoiser.at_each(x, TIMES, target, {"y": y}), torch.cat(apart), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("guidance", "times", "forwards"),
    [
        (None, TIMES, 1),
        (GUIDES["one scale"], TIMES, 2),
        (GUIDES["an interval"], TIMES, 2),
        (GUIDES["an interval"], np.full(5, 0.9), 1),
    ],
)
def test_times_of_their_own_are_one_call(guidance: Guidance | None, times: Any, forwards: int) -> None:
    denoiser = Denoiser(bumpy, VP, "noise", guidance)
    denoiser.at_each(torch.ones(5, 1), times, "data", {"y": torch.zeros(5)})
    assert (denoiser.calls, denoiser.forwards, denoiser.evaluated, denoiser.passed) == (1, forwards, 5, 5 * forwards)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_times_of_their_own_keep_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    seen: list[Tensor] = []
    denoiser = Denoiser(lambda x, t: (seen.append(t), x)[1], VP)
    out = denoiser.at_each(torch.ones(shape, dtype=dtype), np.array([0.123456789, 0.5]), "data")
    assert (out.shape, out.dtype) == (shape, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (seen[0].dtype, seen[0].tolist()) == (wide, torch.tensor([0.123456789, 0.5], dtype=wide).tolist())


SCALES = np.array([0.0, 1.0, 2.5, -1.0, 7.0])


def test_a_scale_of_its_own_for_each_sample_replaces_guidances_own() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, denoiser = torch.arange(5), Denoiser(bumpy, VP, "noise", Guidance(40.0, {"y": 9}))
    apart = [
        Denoiser(bumpy, VP, "noise", Guidance(float(w), {"y": 9}))(x[i : i + 1], float(t), "data", {"y": y[i : i + 1]})
        for i, (t, w) in enumerate(zip(TIMES, SCALES, strict=True))
    ]
    out = denoiser.at_each(x, TIMES, "data", {"y": y}, SCALES)
    torch.testing.assert_close(out, torch.cat(apart), rtol=1e-12, atol=1e-12)
    assert (denoiser.calls, denoiser.forwards, denoiser.passed) == (1, 2, 10)


def test_scales_without_guidance_are_refused() -> None:
    with pytest.raises(ValueError, match="scales of guidance were given, and there is no guidance"):
        Denoiser(bumpy, VP).at_each(torch.ones(5, 1), TIMES, "data", {"y": torch.zeros(5)}, SCALES)


def told_two(x: Tensor, t: Tensor, y: Tensor, size: Tensor) -> Tensor:
    return x + y[:, None] + 100 * size[:, None]


def test_guidance_leaves_a_condition_alone_whose_null_is_none() -> None:
    x, y, size = torch.zeros(3, 1, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 6.0, 7.0])
    guided = Denoiser(told_two, EDM, "noise", Guidance(3.0, {"y": 0, "size": None}))
    expected = (3 * y + 100 * size)[:, None].double()
    for out in (
        guided(x, 1.0, cond={"y": y, "size": size}),
        guided.at_each(x, np.ones(3), "noise", {"y": y, "size": size}),
    ):
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(("guidance", "forwards"), [(None, 1), (Guidance(3.0, {"y": 9}), 2)])
def test_what_may_be_differentiated_counts_as_a_backward_pass(guidance: Guidance | None, forwards: int) -> None:
    weight = torch.ones((), requires_grad=True)
    denoiser = Denoiser(lambda x, t, y: weight * bumpy(x, t, y), VP, "noise", guidance)
    x, cond = torch.ones(5, 1), {"y": torch.zeros(5)}
    with torch.no_grad():
        denoiser.at_each(x, TIMES, "data", cond)
    assert denoiser.backwards == 0
    denoiser.at_each(x, TIMES, "data", cond)
    assert (denoiser.backwards, denoiser.passed) == (5 * forwards, 10 * forwards)
    frozen = Denoiser(bumpy, VP, "noise", guidance)
    frozen.at_each(x, TIMES, "data", cond)
    assert frozen.backwards == 0
    frozen.at_each(x.requires_grad_(), TIMES, "data", cond)  # through the network to its input
    assert frozen.backwards == 5 * forwards
