"""The denoiser: predictions convert into one another, guidance mixes two calls, precision is kept."""

from typing import Any

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
