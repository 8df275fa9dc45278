"""What scheduler_config.json says of the process a network was trained on: its schedule and what it predicts.

How it is sampled, which the file says too (spacing of the steps, clipping), is not the checkpoint's but the solver's.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from bench.errors import UsageError
from bench.metrics.weights import in_short
from solvers import EDM, RectifiedFlow, Schedule, VPDiscrete
from solvers.diffusers_record import Float64
from solvers.model import PREDICTION_TYPES, Prediction

BETAS = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps", "rescale_betas_zero_snr")
LEAST = 2.0**-24  # the last alpha_bar of betas rescaled to no signal, as diffusers has it
SNAP = 1e-3  # a float32 time is this near its label, and no grid has two times so near


def read_schedule(
    config: Mapping[str, Any], where: object, prediction: str | None = None, tokens: int | None = None
) -> tuple[Schedule, Prediction]:
    """The schedule and prediction type of a scheduler's config; `where` is named in errors.

    `prediction` replaces the type that the config states.  `tokens`, the length of the sequence that an image becomes,
    decides the shift of a flow that shifts dynamically.  Raises UsageError for what is not known.
    """
    class_name, stated = str(config.get("_class_name")), prediction or config.get("prediction_type")
    try:
        if class_name == "CMStochasticIterativeScheduler":
            return EDM(float(config.get("sigma_min", 0.002)), float(config.get("sigma_max", 80.0))), _data(
                stated, where
            )
        if class_name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
            return RectifiedFlow(_shift(config, tokens, where)), predicts(stated or "flow_prediction", where)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {class_name} cannot be made from it: {in_short(error)}") from error
    return _of_betas(class_name, config, stated, where)


def _of_betas(class_name: str, config: Mapping[str, Any], stated: object, where: object) -> tuple[Schedule, Prediction]:
    """The schedule of a scheduler's betas, computed as it does, but in float64."""
    scheduler = _scheduler(class_name, config, where)
    alpha_bar = scheduler.alphas_cumprod.double().numpy().copy()
    if config.get("rescale_betas_zero_snr"):
        alpha_bar[-1] = LEAST
    betas = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    if not ((betas > 0) & (betas < 1)).all():
        raise UsageError(f"{where}: its betas must lie between 0 and 1")
    return VPDiscrete(tuple(betas.tolist())), predicts(stated or scheduler.config.get("prediction_type"), where)


def predicts(stated: object, where: object) -> Prediction:
    """What a prediction type of diffusers is here; raises UsageError for one that it has not."""
    found = PREDICTION_TYPES.get(str(stated))
    if found is None:
        raise UsageError(f"{where}: prediction type {stated!r} is none of {', '.join(PREDICTION_TYPES)}")
    return found


def _data(stated: object, where: object) -> Prediction:
    """What a consistency model predicts; raises UsageError where something else is stated."""
    if stated not in (None, "sample"):
        raise UsageError(f"{where}: prediction type {stated!r}, and a consistency model predicts the sample")
    return "data"


def _scheduler(class_name: str, config: Mapping[str, Any], where: object) -> Any:
    """The scheduler itself, its betas in float64; raises UsageError for one that has no betas, or takes not these."""
    import diffusers  # seconds to import

    made = getattr(diffusers, class_name, None) if class_name.endswith("Scheduler") else None
    if made is None or config.get("timestep_type") == "continuous":
        raise UsageError(f"{where}: {class_name} is no scheduler whose noise levels are known here: betas or flows")
    try:
        with Float64():
            scheduler = made(**{k: config[k] for k in BETAS if k in config})
    except Exception as error:  # a scheduler's own code may fail in any way
        raise UsageError(f"{where}: {class_name} cannot be made from it: {in_short(error)}") from error
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UsageError(f"{where}: {class_name} has no betas, and it is no flow")
    return scheduler


def _shift(config: Mapping[str, Any], tokens: int | None, where: object) -> float:
    """The factor that a flow's times are shifted by; one that shifts dynamically does so by the number of tokens."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", config.get("flow_shift", 1.0)))
    if tokens is None:
        raise UsageError(f"{where}: its flow shifts with the resolution, which this pipeline does not say")
    short, long = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = low + (high - low) * (tokens - short) / (long - short)
    return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else float(mu)


def label_count(schedule: Schedule, where: object) -> int:
    """How many training labels there are; raises UsageError for a schedule without them, as a flow is."""
    if not isinstance(schedule, VPDiscrete):
        raise UsageError(f"{where}: its network is told training labels, and a {type(schedule).__name__} has none")
    return len(schedule.betas)


def labels(t: Tensor, N: int) -> Tensor:
    """Training labels n = t N - 1 of times t (B,) of a VPDiscrete of N betas, float32; whole ones exactly.

    Their derivative is N at whole ones too.
    """
    n = t.double() * N - 1
    off = n.round() - n
    return (n + off.where(off.abs() < SNAP, 0).detach()).float()
