"""UniPC: its coefficients are exact, it contains the methods it generalises, and its corrector is free."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial.legendre import leggauss

import solvers
from solvers.dpm_solver_steps import Step
from solvers.plan import Combine, Option
from solvers.schedule import Schedule
from solvers.testing import RANGES, measured_order
from solvers.unipc import weights
from tests.solvers.common import SCHEDULES, denoiser, start

VP, FLOW = solvers.VPLinear(), solvers.RectifiedFlow()
VARIANTS = pytest.mark.parametrize("variant", ["bh1", "bh2", "vary"])
TIMES = [1.0, 0.7, 0.55, 0.3, 0.2, 0.1, 0.01]


def run(name: str, schedule: Schedule = VP, times: list[float] = TIMES, **options: Option) -> torch.Tensor:
    plan = solvers.plan(name, schedule, times=times, **options)
    return solvers.sample(plan, denoiser(schedule), start(schedule, 3))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@given(
    z=st.floats(-12, 12).filter(lambda z: abs(z) > 1e-3),
    gaps=st.lists(st.floats(0.2, 3), max_size=3),
    scale=st.floats(0.1, 1),
)
def test_the_sum_is_exact_for_polynomials_as_high_as_it_has_terms(z: float, gaps: list[float], scale: float) -> None:
    r = [*(-np.cumsum(gaps)), 1.0]
    found = weights(Step(1.0, scale * np.expm1(z), scale, z), r, "vary")
    nodes, under = leggauss(60)
    s = (nodes + 1) / 2
    exact = [scale * z * under / 2 @ (np.exp(z * (1 - s)) * s**k) for k in range(1, len(r) + 1)]
    sums = [found @ np.power(r, k - 1) for k in range(1, len(r) + 1)]
    np.testing.assert_allclose(sums, exact, rtol=1e-9, atol=1e-9 * (1 + np.exp(z)))


def test_one_term_has_half_of_the_variants_own_factor() -> None:
    step = Step(1.0, 0.5 * np.expm1(-0.8), 0.5, -0.8)
    assert weights(step, [-1.5], "bh1").tolist() == [pytest.approx(0.25 * -0.8, abs=1e-15)]
    assert weights(step, [1.0], "bh2").tolist() == [pytest.approx(0.25 * np.expm1(-0.8), abs=1e-15)]


@VARIANTS
@pytest.mark.parametrize("predicts", ["data", "noise"])
def test_the_first_order_predictor_is_ddim(variant: str, predicts: str) -> None:
    close(run("unipc", order=1, corrector=False, variant=variant, predicts=predicts), run("ddim"))


@pytest.mark.parametrize("rule", ["never", "always"])
@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        ({"order": 2, "variant": "bh2"}, {"solver_type": "dpmsolver"}, "dpmpp_2m"),
        ({"order": 2, "variant": "vary"}, {"solver_type": "taylor"}, "dpmpp_2m"),
        ({"order": 2, "variant": "bh2", "predicts": "noise"}, {"solver_type": "dpmsolver"}, "dpm_solver_2m"),
    ],
)
def test_the_second_order_predictor_is_dpm_solvers(
    ours: dict[str, Option], theirs: dict[str, Option], name: str, rule: str
) -> None:
    x = run("unipc", corrector=False, lower_order_final=rule, **ours)
    close(x, run(name, lower_order_final=rule, **theirs))


def test_the_rule_for_the_last_steps_lowers_their_order_one_by_one() -> None:
    always, never, above = (run("unipc", lower_order_final=rule) for rule in ("always", "never", "below_10"))
    close(always, above)  # six steps are fewer than ten
    assert (always - never).abs().max() > 1e-4


@VARIANTS
@pytest.mark.parametrize("order", [1, 2])
def test_the_corrector_gains_an_order(variant: str, order: int) -> None:
    for schedule, grid, t_end in RANGES:
        without, with_it = (
            measured_order("unipc", {"order": order, "corrector": c, "variant": variant}, schedule, grid, t_end)
            for c in (False, True)
        )
        assert without == pytest.approx(order, abs=0.35)  # bh1's second order shows 2.3 on EDM
        assert with_it == pytest.approx(order + 1, abs=0.25)
        assert with_it - without > 0.85
    assert [solvers.plan("unipc", VP, 5, order=order, corrector=c).order for c in (False, True)] == [order, order + 1]


@pytest.mark.parametrize("predicts", ["data", "noise"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_corrected_state_is_never_a_register(order: int, predicts: str) -> None:
    plan = solvers.plan("unipc", VP, 12, order=order, predicts=predicts)
    combines = [i for i in plan.instructions if isinstance(i, Combine)]
    assert len(combines) == plan.nfe == 12
    assert max(len(i.terms) for i in combines) == plan.buffers == order + 2


@VARIANTS
@pytest.mark.parametrize("predicts", ["data", "noise"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_last_step_onto_the_data_lands_on_the_data_prediction(
    schedule: Schedule, predicts: str, variant: str
) -> None:
    network = solvers.Denoiser(lambda x, t: torch.full_like(x, 0.7), schedule, "data")
    times = [schedule.t_max * s for s in (0.9, 0.6, 0.3, 0.1, 0)]
    plan = solvers.plan("unipc", schedule, times=times, predicts=predicts, variant=variant, lower_order_final="never")
    x = solvers.sample(plan, network, start(schedule, 3))
    torch.testing.assert_close(x, torch.full_like(x, 0.7), rtol=0, atol=1e-9)


@pytest.mark.parametrize("variant", ["bh2", "vary"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_pure_noise_is_the_limit_of_starting_close_to_it(variant: str, order: int) -> None:
    network = solvers.Denoiser(lambda x, t: torch.sin(x) * t[:, None], FLOW, "data")
    near, at = (
        solvers.sample(
            solvers.plan("unipc", FLOW, times=[t, 0.8, 0.5, 0.3, 0.1, 0], variant=variant, order=order),
            network,
            start(FLOW, 3),
        )
        for t in (1 - 1e-13, 1.0)
    )
    torch.testing.assert_close(near, at, rtol=0, atol=0.05)  # it comes closer with 1/log(1 - t) only
    assert at.isfinite().all()


@VARIANTS
def test_every_variant_starts_from_pure_noise(variant: str) -> None:
    plan = solvers.plan("unipc", FLOW, 7, variant=variant)
    assert (plan.nfe, plan.times[0], plan.times[-1]) == (7, 1.0, 0.0)


def test_the_noise_of_pure_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"noise prediction cannot start from t = 1.0"):
        solvers.plan("unipc", FLOW, 7, predicts="noise")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, r"unipc: order=0 must lie between 1 and 4"),
        ({"order": 5}, r"unipc: order=5 must lie between 1 and 4"),
        ({"variant": "bh3"}, r"unipc: variant='bh3' is none of bh1, bh2, vary"),
        ({"predicts": "velocity"}, r"unipc: predicts='velocity' is none of data, noise"),
        ({"predicts": "score"}, r"unipc: predicts='score' is none of"),
        ({"lower_order_final": "sometimes"}, r"'sometimes' is none of never, below_10, below_15, always"),
        ({"predicts": "noise", "thresholding": "static"}, r"thresholding acts on data prediction"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Option], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solvers.plan("unipc", VP, 6, **options)


def test_the_grid_is_the_authors() -> None:
    unipc = solvers.method("unipc")
    assert isinstance(unipc, solvers.Method)
    grids = {name.partition(".")[0]: unipc.default_grid(schedule) for name, schedule in SCHEDULES.items()}
    assert grids == {
        "VPLinear": "logsnr",
        "VPCosine": "logsnr",
        "VPDiscrete": "uniform",
        "EDM": "logsnr",
        "RectifiedFlow": "shifted",
    }
