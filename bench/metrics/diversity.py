"""How much samples differ from one another."""

import numpy as np
import torch
from torch import Tensor, nn

from bench.checkpoints.base import quantise
from bench.errors import UsageError
from bench.metrics.base import Context, Features, Metric, Value
from bench.metrics.comparison import Comparison, require
from bench.metrics.features import FIRST_IMAGES
from bench.metrics.gaussian import CHUNK
from bench.metrics.weights import digest_of, hub, in_short, read_state

LPIPS_FILES = {  # which torch-fidelity and torchvision read from torch hub's folder
    "weights-vgg16-lpips.pth": "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0",
    "vgg16-397923af.pth": "https://download.pytorch.org/models",
}
PASS = 32  # pairs of images a pass


class Diversity(Comparison):
    """Total variance of features, over the reference's: 1 is as diverse, less is poorer, more is noisier."""

    name, needs, better, asks_for = "diversity", "nothing", "neither", "gaussian"

    def evaluate(self, features: Features, plan_times: tuple[float, ...]) -> list[Value]:
        real = float(np.trace(self.reference.gaussian.covariance))
        if real == 0:
            raise UsageError("diversity: the features of the reference are all equal, so nothing can be compared")
        n, mean = len(features), features.mean(0, dtype=np.float64)
        squared = np.concatenate([((features[i : i + CHUNK] - mean) ** 2).sum(1) for i in range(0, n, CHUNK)])
        value = float(squared.sum() / (n - 1)) / real
        return [self.value(value, n, self.reference.source, influence=squared / real)]


class LPIPSDiversity(Metric):
    """Mean perceptual distance of random pairs of samples, 2i and 2i + 1, by torch-fidelity's LPIPS (VGG16).

    Zhang et al. 2018, arXiv 1801.03924.  Images are first made `side` pixels wide and high, as torch-fidelity does for
    perceptual path lengths; grey ones stand in all three channels.
    """

    name, needs, better = "lpips", "torch-fidelity's LPIPS weights", "neither"

    def __init__(self, context: Context, pairs: int = 1000, side: int = 64) -> None:
        require(self.name, "pairs", pairs, 2)
        require(self.name, "side", side, 16)
        if pairs > FIRST_IMAGES // 2:
            raise UsageError(f"metric 'lpips': pairs={pairs}: give {FIRST_IMAGES // 2} or fewer")
        super().__init__(context, "first_pixels")
        self.pairs = pairs
        self.network, digests = context.shared((LPIPSDiversity, side), lambda: lpips(side, context.device))
        self.settings = f"lpips vgg16 {digests} at {side}x{side}"

    @property
    def identity(self) -> str:
        return f"{super().identity}, {self.settings}"

    @classmethod
    def missing(cls) -> str | None:
        lacks = [name for name in LPIPS_FILES if not (hub() / "checkpoints" / name).is_file()]
        return f"{' and '.join(lacks)} in {hub() / 'checkpoints'}" if lacks else None

    def check(self, samples: int) -> None:
        if samples < 4:
            raise UsageError(f"lpips: {samples} samples are fewer than two pairs: take 4 or more")

    @torch.inference_mode()
    def evaluate(self, features: Features, plan_times: tuple[float, ...]) -> list[Value]:
        count = min(self.pairs, len(features) // 2)
        images = torch.from_numpy(quantise(torch.from_numpy(features[: 2 * count])))
        pairs = images.reshape(count, 2, *self.context.checkpoint.image_shape).expand(-1, -1, 3, -1, -1)
        found = torch.cat([self._distances(some) for some in pairs.split(PASS)]).cpu().numpy().astype(np.float64)
        source = {"data": "none"}
        return [self.value(found.mean(), 2 * count, source, influence=found - found.mean(), settings=self.settings)]

    def _distances(self, pairs: Tensor) -> Tensor:
        """LPIPS of each of some pairs of bytes, (n, 2, 3, H, W)."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # a GPU would round factors to 10 bits
            distances: Tensor = self.network(*pairs.to(self.context.device).unbind(1))
        return distances.flatten()


def lpips(side: int, device: torch.device) -> tuple[nn.Module, str]:
    """The network and its weights' digests; raises UsageError when they are not there or not what they should be."""
    from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS

    paths = {name: hub() / "checkpoints" / name for name in LPIPS_FILES}
    for name, path in paths.items():
        if not path.is_file():
            raise UsageError(f"lpips needs {name} in {path.parent}; it is at {LPIPS_FILES[name]}; diversity needs none")
        read_state(path)  # first, since the packages would unpickle whatever is in it
    try:
        network = SampleSimilarityLPIPS("lpips-vgg16", sample_similarity_resize=side)
    except (RuntimeError, KeyError) as error:
        raise UsageError(f"{' or '.join(map(str, paths.values()))} holds another network: {in_short(error)}") from error
    return network.to(device), " ".join(digest_of(path)[:12] for path in paths.values())
