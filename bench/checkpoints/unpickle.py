"""Networks in the pickles of EDM and EDM2, read without running anything in them.

Such a file is a pickle of a dict, whose "ema" is a network: an instance of a persistent class, as NVlabs call it in
torch_utils, which pickles as the source text of its module, its class's name and its attributes.  The official reader
runs that source.  This one takes the name, the constructor's arguments and the tensors, and runs nothing.
"""

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.errors import UsageError
from bench.pickles import (
    NUMPY,
    Array,
    Budget,
    Builders,
    Name,
    Stateful,
    Stream,
    called,
    empty_dict,
    read_next,
    read_pickle,
    shown,
)

ALONE = "a checkpoint holds class names, arguments and tensors alone"
VERSION = 6  # of persistent classes
FLEETING = "_non_persistent_buffers_set"  # names of buffers that a state dict leaves out
MAGIC, LEGACY = 0x1950A86A20F9469CFC6C, 1001  # of the files that torch.save wrote before zip archives
STORAGES = {"Double": "<f8", "Float": "<f4", "Half": "<f2", "Long": "<i8", "Int": "<i4"}
CONTAINERS = ("container.ModuleDict", "container.ModuleList", "container.Sequential", "linear.Identity")
MOST_ARGUMENTS, DEEPEST, LONGEST = 10_000, 32, 200  # values, levels of modules or arguments, letters of a name


@dataclass(frozen=True)
class Saved:
    """A persistent object of a pickle: its class, the keyword arguments that it was made with, and its tensors.

    `arguments` are numbers, texts, None, and lists, tuples and dicts of these; `tensors` are parameters and buffers by
    their state-dict names, such as "model.enc.32x32_conv.weight", in the file's precision.
    """

    class_name: str
    arguments: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read_network(path: Path, key: str = "ema") -> Saved:
    """The network, or other persistent object, that the pickle at `path` holds as `key`; raises UsageError."""
    view = _map(path)
    try:
        budget = Budget()
        data = read_pickle(view, BUILDERS | {"torch.storage._load_from_bytes": partial(_storage, budget)}, budget)
        if not isinstance(data, dict):
            raise UsageError(f"it holds {called(data)}, not a dict with {key!r} in it")
        if key not in data:
            raise UsageError(f"it holds no {key!r}, but {shown(', '.join(sorted(data)[:8])) or 'nothing'}")
        if not isinstance(found := data[key], _Module):
            raise UsageError(f"its {key!r} is {called(found)}, not a network")
        return _saved(found, len(view))
    except UsageError as error:
        raise UsageError(f"{path} is refused: {error}; {ALONE}") from error.__cause__


def _map(path: Path) -> memoryview:
    """The bytes of a file, which stay on the disk until they are looked at."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file: give a pickle of a network")
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError:  # from mmap alone
        raise UsageError(f"{path} is refused: it is empty; {ALONE}") from None


@dataclass(eq=False)
class _Module(Stateful):
    """Stands for an instance of a persistent class, or of one of torch's containers, with its attributes."""

    class_name: str
    state: dict[str, Any] | None = None

    def set_state(self, state: Any) -> None:
        if self.state is not None or not isinstance(state, dict):
            raise UsageError(f"it gives a {self.class_name} the state of {called(state)}, or one more")
        self.state = state

    def held(self, what: str) -> dict[str, Any]:
        """Its "_parameters", "_buffers" or "_modules" by name; none where it is no torch module."""
        found = (self.state or {}).get(what, {})
        if not isinstance(found, dict):
            raise UsageError(f"the {what} of {self.class_name} are {called(found)}")
        for name in found:
            if not name or "." in name or len(name) > LONGEST:
                raise UsageError(f"{shown(name)!r} is no name of a parameter or module")
        return found


def _persistent(meta: Any) -> _Module:
    if not isinstance(meta, dict) or meta.get("type") != "class" or meta.get("version") != VERSION:
        raise UsageError(f"it is no class of version {VERSION}")
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not name.isidentifier() or len(name) > LONGEST or not isinstance(state, dict):
        raise UsageError("it gives no name and state of a class")
    return _Module(name, state)


def _container(class_name: str) -> _Module:
    return _Module(class_name)


@dataclass(frozen=True, eq=False)
class _Storage:
    """Stands for a storage: numbers (n,), a view of the file's bytes."""

    numbers: NDArray[Any]


@dataclass(frozen=True, eq=False)
class _Tensor:
    """Stands for a tensor or parameter: a view of the file's bytes."""

    array: NDArray[Any]


def _storage(budget: Budget, data: Any) -> _Storage:
    """A storage as torch.save wrote it without zip: five pickles, then how many numbers, and the numbers."""
    if bytes(data[:2]) == b"PK":
        raise UsageError("it gives a zip archive, and no tensor of EDM is in one")
    stream = Stream(data)
    magic, version, system, about, keys = (read_next(stream, KINDS, budget, identified=True) for _ in range(5))
    match about:
        case ("storage", Name(name=kind), str() as key, str(), int() as count, None):
            dtype = np.dtype(STORAGES[kind.removeprefix("torch.").removesuffix("Storage")])
        case _:
            raise UsageError("it gives something else than a storage")
    little = isinstance(system, dict) and system.get("little_endian") is True
    if magic != MAGIC or version != LEGACY or not little or keys != [key]:
        raise UsageError("its storage is of another version of torch, or of a big-endian machine")
    declared, present = int.from_bytes(stream.read(8), "little"), len(stream.rest)
    if declared != count or present != count * dtype.itemsize:
        raise UsageError(f"it declares {count:,} numbers of {dtype.itemsize} bytes, and {present:,} bytes are there")
    return _Storage(np.frombuffer(stream.rest, dtype) if count else np.empty(0, dtype))


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: object, hooks: object, metadata: object = None
) -> _Tensor:
    """A view of a storage, once it is certain that all of it lies within."""
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise UsageError("it gives no storage, size and stride")
    whole = all(type(n) is int and 0 <= n < 2**48 for n in (offset, *size, *stride))
    if not whole or len(size) != len(stride) or len(size) > 8:
        raise UsageError("its size, stride or offset is none that tensors have")
    numbers, count = storage.numbers, math.prod(size)
    if not count:
        return _Tensor(np.empty(size, numbers.dtype))
    end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if max(count, end) > len(numbers):  # an expanded tensor has more numbers than its storage, and ends within
        raise UsageError(f"it asks for {max(count, end):,} numbers of a storage that holds {len(numbers):,}")
    steps = [n * numbers.itemsize for n in stride]
    return _Tensor(np.lib.stride_tricks.as_strided(numbers[offset:], size, steps, writeable=False))


def _parameter(data: Any, requires_grad: object, hooks: object) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise UsageError("it gives no tensor")
    return data


def _kind() -> None:
    raise UsageError("it is the name of a kind of storage")


KINDS: Builders = {f"torch.{kind}Storage": _kind for kind in STORAGES}
BUILDERS: Builders = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "dnnlib.util.EasyDict": empty_dict,
    "collections.OrderedDict": empty_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    **{f"torch.nn.modules.{name}": partial(_container, name.split(".")[1]) for name in CONTAINERS},
    **NUMPY,
}


def _saved(module: _Module, most: int) -> Saved:
    state = module.state or {}
    if state.get("_init_args", ()) != ():
        raise UsageError(f"its {module.class_name} was made with arguments that have no names")
    arguments = state.get("_init_kwargs")
    if not isinstance(arguments, dict):
        raise UsageError(f"its {module.class_name} does not say with which arguments it was made")
    return Saved(module.class_name, _Arguments().plain(arguments), _Tensors(most).of(module))


@dataclass
class _Tensors:
    """Gathers tensors from a tree of modules, of `most` bytes in all: no file's tensors are larger than the file."""

    most: int
    found: dict[str, Tensor] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)

    def of(self, module: _Module, prefix: str = "", depth: int = 0) -> Mapping[str, Tensor]:
        """All tensors of the module and those within it, by their state-dict names."""
        if id(module) in self.seen or depth > DEEPEST:
            raise UsageError(f"the module {shown(prefix)} stands in two places, or more than {DEEPEST} levels deep")
        self.seen.add(id(module))
        fleeting = _expect(f"{prefix}{FLEETING}", (module.state or {}).get(FLEETING, set()), set)
        buffers = {name: held for name, held in module.held("_buffers").items() if name not in fleeting}
        for name, held in (module.held("_parameters") | buffers).items():
            if held is not None:
                self.found[prefix + name] = self._copied(prefix + name, held)
        for name, inner in module.held("_modules").items():
            if inner is not None:
                self.of(_expect(prefix + name, inner, _Module), f"{prefix}{name}.", depth + 1)
        return self.found

    def _copied(self, name: str, held: Any) -> Tensor:
        array = _expect(name, held, _Tensor).array
        self.most -= array.nbytes
        if self.most < 0:
            raise UsageError(f"with {shown(name)} its tensors are larger than the file")
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def _expect(name: str, held: Any, kind: type) -> Any:
    if not isinstance(held, kind):
        wanted = kind.__name__.lstrip("_").lower()
        raise UsageError(f"{shown(name)} is {called(held)}, where a {wanted} should be")
    return held


@dataclass
class _Arguments:
    """Copies arguments, of which a pickle can nest exponentially many in few bytes."""

    left: int = MOST_ARGUMENTS

    def plain(self, value: Any, depth: int = 0) -> Any:
        """The value with nothing but numbers, texts, None, lists, tuples and dicts in it; raises UsageError."""
        self.left -= 1 + (value.array.size if isinstance(value, Array) else 0)
        if self.left < 0 or depth > DEEPEST:
            raise UsageError(f"its arguments are more than {MOST_ARGUMENTS:,} values, or nested {DEEPEST} levels deep")
        match value:
            case None | bool() | int() | float() | str():
                return value
            case list() | tuple():
                return type(value)(self.plain(v, depth + 1) for v in value)
            case dict():
                return {name: self.plain(v, depth + 1) for name, v in value.items()}
            case Array() if value.array.ndim <= 1 and value.array.dtype.kind in "fiub":
                return value.array.tolist()  # of a scalar, a number
            case _:
                raise UsageError(f"an argument is {called(value)}, neither number, text nor a list of these")
