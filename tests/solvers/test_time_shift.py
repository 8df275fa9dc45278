"""Time-Shift: the paper's algorithm to the letter for DDIM, the released one call by call, one sample at a time."""

import json
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import solvers
from bench.cells import Subjects, cells
from bench.checkpoints import Guide, Task, load
from bench.spec import Sweep
from solvers import noise
from solvers.model import Denoiser
from solvers.schedule import Schedule
from solvers.testing import first_time, mixture, start
from solvers.time_shift import BASES, TimeShift
from solvers.time_shift_labels import coupled, label_of, time_of
from tests.golden import Case, cases, time_shift

VP, EDM, DISCRETE = solvers.VPLinear(), solvers.EDM(), solvers.VPDiscrete.linear()
SCHEDULES = {"VPLinear": VP, "VPCosine": solvers.VPCosine(), "VPDiscrete": DISCRETE, "EDM": EDM}
SCHEDULES |= {"RectifiedFlow": solvers.RectifiedFlow()}
ON = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
EACH = pytest.mark.parametrize("base", BASES)
RECORDED = [c for c in cases() if c.id.startswith("ts")]


def shifted(base: str = "ddim", schedule: Schedule = VP, nfe: int = 8, **options: Any) -> TimeShift:
    given = {"window": 40, "cutoff": 200} | options
    if "times" not in given:
        given |= {"nfe": nfe + 5 * (base == "pndm_f"), "t_start": first_time(schedule)}
    made = solvers.plan("time_shift", schedule, base=base, **given)
    assert isinstance(made, TimeShift)
    return made


def draws(k: int, first: int = 0, count: int = 5) -> Tensor:
    return torch.from_numpy(noise.normal(3, noise.STEP + k, first, count, (12,)))


# --- the paper's algorithm


@pytest.mark.parametrize("schedule", [VP, DISCRETE], ids=["VPLinear", "VPDiscrete"])
@pytest.mark.parametrize(("window", "cutoff"), [(40, 200), (5, 550), (90, 0)])
def test_for_ddim_it_is_algorithm_3_to_the_letter(schedule: Schedule, window: int, cutoff: int) -> None:
    """Sample by sample: the network and the step take t_s, whatever the grid says."""
    plan, network = shifted(schedule=schedule, window=window, cutoff=cutoff, grid="uniform"), mixture(schedule)
    ended, picked = [], []
    for x in start(schedule, 4).split(1):
        t_s = plan.times[0]
        for k, (t, t_next) in enumerate(pairwise(plan.times)):
            if k > 0 and 1000 * t - 1 > cutoff:
                window_around = [t + j / 1000 for j in range(-(window // 2), window // 2 + 1)]
                inside = [s for s in window_around if 1e-3 <= s <= 1]
                t_s = min(inside, key=lambda s: abs(float(x.var()) - float(schedule.sigma(s)) ** 2))
            elif k > 0:
                t_s = t
            picked.append(t_s)
            e = network(x, t_s, "noise")
            D = (x - float(schedule.sigma(t_s)) * e) / float(schedule.alpha(t_s))
            x = float(schedule.alpha(t_next)) * D + float(schedule.sigma(t_next)) * e
        ended.append(x)
    done = plan.shifts(mixture(schedule), start(schedule, 4))
    torch.testing.assert_close(done.x, torch.cat(ended), rtol=0, atol=1e-10)
    np.testing.assert_allclose(time_of(schedule, done.found).T.ravel(), picked, rtol=0, atol=1e-12)
    assert (done.found != np.array(done.nominal)[:, None]).any()


@EACH
@pytest.mark.parametrize("options", [{"window": 0}, {"cutoff": 1000}], ids=str)
def test_without_a_shift_it_is_the_base(base: str, options: dict[str, int]) -> None:
    plan = shifted(base, **options)
    x = solvers.sample(plan, mixture(VP), start(VP, 5), draws)
    unshifted = solvers.sample(plan.plan, mixture(VP), start(VP, 5), draws)
    torch.testing.assert_close(x, unshifted, rtol=0, atol=1e-11)
    moved = solvers.sample(shifted(base), mixture(VP), start(VP, 5), draws)
    assert (moved - x).abs().max() > 1e-3


@EACH
def test_only_calls_above_the_cutoff_move_and_never_the_first(base: str) -> None:
    done = shifted(base, cutoff=400).shifts(mixture(VP), start(VP, 5), draws)
    nominal = np.array(done.nominal)
    assert np.array_equal(done.found[0], np.full(5, nominal[0]))
    assert np.array_equal(done.found[nominal <= 400], np.tile(nominal[nominal <= 400, None], 5))
    above = (done.found - nominal[:, None])[1:][nominal[1:] > 400]
    assert above.size
    assert (above != 0).any(axis=1).all()
    assert np.abs(above).max() <= 20
    assert np.array_equal(done.called, done.found)


def test_a_call_at_the_cutoff_itself_stays() -> None:
    times = [n / 1000 for n in (901, 702, 502, 302, 102)]  # labels 900, 701, ...
    done = shifted(schedule=DISCRETE, times=times, cutoff=501).shifts(mixture(DISCRETE), start(DISCRETE, 5))
    assert ((done.found != np.array(done.nominal)[:, None]).any(axis=1) == [False, True, False, False]).all()


@pytest.mark.parametrize("base", ["ddim", "pndm_s", "dpm_solver_1", "dpm_solver_2", "dpm_solver_3", "dpm_solver_2m"])
def test_a_model_samples_the_same_whether_its_schedule_preserves_variance_or_explodes(base: str) -> None:
    """x of EDM at sigma is x of VP at the time of that sigma/alpha, divided by alpha there."""
    t = VP.t_of_lam(np.linspace(-4, 4, 9))
    vp, edm = shifted(base, times=tuple(t)), shifted(base, EDM, times=tuple(np.exp(-VP.lam(t))))
    x_T = start(VP, 5)
    one = vp.shifts(mixture(VP), x_T)
    other = edm.shifts(mixture(EDM), x_T / float(VP.alpha(t[0])))
    np.testing.assert_allclose(one.found, other.found, rtol=0, atol=1e-6)
    torch.testing.assert_close(one.x / float(VP.alpha(t[-1])), other.x, rtol=0, atol=1e-8)


@EACH
def test_a_sample_does_not_depend_on_its_batch(base: str) -> None:
    plan, x_T = shifted(base), start(VP, 5)
    together = plan.shifts(mixture(VP), x_T, draws)
    alone = [plan.shifts(mixture(VP), x_T[i : i + 1], lambda k, i=i: draws(k, i, 1)) for i in range(5)]
    torch.testing.assert_close(together.x, torch.cat([one.x for one in alone]), rtol=0, atol=1e-11)
    assert np.array_equal(together.found, np.hstack([one.found for one in alone]))
    assert len({tuple(column) for column in together.found.T}) > 1  # or times of their own would show nothing


def test_conditions_and_guidance_go_with_their_samples() -> None:
    guided = load("gmm").denoiser(Task(Guide(3.0)), torch.device("cpu"), torch.float64)
    x_T, y = load("gmm").latents(0, 0, 4, 1.0), torch.tensor([0, 1, 2, 0])
    plan = shifted(nfe=5)
    together = solvers.sample(plan, guided, x_T, cond={"y": y})
    apart = [solvers.sample(plan, guided, x_T[i : i + 1], cond={"y": y[i : i + 1]}) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=1e-11)
    assert (guided.calls, guided.forwards) == (25, 50)
    other = solvers.sample(plan, guided, x_T, cond={"y": y.flip(0)})
    assert (together - other).abs().max() > 0.1


@EACH
@pytest.mark.parametrize("predicts", ["data", "v", "velocity"])
def test_any_prediction_of_the_network_does(base: str, predicts: Any) -> None:
    known = mixture(VP)
    other = Denoiser(lambda x, t: known.at_each(x, t.numpy(), predicts), VP, predicts)
    x = solvers.sample(shifted(base), mixture(VP), start(VP, 5), draws)
    torch.testing.assert_close(solvers.sample(shifted(base), other, start(VP, 5), draws), x, rtol=0, atol=1e-8)


@EACH
def test_a_budget_is_spent_to_the_call_on_every_sample(base: str) -> None:
    plan, denoiser = shifted(base, nfe=9), mixture(VP)
    solvers.sample(plan, denoiser, start(VP, 5), draws)
    nfe = 14 if base == "pndm_f" else 9
    assert (plan.nfe, denoiser.calls, denoiser.forwards, denoiser.evaluated) == (nfe, nfe, nfe, 5 * nfe)
    assert plan.draws == (nfe if base == "ddpm" else 0)


@EACH
@ON
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_schedule_is_sampled_in_the_dtype_of_the_start(base: str, schedule: Schedule, dtype: torch.dtype) -> None:
    plan, x_T = shifted(base, schedule), start(schedule, 5).to(dtype)
    before = x_T.clone()
    x = solvers.sample(plan, mixture(schedule), x_T, lambda k: draws(k).to(dtype))
    assert (x.dtype, x.shape) == (dtype, x_T.shape)
    assert x.isfinite().all()
    assert torch.equal(x_T, before)


# --- labels


@ON
def test_labels_are_ddpms_and_whole_at_its_times(schedule: Schedule) -> None:
    if schedule is EDM:
        assert label_of(EDM, np.exp(-VP.lam(0.302))) == pytest.approx(301, abs=1e-8)
    else:
        times = np.arange(1, 995) / 1000  # VPCosine's last is 0.9946
        assert np.array_equal(label_of(schedule, times), np.arange(994))
    labels = np.linspace(0, float(label_of(schedule, first_time(schedule))), 50)
    np.testing.assert_allclose(label_of(schedule, time_of(schedule, labels)), labels, rtol=0, atol=1e-8)


def of_variance(variance: Any) -> Tensor:
    """States of 4 numbers, (B, 1, 2, 2), with these unbiased variances and means that should not matter."""
    unit = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64) * np.sqrt(3 / 4)
    rows = torch.as_tensor(np.sqrt(np.asarray(variance)))[:, None] * unit + torch.arange(len(variance))[:, None]
    return rows.reshape(-1, 1, 2, 2)


@ON
def test_a_state_shows_the_label_of_its_variance(schedule: Schedule) -> None:
    labels, around = np.array([480.0, 493.0, 500.0, 520.0]), 500.0
    sigma, alpha = schedule.sigma(time_of(schedule, labels)), schedule.alpha(time_of(schedule, labels))
    t = time_of(schedule, around)
    x = of_variance(sigma**2 / (alpha**2 + sigma**2) * (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2))
    assert coupled(schedule, x, around, 40).tolist() == labels.tolist()
    assert coupled(schedule, x, around, 41).tolist() == labels.tolist()
    assert coupled(schedule, x, around, 10).tolist() == [495.0, 495.0, 500.0, 505.0]


def test_the_window_ends_where_the_labels_do() -> None:
    quiet, loud = of_variance([0.0, 9.0])[:1], of_variance([0.0, 9.0])[1:]
    assert coupled(DISCRETE, quiet, 7.0, 40) == 0
    assert coupled(DISCRETE, loud, 990.0, 40) == 999
    assert coupled(EDM, 80 * loud, 930.0, 40) == pytest.approx(932)  # sigma = 80 is label 932.5


def test_a_table_says_how_far_the_labels_moved() -> None:
    done = shifted(nfe=5).shifts(mixture(VP), start(VP, 5))
    head, *rows = str(done).splitlines()
    assert head.split() == ["label", "mean", "shift", "lowest", "highest", "moved"]
    assert len(rows) == 5
    by = done.found[1] - done.nominal[1]
    label, mean, lowest, highest, moved = rows[1].split()
    assert (float(label), float(mean)) == (pytest.approx(done.nominal[1], abs=0.06), pytest.approx(by.mean(), abs=0.06))
    assert (float(lowest), float(highest), moved) == (round(by.min()), round(by.max()), f"{np.mean(by != 0):.0%}")


# --- what was released


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.id)
def test_the_released_code_shifts_and_calls_as_recorded(case: Case) -> None:
    draw = case.noise if case.has("noise") else torch.empty(0)
    done = time_shift.time_shift(case).shifts(case.denoiser(), case.x_init, lambda k: draw[k], case.cond)
    shifts = case.array("shifted_t" if case.has("shifted_t") else "shifted_t_next")
    calls = case.array("call_t")
    assert np.array_equal(done.found, shifts)
    assert np.array_equal(done.called, calls if calls.ndim == 2 else np.tile(calls[:, None], 16))


def test_the_papers_algorithm_calls_where_the_released_one_does_not() -> None:
    paper, released = (
        shifted(schedule=DISCRETE, grid="linspace", official=word).shifts(mixture(DISCRETE), start(DISCRETE, 5))
        for word in ("none", "pnm")
    )
    assert (released.called == released.called[:, :1]).all()
    assert (paper.called != released.called).any()
    assert (paper.x - released.x).abs().max() > 1e-3


@pytest.mark.parametrize("base", ["ddim", "pndm_s", "pndm_f"])
def test_the_released_code_without_a_shift_is_the_base(base: str) -> None:
    plan = shifted(base, DISCRETE, official="pnm", times=[n / 1000 for n in (902, 702, 502, 402, 302, 202, 102, 95, 1)])
    unshifted = replace(plan, cutoff=1000)
    x = solvers.sample(unshifted, mixture(DISCRETE), start(DISCRETE, 5))
    torch.testing.assert_close(x, solvers.sample(plan.plan, mixture(DISCRETE), start(DISCRETE, 5)), rtol=0, atol=1e-10)
    assert (solvers.sample(plan, mixture(DISCRETE), start(DISCRETE, 5)) - x).abs().max() > 1e-3


# --- what it says, what it refuses


def test_json_says_everything_that_decides_the_samples() -> None:
    about = json.loads(shifted().to_json())
    assert about.keys() == {"method", "options", "plan"}
    assert about["options"] == {"base": "ddim", "window": 40, "cutoff": 200, "official": "none"}
    assert about["plan"] == json.loads(shifted().plan.to_json())
    discrete = {"schedule": DISCRETE, "grid": "linspace"}
    changes: list[dict[str, Any]] = [
        {},
        {"base": "dpm_solver_1"},
        {"base": "ddpm"},
        {"window": 42},
        {"cutoff": 201},
        {"nfe": 9},
        {"grid": "quadratic"},
        {"t_end": 0.01},
        {"schedule": solvers.VPLinear(0.2)},
        discrete,
        discrete | {"official": "pnm"},
    ]
    assert len({shifted(**change).to_json() for change in changes}) == len(changes)
    assert shifted() == shifted()


def test_it_says_what_it_is_and_has_a_budget() -> None:
    made = shifted()
    assert isinstance(solvers.method("time_shift"), solvers.Solver)
    assert (made.method, made.order, made.nfe, made.draws, made.predicts) == ("time_shift", 0, 8, 0, "data")
    assert (made.times, made.schedule, made.learned_from) == (made.plan.times, VP, None)
    assert str(made) == (
        "time_shift(base=ddim, window=40, cutoff=200, official=none): 8 calls, whose times depend on the states"
    )
    with pytest.raises(FrozenInstanceError):
        made.window = 10  # type: ignore[misc]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"base": "heun"}, "base='heun' is none of ddim, pndm_s, pndm_f, dpm_solver_1"),
    ({"official": "yes"}, "official='yes' is none of none, pnm, adm"),
    ({"window": -1}, "window=-1, cutoff=200: give both, in labels from 0 to 1000"),
    ({"cutoff": -1}, "window=40, cutoff=-1: give both, in labels from 0 to 1000"),
    ({"cutoff": 1001}, "window=40, cutoff=1001: give both"),
    ({"window": 2.5}, r"window=2\.5 is not a int such as -1"),
    ({"eta": 1.0}, "has no option 'eta': it has base, window, cutoff, official, tuned, guidance"),
    ({"official": "pnm"}, "official=pnm needs whole labels: a VPDiscrete schedule of 1000 betas"),
    ({"official": "pnm", "window": -1, "cutoff": -1}, "window=-1, cutoff=-1: give both"),
    ({"official": "pnm", "schedule": DISCRETE, "grid": "leading"}, "official=pnm ends at label 0, not on the data"),
    ({"official": "adm", "base": "pndm_s"}, "official=adm has the bases ddim, not pndm_s"),
    ({"official": "pnm", "base": "deis_tab3"}, "official=pnm has the bases ddim, ddpm, pndm_s, pndm_f, not deis_tab3"),
    ({"official": "adm", "schedule": DISCRETE, "grid": "uniform", "nfe": 7}, "official=adm needs whole labels"),
    (
        {"official": "adm", "schedule": solvers.VPDiscrete.linear(N=500), "grid": "leading"},
        "official=adm needs whole labels",
    ),
    (
        {"official": "pnm", "schedule": DISCRETE, "grid": "linspace", "nfe": 50},
        "official=pnm: window=40 reaches beyond a step of 19 labels",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"time_shift:? {message}"):
        shifted(**options)


def test_a_budget_that_the_base_lacks_is_refused() -> None:
    with pytest.raises(solvers.BudgetError, match="pndm_f cannot spend 6 calls: it can spend 4, 8, 12"):
        shifted("pndm_f", nfe=1)


def test_a_sample_of_one_number_has_no_variance() -> None:
    with pytest.raises(ValueError, match="here a sample is one number"):
        solvers.sample(shifted(), Denoiser(lambda x, t: x, VP), torch.ones(2, 1))


def test_a_denoiser_on_another_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the plan is for VPLinear\(.*\), the denoiser for EDM"):
        solvers.sample(shifted(), mixture(EDM), start(EDM, 1))


def test_a_sweep_takes_the_base_as_the_first_word_and_keys_by_what_decides() -> None:
    texts = [f"time_shift(ddim, window={w}, cutoff=300)" for w in (20, 30)] + [
        "time_shift(deis_tab3, window=20, cutoff=300)"
    ]
    sweep = Sweep(checkpoint="gmm", solvers=tuple(texts), nfe=(5,), samples=8)
    found, skipped = cells(sweep, Subjects(load("gmm")))
    assert [(cell.solver, cell.nfe) for cell in found] == [(text, 5) for text in texts]
    assert skipped == []
    assert len({cell.key for cell in found}) == 3
    elsewhere, _ = cells(sweep.model_copy(update={"tuned": "elsewhere"}), Subjects(load("gmm")))
    assert [cell.key for cell in elsewhere] == [cell.key for cell in found]
