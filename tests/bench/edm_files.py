"""Files in the format that NVlabs/edm and NVlabs/edm2 publish, written by pickle and torch themselves."""

import pickle
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

BUFFERS = ("resample_filter", "freqs", "phases", "u")  # the official networks' buffers; the rest are parameters
SOURCE = "raise SystemExit('the source in a checkpoint was run')  # the official loader runs this text"


class EasyDict(dict[str, Any]):
    """Stands for dnnlib.util.EasyDict, which pickles as any subclass of dict does."""


def _reconstruct_persistent_obj(meta: object) -> None:
    """Stands for torch_utils.persistence's, of which a file holds the name alone."""


class Persistent:
    """Pickles as an instance of a persistent class does: by the reconstructing function's name, with its source."""

    def __init__(self, class_name: str, arguments: Mapping[str, Any], source: str = SOURCE) -> None:
        super().__init__()
        self._init_args, self._init_kwargs = (), dict(arguments)
        self._class_name, self._source = class_name, source

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name not in ("_class_name", "_source")}
        about = {"type": "class", "version": 6, "module_src": self._source, "class_name": self._class_name}
        return _reconstruct_persistent_obj, (about | {"state": state},), None


class PersistentModule(Persistent, nn.Module):
    """The same of a network."""


@contextmanager
def published_names() -> Iterator[None]:
    """While this lasts, pickle finds the two stand-ins under the names that the published files hold."""
    homes = {
        "dnnlib": ("dnnlib.util", EasyDict),
        "torch_utils": ("torch_utils.persistence", _reconstruct_persistent_obj),
    }
    own = [thing.__module__ for _, thing in homes.values()]
    for package, (module, thing) in homes.items():
        sys.modules |= {package: ModuleType(package), module: ModuleType(module)}
        setattr(sys.modules[module], thing.__name__, thing)
        thing.__module__ = module
    try:
        yield
    finally:
        for (package, (module, thing)), home in zip(homes.items(), own, strict=True):
            thing.__module__ = home
            del sys.modules[package], sys.modules[module]


def edm_module(
    class_name: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], buffers: Collection[str] = BUFFERS
) -> PersistentModule:
    """A tree of modules that holds these tensors under their state-dict names; `enc` and `dec` are ModuleDicts."""
    root = PersistentModule(class_name, arguments)
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        module: nn.Module = root
        for part in path:
            if part not in module._modules:
                inner = nn.ModuleDict() if part in ("enc", "dec") else PersistentModule("Inner", {})
                module.add_module(part, inner)
            module = module.get_submodule(part)
        if last in buffers:
            module.register_buffer(last, tensor)
        else:
            module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
    return root.eval().requires_grad_(False)


def write_edm_pickle(
    path: Path,
    class_name: str,
    arguments: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    encoder: Persistent | None = None,
    half: bool = False,
) -> Path:
    """Write what `pickle.dump` of the official training loops writes: EDM's dict, or EDM2's with an encoder and `half`.

    `class_name` and `arguments` are the outer network's ("EDMPrecond", its keyword arguments with model_type), and the
    tensors stand under state-dict names ("model.enc.32x32_conv.weight").
    """
    network = edm_module(class_name, arguments, tensors)
    options = {"class_name": "training.dataset.ImageFolderDataset", "path": "images.zip", "use_labels": True}
    if encoder is None:
        data = {"ema": network, "loss_fn": Persistent("EDMLoss", {}), "augment_pipe": None, "dataset_kwargs": options}
    else:
        data = EasyDict(encoder=encoder, dataset_kwargs=EasyDict(options), loss_fn=Persistent("EDM2Loss", {}))
        data["ema"] = network
    if half:
        network.to(torch.float16)
    with published_names(), path.open("wb") as file:
        pickle.dump(data, file, protocol=4)
    return path
