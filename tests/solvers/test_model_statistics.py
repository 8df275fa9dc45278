"""The statistics of DPM-Solver-v3: on the official code's draws, where they are known, resumed and refused."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import solvers
from bench.checkpoints import Guide, Task, load
from bench.checkpoints.gmm import OnSchedule
from solvers import noise
from solvers.dpm_solver_v3 import dpm_solver_v3
from solvers.grid import make_grid
from solvers.model import Cond, Prediction, levels
from solvers.schedule import Array, Schedule
from solvers.tune import Finding, NoNotes, Problem, tuner
from solvers.tune import model_statistics as ems
from tests.golden import mixture, v3

VP, EDM = solvers.VPLinear(), solvers.EDM()
SMALL: dict[str, solvers.Option] = {"nodes": 12, "samples": 64, "batch": 40, "smooth": 1.0}


@pytest.fixture(autouse=True)
def few_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ems, "HELD_OUT", 16)


def problem(name: str = "gmm", guidance: float = 1.0, dtype: torch.dtype = torch.float64) -> Problem:
    checkpoint = load(name)

    def start(first: int, count: int, t: float) -> tuple[Tensor, Cond]:
        x_T = checkpoint.latents(5, first, count, t, noise.TUNING).to(dtype)
        return x_T, {"y": checkpoint.labels(5, first, count, None, noise.TUNING)}

    denoiser = checkpoint.denoiser(Task(Guide(guidance)), torch.device("cpu"), dtype)
    return Problem(denoiser, guidance, checkpoint.shape, 5, start)


def tuned(of: Problem, notes: Any = None, **settings: solvers.Option) -> Finding:
    return tuner("dpm_solver_v3").tune(of, None, notes or NoNotes(), settings)


def differences(one: Finding, other: Finding) -> dict[str, float]:
    return {k: float(np.abs(one.arrays[k] - other.arrays[k]).max()) for k in ("lam", "l", "s", "b")}


def recorded(name: str) -> Array:
    return v3.recorded()[f"small.vplin.unc/{name}"].astype(np.float64)


def test_the_official_draws_give_the_official_statistics() -> None:
    """25 nodes with two batches of 64 at each: draw 2 j + i is of node j and batch i."""
    denoiser = solvers.Denoiser(OnSchedule(mixture(), VP), VP)
    lam = np.linspace(*VP.lam([1.0, 1e-3]), 25)
    at = [ems.Level.of(VP, float(t)) for t in VP.t_of_lam(lam)]
    x_0, l_z, l_v, f_z = (torch.from_numpy(recorded(name)) for name in ("x0", "l_z", "l_v", "f_z"))
    total_l, total = torch.zeros(25, 1, 4, 4), torch.zeros(4, 25, 1, 4, 4)
    total_l, total = total_l.double(), total.double()
    for j in range(25):
        for i in range(2):
            x = at[j].state(x_0[i], l_z[2 * j + i])
            total_l[j] += ems.own_slope(denoiser, at[j], x, l_v[2 * j + i], {}).mean(0) / 2
    l = total_l.numpy()  # noqa: E741
    dl = ems.slope_of(l, lam)
    for j in range(25):
        for i in range(2):
            x, of_l = at[j].state(x_0[i], f_z[2 * j + i]), (torch.from_numpy(l[j]), torch.from_numpy(dl[j]))
            total[:, j] += ems.moments(at[j], *of_l, x, *ems.noise_along(denoiser, at[j], x, {})).mean(1) / 2
    f, f_d, f_f, f_f_d = total.numpy()
    s, b = ems.line(total.numpy())
    found = {"l": l, "l_d": dl, "f": f, "f_d": f_d, "f_f": f_f, "f_f_d": f_f_d, "s": s, "b": b}
    for name, values in found.items():
        np.testing.assert_allclose(values, recorded(name), rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    "schedule",
    [VP, solvers.VPCosine(), EDM, solvers.RectifiedFlow(), solvers.VPDiscrete.linear()],
    ids=lambda s: type(s).__name__,
)
def test_the_derivative_along_the_ode_is_that_of_nearby_states(schedule: Schedule) -> None:
    denoiser = solvers.Denoiser(OnSchedule(mixture(), schedule), schedule)
    t, h = 0.3051, 1e-5
    lam = float(schedule.lam(t))
    at = ems.Level.of(schedule, t)
    x = torch.from_numpy(noise.normal(0, 0, 0, 5, (1, 4, 4)))
    eps, slope = ems.noise_along(denoiser, at, x, {})

    def nearby(step: float) -> Tensor:
        """eps at lambda + step, where y = x/alpha has moved by dy/dlambda = -(sigma/alpha) eps."""
        t_there = float(schedule.t_of_lam(lam + step))
        y = x / at.alpha - step * at.sigma / at.alpha * eps
        return denoiser(float(schedule.alpha(t_there)) * y, t_there, "noise")

    torch.testing.assert_close(eps, denoiser(x, t, "noise"))
    torch.testing.assert_close(slope, (nearby(h) - nearby(-h)) / (2 * h), rtol=1e-6, atol=1e-7)


# One Gaussian: u eps = l (y - m) with l = u^2/(u^2 + v), so its f = -l m is the same for all samples.
MEAN, VARIANCE = np.linspace(-1, 1, 6).reshape(2, 3), np.linspace(0.1, 0.6, 6).reshape(2, 3)


def gaussian(schedule: Schedule, predicts: Prediction) -> Problem:
    m, v = torch.from_numpy(MEAN), torch.from_numpy(VARIANCE)

    def network(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (c[:, None, None] for c in levels(schedule, t))
        eps = sigma * (x - alpha * m) / (alpha**2 * v + sigma**2)
        return eps if predicts == "noise" else (x - sigma * eps) / alpha

    def start(first: int, count: int, t: float) -> tuple[Tensor, Cond]:
        return torch.from_numpy(schedule.prior_std(t) * noise.normal(5, noise.TUNING, first, count, (2, 3))), {}

    return Problem(solvers.Denoiser(network, schedule, predicts), 1.0, (2, 3), 5, start)


@pytest.mark.parametrize(
    ("schedule", "predicts"),
    [(VP, "noise"), (EDM, "data"), (solvers.VPDiscrete.linear(), "noise")],
    ids=["VPLinear", "EDM", "VPDiscrete"],
)
def test_a_gaussian_s_statistics_are_known(schedule: Schedule, predicts: Prediction) -> None:
    found = tuned(gaussian(schedule, predicts), nodes=200, samples=20)
    lam, (l, s, b) = found.arrays["lam"], (found.arrays[k] for k in "lsb")  # noqa: E741
    u2 = np.exp(-2 * lam)[:, None, None]
    assert lam[[0, -1]].tolist() == schedule.lam([schedule.t_max, schedule.t_end]).tolist()
    np.testing.assert_allclose(l, u2 / (u2 + VARIANCE), rtol=0, atol=1e-9)
    assert (s == 0).all()
    np.testing.assert_allclose(b, 2 * VARIANCE * u2 / (u2 + VARIANCE) ** 2 * MEAN, rtol=0, atol=0.02)
    # So f hardly changes along a solution: 10 calls do, which in data prediction they do not.
    base, end = (error for _, error in found.curve)
    assert end < base / 4
    assert found.values["floor"] < 1e-3


@pytest.mark.parametrize(("name", "guidance"), [("gmm", 1.0), ("gmm", 4.0), ("digits", 2.0)])
def test_the_cost_is_what_was_counted(name: str, guidance: float) -> None:
    """50 calls for each datum; at each of 13 nodes one and a tangent, two and a tangent; and the trial's 220 calls."""
    of = problem(name, guidance, torch.float32)
    found = tuned(of, nodes=12, samples=20, batch=12, smooth=3.0)
    twice = 1 if guidance == 1 else 2
    assert of.cost.forwards == twice * (20 * (50 + 3 * 13) + 16 * 220)
    assert of.cost.tangents == twice * 20 * 13 * 2
    assert of.cost.backwards == 0
    assert found.curve[-1][0] == of.cost.calls
    assert all(
        found.arrays[k].dtype == np.float64 and np.isfinite(found.arrays[k]).all() for k in ("lam", "l", "s", "b")
    )
    assert all(found.arrays[k].shape == (13, *of.shape) for k in "lsb")


def test_what_is_found_is_tried_on_starts_that_nothing_was_learned_from() -> None:
    of, asked = problem(), set()

    def start(first: int, count: int, t: float) -> tuple[Tensor, Cond]:
        asked.add((first, count))
        return of.start(first, count, t)

    tuned(replace(of, start=start), **SMALL)
    assert asked == {(0, 40), (40, 24), (64, 16)}


def test_guidance_has_statistics_of_its_own() -> None:
    assert differences(tuned(problem(), **SMALL), tuned(problem(guidance=4.0), **SMALL))["l"] > 0.05


def test_the_findings_do_not_depend_on_batches_and_follow_the_seed() -> None:
    of = tuned(problem(), **SMALL)
    assert max(differences(of, tuned(problem(), **SMALL | {"batch": 64})).values()) < 1e-9
    again, other = tuned(problem(), **SMALL), tuned(replace(problem(), seed=6), **SMALL)
    assert max(differences(of, again).values()) == 0
    assert (of.curve, of.values) == (again.curve, again.values)
    assert differences(of, other)["l"] > 0.01


class StopError(Exception):
    pass


class Paper:
    """Notes that keep the counters, as those of `fewstep tune`, and stop the run that writes for the n-th time."""

    def __init__(self, of: Problem, patience: int, kept: Any = None) -> None:
        self.of, self.patience, self.kept = of, patience, kept

    def read(self) -> dict[str, Any] | None:
        if self.kept is None:
            return None
        state, counters = copy.deepcopy(self.kept)
        for name, count in counters.items():
            setattr(self.of.denoiser, name, count)
        return state

    def write(self, state: dict[str, Any]) -> None:
        self.kept = copy.deepcopy((state, {k: getattr(self.of.denoiser, k) for k in ("passed", "tangents")}))
        self.patience -= 1
        if self.patience == 0:
            raise StopError


def test_an_interrupted_tuning_ends_where_an_uninterrupted_one_does() -> None:
    whole = tuned(problem(), **SMALL)
    paper, runs = Paper(problem(), 6), 0
    while runs < 20:
        try:
            found = tuned(paper.of, paper, **SMALL)
            break
        except StopError:
            runs += 1
            paper = Paper(problem(), 6, paper.kept)
    assert runs == 5  # 27 notes, 6 a run, the last of a run being the first of the next
    assert max(differences(whole, found).values()) == 0
    assert (found.curve, found.values) == (whole.curve, whole.values)


def test_fresh_draws_jump_from_node_to_node_and_shared_or_smoothed_ones_do_not() -> None:
    few: dict[str, solvers.Option] = {"nodes": 60, "samples": 64}
    fresh, smooth, shared = (
        tuned(problem(), **few, **more) for more in ({"fresh": True}, {"fresh": True, "smooth": 3.0}, {})
    )
    for steady in (smooth, shared):
        for k in "lsb":
            jumps, fewer = (np.abs(np.diff(of.arrays[k], 2, axis=0)).mean() for of in (fresh, steady))
            assert fewer < jumps / 2
        assert steady.values["floor"] < fresh.values["floor"] / 2


def test_random_signs_find_the_jacobian_s_diagonal() -> None:
    of = problem()
    at, batches = ems.Level.of(VP, 0.1), ems.data(of, 512, 256, None)
    l = ems.Measurement(of, np.array([0.1]), batches, fresh=False).l(0)  # noqa: E741
    columns = torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4)
    total = torch.zeros(1, 4, 4, dtype=torch.float64)
    for first, x_0, cond in batches:
        x = at.state(x_0, torch.from_numpy(noise.normal(of.seed, ems.STREAM, first, len(x_0), of.shape)))
        total += sum(ems.own_slope(of.denoiser, at, x, e.expand_as(x), cond).sum(0) for e in columns)
    exact = total / 512
    assert (l - exact).abs().max() < 0.05  # the standard error is a hundredth
    assert (exact.max() - exact.min()) > 0.1


def test_what_is_found_samples_through_its_files(tmp_path: Path) -> None:
    of = problem()
    found = v3.learned(VP, dict(tuned(of, **SMALL).arrays))
    for name, data in found.to_files().items():
        (tmp_path / name).write_bytes(data)
    x_T, cond = of.start(1000, 4, 1.0)
    x, same = (
        solvers.sample(plan, of.denoiser, x_T, cond=cond)
        for plan in (
            solvers.plan("dpm_solver_v3", VP, 8, tuned=str(tmp_path)),
            dpm_solver_v3.on(make_grid("logsnr", VP, 8), {}, found),
        )
    )
    assert x.isfinite().all()
    assert torch.equal(x, same)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nodes": 9}, "nodes=9 must be at least 10"),
        (
            {"nodes": 12, "samples": 4, "fresh": True},
            r"the integral of \|s\| is \d+, more than 300: take more samples or nodes",
        ),
        ({"samples": 1}, "samples=1 must be at least 2"),
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"smooth": -1.0}, r"smooth=-1\.0 must be at least 0"),
        ({"width": 3}, "has no option 'width'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, solvers.Option], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuned(problem(), **settings)


def test_a_metric_and_a_schedule_that_starts_without_signal_are_refused() -> None:
    with pytest.raises(ValueError, match="searches for nothing: give no metric"):
        tuned(replace(problem(), metric=("frechet_exact", lambda x: 0.0)), **SMALL)
    flow = solvers.RectifiedFlow()
    of = replace(problem(), denoiser=solvers.Denoiser(lambda x, t, y: x, flow, "velocity"))
    with pytest.raises(ValueError, match=r"RectifiedFlow\(shift=1\.0\) has no finite lambda at t = 1"):
        tuned(of, **SMALL)
