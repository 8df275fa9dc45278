"""The trajectories that tuners learn from, against an adaptive solver of high order."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import solvers
from bench.checkpoints import Guide, Task, load
from solvers.tune.reference import reference


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("name", ["gmm", "digits"])
def test_states_between_the_nodes_too_are_the_solutions(name: str, scale: float) -> None:
    checkpoint = load(name)
    schedule, shape = checkpoint.schedule, (3, *checkpoint.shape)
    denoiser = checkpoint.denoiser(Task(Guide(scale)), torch.device("cpu"), torch.float64)
    x_T, cond = checkpoint.latents(5, 0, 3, schedule.t_max), {"y": checkpoint.labels(5, 0, 3)}
    found = reference(denoiser, x_T, cond, schedule.t_max, schedule.t_end, calls=100)
    assert denoiser.passed == 300 * (2 if scale != 1 else 1)

    def slope(lam: float, y: np.ndarray) -> np.ndarray:
        t = float(schedule.t_of_lam(lam))
        x = float(schedule.alpha(t)) * torch.from_numpy(y).reshape(shape)
        with torch.no_grad():
            return -np.exp(-lam) * denoiser(x, t, "noise", cond).numpy().ravel()

    first, last = schedule.lam([schedule.t_max, schedule.t_end])
    lam = np.array([first, *np.random.default_rng(0).uniform(first, last, 4), last])
    lam.sort()
    y_T = (x_T / float(schedule.alpha(schedule.t_max))).numpy().ravel()
    exact = solve_ivp(slope, (first, last), y_T, "DOP853", t_eval=lam, rtol=1e-7, atol=1e-7).y.T
    for lam_i, y in zip(lam, exact, strict=True):
        t = float(schedule.t_of_lam(lam_i))
        off = found.at(t).numpy().ravel() / schedule.alpha(t) - y
        assert np.sqrt(np.mean(off**2)) < 5e-4 * max(1, np.sqrt(np.mean(y**2)))


def test_the_ends_are_exact() -> None:
    schedule = solvers.EDM()
    denoiser = solvers.Denoiser(lambda x, t: torch.zeros_like(x), schedule, "data")
    x_T = torch.ones(2, 3, dtype=torch.float64)
    found = reference(denoiser, x_T, {}, 80.0, 0.002, calls=9)
    torch.testing.assert_close(found.at(80.0), x_T)
    for t in (40.0, 3.3, 0.1, 0.002):  # a point mass at 0: x falls in proportion to sigma, which no cubic is
        torch.testing.assert_close(found.at(t), x_T * t / 80, rtol=0, atol=1e-2)
    torch.testing.assert_close(found.at(0.002), x_T * 0.002 / 80)
