"""A scheduler of diffusers written down as a program, by running it on unit vectors.

A scheduler that clips nothing is linear in x_T, the network's outputs and its noise.  With a unit vector in the place
of each of these, the components of what it returns are the coefficients of a Combine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from solvers.plan import Combine, Evaluate, Instruction, Option
from solvers.schedule import Array

LOOK = 16  # calls back: a Runge-Kutta start of three steps of four is the longest history
EXACT = 1e-9  # relative; what is linear holds to 1e-13 in float64
Column = tuple[str, int]  # ("register", r) or ("draw", k)


class NotLinearError(ValueError):
    """A scheduler whose states are no combinations of its inputs."""


class Float64(TorchFunctionMode):
    """Gives float64 to a scheduler that asks for float32, and `draw()` to one that asks for noise."""

    def __init__(self, draw: Callable[[], Tensor] | None = None) -> None:
        super().__init__()
        self.draw = draw

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.randn and self.draw is not None:
            return self.draw()
        return func(*map(_double, args), **{k: _double(a) for k, a in (kwargs or {}).items()})


def _double(a: Any) -> Any:
    return torch.float64 if isinstance(a, torch.dtype) and a == torch.float32 else a


@dataclass(frozen=True)
class _Run:
    """The states that a scheduler calls the network at, then its sample; how many draws it had made at each."""

    states: Array
    draws: list[int]


def record(ready: Callable[[], Any], step_options: Mapping[str, Option], times: Sequence[float]) -> list[Instruction]:
    """The program of the scheduler `ready()`, about to make its first step, which calls the network at these times.

    Raises NotLinearError when its states are not combinations of x_T, outputs and draws, ValueError when not finite.
    """
    calls = len(times)
    size = 1 + 2 * calls  # x_T, an output a call and at most a draw a call
    run = _run(ready(), step_options, np.eye(size))
    program = _program(run, times)
    other = 10 * np.random.default_rng(0).standard_normal((size, 8))  # what clips the large shows here
    states = _run(ready(), step_options, other).states
    if not np.abs(_replay(program, other, calls) - states).max() <= EXACT * np.abs(states).max():
        raise NotLinearError
    return program


def _run(scheduler: Any, step_options: Mapping[str, Option], inputs: Array) -> _Run:
    """What the scheduler makes of x_T, the outputs and the draws: the rows of `inputs`, in this order."""
    x_T, *rest = (row[None, None, None] for row in torch.from_numpy(inputs))  # (1, 1, 1, K), as an image
    calls = len(scheduler.timesteps)
    outputs, unused = rest[:calls], rest[calls:]
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)  # the flows' have none, nor an init_noise_sigma
    x, states, draws = getattr(scheduler, "init_noise_sigma", 1.0) * x_T, [], [0]
    with Float64(lambda: unused.pop(0)):
        for t, output in zip(scheduler.timesteps, outputs, strict=True):
            states.append(scale(x, t))
            x = scheduler.step(output, t, x, return_dict=False, **step_options)[0]
            draws.append(calls - len(unused))
    found = torch.cat([*states, x]).flatten(1).numpy()
    if not np.isfinite(found).all():
        raise ValueError("the scheduler's own numbers are not finite on these steps")
    return _Run(found, draws)


def _program(run: _Run, times: Sequence[float]) -> list[Instruction]:
    """The states as combinations, with the network called at each; its output lies in the register that follows."""
    program: list[Instruction] = []
    at: list[int] = []
    for k, state in enumerate(run.states):
        found = _terms(run, k, at) if k else {("register", 0): float(state[0])}
        if found == {("register", 0): 1.0}:
            at.append(0)
        else:
            terms = tuple((c, r) for (kind, r), c in found.items() if kind == "register")
            noise = tuple((c, z) for (kind, z), c in found.items() if kind == "draw")
            program.append(Combine(len(program) + 1, terms, noise))
            at.append(len(program))
        if k < len(times):
            program.append(Evaluate(len(program) + 1, at[k], times[k]))
    return program


def _terms(run: _Run, k: int, at: Sequence[int]) -> dict[Column, float]:
    """State k from states before it, which lie in the registers `at`, their outputs and the draws since.

    Looks back as little as will do: at the last state and outputs, else at earlier states too, unless a few outputs
    more make fewer terms.
    """
    best: dict[Column, float] | None = None
    for back in range(1, k + 1):
        for states in (1, back) if best is None else (1,):
            found = _solve(run.states[k], _columns(run, range(k - 1, k - 1 - back, -1), states, at))
            if found and (best is None or len(found) < len(best)):
                best = found
            if found and states == 1:
                return best or found
        if best and back >= LOOK:
            return best
    if best is None:
        raise NotLinearError
    return best


def _columns(run: _Run, latest: Sequence[int], states: int, at: Sequence[int]) -> dict[Column, Array]:
    """The outputs at the latest states, the first `states` of these themselves, and the draws made after them."""
    unit, calls = np.eye(run.states.shape[1]), len(run.states) - 1
    columns: dict[Column, Array] = {}
    for i in latest:
        if i > latest[0] - states:
            columns["register", at[i]] = run.states[i]
        columns["register", at[i] + 1] = unit[1 + i]
        columns |= {("draw", z): unit[1 + calls + z] for z in range(run.draws[i], run.draws[i + 1])}
    return columns


def _solve(target: Array, columns: dict[Column, Array]) -> dict[Column, float] | None:
    """Coefficients of as few columns as will do, the last ones dropped first, that give the target; None if none do."""
    found = _fit(target, columns)
    for key in reversed(columns) if found else ():
        fewer = {c: column for c, column in columns.items() if c != key}
        if fewer and (fit := _fit(target, fewer)):
            columns, found = fewer, fit
    return found


def _fit(target: Array, columns: Mapping[Column, Array]) -> dict[Column, float] | None:
    A = np.stack(list(columns.values()), axis=1)
    found = np.linalg.lstsq(A, target)[0]
    exact = np.abs(A @ found - target).max() <= EXACT * np.abs(target).max()
    return dict(zip(columns, found.tolist(), strict=True)) if exact else None


def _replay(program: Sequence[Instruction], inputs: Array, calls: int) -> Array:
    """The states and the sample of the program on the rows of `inputs`, as `_run` gives the scheduler's."""
    registers, states, outputs = {0: inputs[0]}, [], iter(inputs[1:])
    for i in program:
        if isinstance(i, Evaluate):
            states.append(registers[i.state])
            registers[i.out] = next(outputs)
        elif isinstance(i, Combine):
            parts = [c * registers[r] for c, r in i.terms] + [c * inputs[1 + calls + k] for c, k in i.noise]
            registers[i.out] = np.sum(parts, axis=0)
    return np.stack([*states, registers[program[-1].out]])
