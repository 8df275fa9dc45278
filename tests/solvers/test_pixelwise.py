"""Coefficients of a sample's shape and constants: one number a pixel, in plans, files, executors and pipelines."""

import numpy as np
import pytest
import torch
from torch import Tensor

import solvers
from solvers.coefficient import Pixelwise
from solvers.execute import sample
from solvers.grid import explicit
from solvers.plan import ONES, Combine, PlanError
from solvers.tracer import Tracer

VP = solvers.VPLinear()
SHAPE = (1, 2, 3)
WEIGHTS = np.linspace(0.5, 1.5, 6).reshape(SHAPE)
SHIFT = np.linspace(-1, 1, 6).reshape(SHAPE)
TIMES = (1.0, 0.5, 0.25)


def traced(weights: np.ndarray = WEIGHTS) -> solvers.Plan:
    """x -> w x - 0.1 D / w + shift + 2, twice, then + shift alone: every way in which an array can enter."""
    p = Tracer(explicit(VP, TIMES))
    x = p.start()
    for i in range(2):
        D = p.model(x, i)
        x = p.state(weights * x - 0.1 / weights * D + p.constant(SHIFT) + p.constant(2.0))
    x = p.state(p.constant(SHIFT) + 0.5 * x)
    return solvers.Plan("pixels", (), 1, "data", VP, TIMES, tuple(p.instructions))


def by_hand(denoiser: solvers.Denoiser, x: Tensor) -> Tensor:
    w, shift = torch.from_numpy(WEIGHTS).to(x), torch.from_numpy(SHIFT).to(x)
    for t in TIMES[:2]:
        x = w * x - 0.1 / w * denoiser(x, t, "data") + shift + 2
    return shift + 0.5 * x


def denoiser(predicts: solvers.model.Prediction = "noise") -> solvers.Denoiser:
    return solvers.Denoiser(lambda x, t: torch.tanh(x) * t.reshape(-1, 1, 1, 1), VP, predicts)


@pytest.mark.parametrize("predicts", ["noise", "data"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_the_executor_does_what_the_algorithm_says(predicts, dtype: torch.dtype, tolerance: float) -> None:
    x_T = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, *SHAPE).to(dtype)
    x = sample(traced(), denoiser(predicts), x_T)
    assert x.dtype == dtype
    torch.testing.assert_close(x.double(), by_hand(denoiser(predicts), x_T.double()), rtol=tolerance, atol=tolerance)


def test_a_plan_survives_json_and_is_equal_by_value() -> None:
    plan = traced()
    again = solvers.Plan.from_json(plan.to_json())
    assert again == plan == traced(WEIGHTS.copy())
    assert hash(again.instructions) == hash(plan.instructions)
    assert plan != traced(WEIGHTS + 1e-15 * WEIGHTS)


def test_arrays_cannot_be_written_to_and_are_copies() -> None:
    own = WEIGHTS.copy()
    plan = traced(own)
    own[:] = 0
    assert plan == traced()
    coefficient = next(c for i in plan.instructions if isinstance(i, Combine) for c, _ in i.terms)
    assert isinstance(coefficient, Pixelwise)
    with pytest.raises(ValueError, match="read-only"):
        coefficient.values[:] = 1


def test_constants_cost_no_buffer_and_make_the_plan_affine() -> None:
    plan = traced()
    assert plan.buffers == 2
    assert not plan.linear
    assert "~ r0" in str(plan)
    assert not any(ONES in dead for dead in plan.dies)


def test_what_is_not_finite_is_refused() -> None:
    broken = WEIGHTS.copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(PlanError, match="has the coefficient nan"):
        traced(broken)


def test_terms_of_zeros_are_dropped() -> None:
    p = Tracer(explicit(VP, TIMES))
    p.state(p.start() + np.zeros(SHAPE) * p.model(p.start(), 0))
    assert [r for _, r in p.instructions[-1].terms] == [0]


def test_a_pipeline_runs_it_too() -> None:
    scheduler = solvers.to_diffusers(traced(), "epsilon")
    network = denoiser()
    x_T = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, *SHAPE)
    x = x_T
    for t in scheduler.timesteps:
        time = (float(t) + 1) / 1000
        x = scheduler.step(network(x, time), t, x).prev_sample
    torch.testing.assert_close(x, by_hand(denoiser(), x_T), rtol=1e-12, atol=1e-12)
