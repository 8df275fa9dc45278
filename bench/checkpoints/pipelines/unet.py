"""Networks that are a UNet2DModel of diffusers, and what its config says of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bench.checkpoints.pipelines.files import Folder, Part
from bench.checkpoints.pipelines.schedule import labels
from bench.errors import UsageError
from solvers import EDM, Option, Schedule, VPDiscrete

UNET = "UNet2DModel"


class DiscreteUNet(nn.Module):
    """A UNet2DModel told of training labels, of which there are N: (x, t, y) -> its prediction, in x's dtype.

    Where it learned a variance too, in further channels, that is left out.
    """

    def __init__(self, model: Any, N: int) -> None:
        super().__init__()
        self.model = model
        self.N = N

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        out: Tensor = self.model(x.to(self.model.dtype), labels(t, self.N), y).sample
        return out[:, : x.shape[1]].to(x.dtype)


class ConsistencyUNet(nn.Module):
    """A consistency model: it predicts the data and, at the least noise `epsilon`, gives back its input.

    f(x, t) = c_skip x + c_out F(c_in x, 250 ln t).  Song et al. 2023, arXiv 2303.01469, Appendix C.
    """

    def __init__(self, model: Any, epsilon: float, sigma_data: float) -> None:
        super().__init__()
        self.model = model
        self.epsilon = epsilon
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        sigma, data = t.double(), self.sigma_data
        above, c_in = sigma - self.epsilon, (sigma**2 + data**2).rsqrt()
        c_skip, c_out = data**2 / (above**2 + data**2), data * above * c_in
        c_in, c_skip, c_out = (c.to(x.dtype)[:, None, None, None] for c in (c_in, c_skip, c_out))
        out = self.model((c_in * x).to(self.model.dtype), (250 * sigma.log()).float(), y).sample
        return c_skip * x + c_out * out.to(x.dtype)


def adapt(model: Any, schedule: Schedule, scheduler: Mapping[str, Any], where: Path) -> nn.Module:
    """The network of a model that was trained with this scheduler; raises UsageError where it is for neither kind."""
    given, made = model.config.in_channels, model.config.out_channels
    if isinstance(schedule, VPDiscrete) and made in (given, 2 * given):
        return DiscreteUNet(model, len(schedule.betas))
    if isinstance(schedule, EDM) and made == given:
        return ConsistencyUNet(model, schedule.sigma_min, float(scheduler.get("sigma_data", 0.5)))
    kind = scheduler.get("_class_name")
    raise UsageError(f"{where}: a {UNET} from {given} to {made} channels does not run under a {kind}")


def side(part: Part) -> tuple[int, int]:
    """Height and width of what the model was trained on; raises UsageError when its config does not say."""
    size = part.config.get("sample_size")
    both = size if isinstance(size, list) else [size, size]
    if len(both) != 2 or not all(isinstance(n, int) and n > 0 for n in both):
        raise UsageError(f"{part.folder / 'config.json'} says no sample_size, and {size!r} is none")
    return both[0], both[1]


def classes(part: Part, options: Mapping[str, Option]) -> tuple[tuple[float, ...], bool]:
    """The probability of each class, and whether there is a further label for none; raises UsageError.

    The option `classes` says how many there are, where the last of the model's embeddings stands for no class.
    """
    embedded = part.config.get("num_class_embeds") or 0
    if part.config.get("class_embed_type") is not None:
        raise UsageError(f"{part.folder}: class_embed_type={part.config['class_embed_type']!r} is no table of classes")
    given = int(options.get("classes", embedded))
    if given not in {embedded, max(embedded - 1, 0)}:
        raise UsageError(f"{part.folder}: classes={given}, and its embeddings are {embedded}")
    return (1 / given,) * given if given else (), given < embedded


def about(folder: Folder, network: nn.Module, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a pipeline; its scheduler as published, which says how a student is sampled."""
    commit = {"revision": folder.path.name} if folder.path.parent.name == "snapshots" else {}
    parameters = sum(p.numel() for p in network.parameters())
    return {"pipeline": folder.class_name, "parameters": parameters, "scheduler": dict(scheduler), **commit}
