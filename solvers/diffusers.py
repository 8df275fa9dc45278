"""A plan as a scheduler of the diffusers library, for any of its pipelines.

One step is one network call, so `num_inference_steps` is the budget.  What the network is told of the time is what
diffusers' own schedulers tell it:
    VP               label n = t N - 1, where N is num_train_timesteps: t = (n + 1)/N is VPDiscrete's node n
    rectified flow   t N
    EDM              log(sigma)/4, with the input, output and skip scalings of Karras et al. 2022 around the network
Labels are integers where all of them are whole, as on the grids leading, linspace and trailing, which a network with a
table of embeddings needs; on other grids they are float32 numbers between the whole ones.
"""

from collections import Counter
from itertools import product
from math import hypot
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

import solvers
from solvers.coefficient import Pixelwise
from solvers.execute import threshold
from solvers.grid import GRIDS, make_grid
from solvers.model import PREDICTION_TYPES, column, conversion
from solvers.plan import ONES, Combine, Evaluate, Instruction, Plan
from solvers.schedule import EDM, Array, RectifiedFlow, Schedule, VPDiscrete


class PlanScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Runs a plan, given as its JSON, on a network of this prediction type.

    For EDM the type says how the network is scaled, as in EDMEulerScheduler: "epsilon" or "v_prediction".
    `use_flow_sigmas` tells the pipelines of flows not to pass sigmas of their own.
    """

    _compatibles: list[str] = []  # noqa: RUF012  # diffusers reads it on the class
    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        plan: str,
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
        sigma_data: float = 0.5,
        use_flow_sigmas: bool = False,
    ) -> None:
        self._given = Plan.from_json(plan)
        accepted = ("epsilon", "v_prediction") if isinstance(self._given.schedule, EDM) else tuple(PREDICTION_TYPES)
        if prediction_type not in accepted:
            raise ValueError(f"prediction_type={prediction_type!r} is none of {', '.join(accepted)}")
        self._prediction_type = prediction_type
        self._train = num_train_timesteps
        self._sigma_data = sigma_data
        self.set_timesteps(self._given.nfe)

    def __len__(self) -> int:
        return self._train

    @property
    def init_noise_sigma(self) -> float:
        """What standard normal noise is multiplied by to be the first state that the network is called at."""
        return self.plan.schedule.prior_std(self.plan.times[0]) * _scale(self.plan)

    @property
    def begin_index(self) -> int:
        return self._begin

    @property
    def step_index(self) -> int:
        """The number of the step to come, among the timesteps."""
        return self._begin + self._calls

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None, mu: float | None = None
    ) -> None:
        """Start anew with so many calls: the plan as it was given or, on a grid with a name, its like.

        `mu`, which the pipelines of flows pass, is not used: a plan's times are those it was made with.  Raises
        ValueError when there is no plan of so many calls.
        """
        given = self._given
        self._whole = given if num_inference_steps == given.nfe else _of_budget(given, num_inference_steps)
        self._start(self._whole, 0)
        labels = _labels(self.plan.schedule, np.array([i.t for i in self._evaluates]), self._train)
        whole = np.abs(labels - labels.round()).max() < 1e-6 and not isinstance(self.plan.schedule, EDM)
        exact = torch.from_numpy(labels.round() if whole else labels)
        self.timesteps = exact.to(torch.int64 if whole else torch.float32).to(device)  # some devices lack float64
        self.num_inference_steps = num_inference_steps

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this step, without the history that a multistep method would have: its plan on the times from there.

        Raises ValueError where the method cannot start at that call.
        """
        self._start(_from_call(self._whole, begin_index) if begin_index else self._whole, begin_index)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The network's input at the current step: the sample, scaled where the schedule is EDM's."""
        if not isinstance(self.plan.schedule, EDM):
            return sample
        return sample / hypot(self._evaluates[self._calls].t, self._sigma_data)

    @torch.no_grad()
    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The next state to call the network at, or the sample; steps are counted, so `timestep` is not looked at."""
        if self._calls == self.plan.nfe:
            raise ValueError(f"all {self.plan.nfe} calls of this plan are made: set_timesteps starts a new run")
        if self._calls == 0:
            self._registers[0] = sample / _scale(self.plan)
            self._advance(generator)
        call = self._evaluates[self._calls]
        self._registers[call.state] = sample  # a pipeline may have changed it
        self._registers[call.out] = self._prediction(model_output.to(sample.dtype), sample, call.t)
        self._drop()
        self._calls += 1
        x = self._registers[self._advance(generator)]
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma eps at these timesteps, one for all samples or one each."""
        t = _times(self.plan.schedule, timesteps.double().cpu().numpy(), self._train)
        alpha, sigma = self.plan.schedule.alpha(t), self.plan.schedule.sigma(t)
        return column(alpha, original_samples) * original_samples + column(sigma, original_samples) * noise

    def _start(self, plan: Plan, begin: int) -> None:
        """Before the first call of the plan, which is the pipeline's step `begin`; nothing is kept of another run."""
        self.plan = plan
        self._evaluates = _evaluates(plan)
        self._begin, self._calls, self._position = begin, 0, 0
        self._registers: dict[int, Tensor] = {}
        self._drawn: dict[int, Tensor] = {}
        uses = Counter(k for i in plan.instructions if isinstance(i, Combine) for _, k in i.noise)
        self._reused = {k for k, n in uses.items() if n > 1}

    def _advance(self, generator: torch.Generator | list[torch.Generator] | None) -> int:
        """Run up to the next call; the register that it reads or, after the last one, that of the sample."""
        some = next(iter(self._registers.values()))

        def draw(k: int) -> Tensor:
            z = self._drawn.get(k)
            if z is None:
                z = randn_tensor(some.shape, generator=generator, device=some.device, dtype=some.dtype)
            if k in self._reused:
                self._drawn[k] = z
            return z

        for instruction in self.plan.instructions[self._position :]:
            if isinstance(instruction, Evaluate):
                return instruction.state
            if isinstance(instruction, Combine):
                known = self._registers | {ONES: torch.ones_like(some)}
                (c, y), *rest = [(c, known[r]) for c, r in instruction.terms] + [
                    (c, draw(k)) for c, k in instruction.noise
                ]
                x = y * (c.to(y.dtype, y.device) if isinstance(c, Pixelwise) else c)
                for c, y in rest:
                    x = x.addcmul_(y, c.to(y.dtype, y.device)) if isinstance(c, Pixelwise) else x.add_(y, alpha=c)
            else:
                x = threshold(self._registers[instruction.register], instruction.rule)
            self._registers[instruction.out] = x
            self._drop()
        return self.plan.instructions[-1].out

    def _drop(self) -> None:
        """Forget the registers that die with the instruction at hand, and go on to the next."""
        for register in self.plan.dies[self._position]:
            del self._registers[register]
        self._position += 1

    def _prediction(self, output: Tensor, x: Tensor, t: float) -> Tensor:
        """The network's output as what the plan works in."""
        schedule, s = self.plan.schedule, self._sigma_data
        source = "data" if isinstance(schedule, EDM) else PREDICTION_TYPES[self._prediction_type]
        if source == self.plan.predicts and not isinstance(schedule, EDM):
            return output
        A, B = conversion(source, self.plan.predicts, float(schedule.alpha(t)), float(schedule.sigma(t)))
        if isinstance(schedule, EDM):  # x_0 = c_skip x + c_out F(c_in x).  Karras et al. 2022, Eq. (7) and Table 1
            c_skip, c_out = (s / hypot(t, s)) ** 2, t * s / hypot(t, s)
            A, B = A * c_out * (1 if self._prediction_type == "epsilon" else -1), B + A * c_skip
        return torch.add(A * output, x, alpha=B)


def to_diffusers(plan: Plan, prediction_type: str | None = None, sigma_data: float = 0.5) -> PlanScheduler:
    """The plan as a scheduler, for a network of this prediction type: "flow_prediction" in a flow, else "epsilon"."""
    if not isinstance(plan, Plan):
        raise ValueError(f"{plan.method} is no plan: its steps depend on the states, and a scheduler's are fixed")
    if any(isinstance(i, Combine) and i.noise for i in _head(plan)):
        raise ValueError(f"{plan.method} adds noise before its first call, which no pipeline does")
    flow = isinstance(plan.schedule, RectifiedFlow)
    prediction = prediction_type or ("flow_prediction" if flow else "epsilon")
    train = len(plan.schedule.betas) if isinstance(plan.schedule, VPDiscrete) else 1000
    scheduler: PlanScheduler = PlanScheduler(plan.to_json(), prediction, train, sigma_data, flow)
    return scheduler


def _evaluates(plan: Plan) -> list[Evaluate]:
    return [i for i in plan.instructions if isinstance(i, Evaluate)]


def _head(plan: Plan) -> tuple[Instruction, ...]:
    """What is done before the first call."""
    return plan.instructions[: plan.instructions.index(_evaluates(plan)[0])]


def _scale(plan: Plan) -> float:
    """The first state that the network is called at, as a multiple of x_T: only an analytical first step makes one."""
    scales = {0: 1.0}
    for i in _head(plan):
        if isinstance(i, Combine):
            if any(isinstance(c, Pixelwise) for c, _ in i.terms):
                raise ValueError(f"{plan.method} makes its first state pixel by pixel, which no pipeline does")
            scales[i.out] = sum(c * scales[r] for c, r in i.terms if not isinstance(c, Pixelwise))
    return scales[_evaluates(plan)[0].state]


def _labels(schedule: Schedule, t: Array, N: int) -> Array:
    """What the network is told of the times t."""
    if isinstance(schedule, EDM):
        return np.log(t) / 4
    return t * N if isinstance(schedule, RectifiedFlow) else t * N - 1


def _times(schedule: Schedule, labels: Array, N: int) -> Array:
    """The times of these labels: the inverse of `_labels`."""
    if isinstance(schedule, EDM):
        return np.asarray(np.exp(4 * labels))
    return labels / N if isinstance(schedule, RectifiedFlow) else (labels + 1) / N


def _own_times(plan: Plan) -> tuple[float, ...]:
    """The grid that the plan was made on: without the end that denoise_to_zero adds."""
    return plan.times[:-1] if dict(plan.options).get("denoise_to_zero") else plan.times


def _rebuilt(plan: Plan, **where: Any) -> Plan:
    found = solvers.method(plan.method).build(plan.schedule, options=dict(plan.options), **where)
    assert isinstance(found, Plan)
    return found


def _of_budget(plan: Plan, nfe: int) -> Plan:
    """The same method on the grid of the same name for another budget; raises ValueError when the grid has none."""
    if plan.method.startswith("diffusers:"):
        return _rebuilt(plan, nfe=nfe)
    times = _own_times(plan)
    starts, ends = (None, times[0]), (None, times[-1] or None)  # None: where the grid itself starts and ends
    for name, t_start, t_end in product(GRIDS, starts, ends):
        try:
            same = make_grid(name, plan.schedule, len(times) - 1, t_start, t_end).times == times
        except ValueError:  # a grid for another schedule
            continue
        if same:
            return _rebuilt(plan, nfe=nfe, grid=name, t_start=t_start, t_end=t_end)
    raise ValueError(
        f"this plan makes {plan.nfe} calls at times of its own: pass num_inference_steps={plan.nfe}, or make the "
        f"scheduler from a plan of {nfe}"
    )


def _from_call(plan: Plan, k: int) -> Plan:
    """The same method on the times from its call k on; raises ValueError where it makes other calls than these."""
    calls, times = [i.t for i in _evaluates(plan)], _own_times(plan)
    if not plan.method.startswith("diffusers:") and k < len(calls) and calls[k] in times[:-1]:
        found = _rebuilt(plan, times=times[times.index(calls[k]) :])
        if [i.t for i in _evaluates(found)] == calls[k:]:
            return found
    raise ValueError(f"{plan.method} cannot start at call {k} of its {len(calls)}")
