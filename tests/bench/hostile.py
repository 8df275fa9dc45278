"""Pickles that do harm in other readers: some touch a file called `proof`, others would take all memory or time."""

import io
import os
import pickle
import shlex
import struct
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.bench import edm_files

MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save before zip archives
ONE = np.float32([1]).tobytes()

# Reads each file that it is given, in the file's folder, with pickle itself, as the official loaders do.
OTHER_READER = """
import copyreg, os, pickle, sys, types
for name in ("dnnlib", "dnnlib.util", "torch_utils", "torch_utils.persistence"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["dnnlib.util"].EasyDict = type("EasyDict", (dict,), {})
sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = lambda meta: exec(meta["module_src"], {})
copyreg.add_extension("os", "system", 240)
for path in sys.argv[1:]:
    os.chdir(os.path.dirname(path))
    sys.path[0] = os.getcwd()
    sys.modules.pop("evil", None)
    try:
        with open(path, "rb") as file:
            pickle.load(file)
    except BaseException as error:
        print(path, type(error).__name__, error)
"""


class Call:
    """Pickles as a call of a function, which a reader makes."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def whole(*instructions: bytes) -> bytes:
    return b"\x80\x04" + b"".join(instructions) + b"."


def touch(folder: Path) -> str:
    return f"touch {shlex.quote(str(folder / 'proof'))}"


def python(folder: Path) -> str:
    return f"open({str(folder / 'proof')!r}, 'w').close()"


def script(folder: Path, file: str) -> Path:
    """A module in the folder that touches the proof when it is run, and has an entry for torch.hub."""
    (folder / file).write_text(f"{python(folder)}\ndef entry(): pass\n")
    return folder / file


def torch_file(thing: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def network(parameters: Mapping[str, object] | None = None, **parts: object) -> Call:
    """What stands for a network in a published file, with anything in place of its parts."""
    state = {"_parameters": parameters or {}, "_buffers": {}, "_modules": {}}
    state |= {"_init_args": (), "_init_kwargs": {"img_resolution": 8}}
    state |= {part: value for part, value in parts.items() if part in state}
    about = {"type": "class", "version": 6, "module_src": "", "class_name": "EDMPrecond", "state": state}
    return Call(
        edm_files._reconstruct_persistent_obj, about | {part: value for part, value in parts.items() if part in about}
    )


def file(ema: object) -> bytes:
    """A published file with this network, as pickle writes it."""
    with edm_files.published_names():
        return pickle.dumps({"ema": ema}, 4)


def file_with(argument: bytes) -> bytes:
    """A published file whose network was made with an argument that these instructions build."""
    state = b"}" + text("_init_kwargs") + b"}" + text("argument") + argument + b"ss"
    about = text("type") + text("class") + text("version") + b"K\x06" + text("class_name") + text("EDMPrecond")
    meta = b"}(" + about + text("state") + state + b"u"
    made = call(name("torch_utils.persistence", "_reconstruct_persistent_obj"), meta)
    return whole(b"}", text("ema"), made, b"s")


def archive(count: int, data: bytes, declared: int | None = None, kind: str = "Float", first: object = MAGIC) -> bytes:
    """A storage as torch.save writes it for a tensor in a pickle, with any count of numbers and any first pickle."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    numbers = pickle.dumps(count, 2)[2:-1]
    about = b"\x80\x02(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text("0") + text("cpu") + numbers
    parts = [pickle.dumps(part, 2) for part in (first, 1001, system)] + [about + b"NtQ.", pickle.dumps(["0"], 2)]
    return b"".join(parts) + struct.pack("<q", count if declared is None else declared) + data


def tensor(data: object = None, offset: object = 0, size: object = (1,), stride: object = (1,)) -> Call:
    """What stands for a tensor in a published file, of any bytes: left out, those of the number 1."""
    storage = Call(torch.storage._load_from_bytes, archive(1, ONE) if data is None else data)
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


@dataclass(frozen=True)
class Hostile:
    """How to write a file in a folder of its own, what its refusal names, and whether other readers touch the proof."""

    make: Callable[[Path], bytes]
    says: str
    runs: bool = True


def _getattr(folder: Path) -> bytes:
    os_ = call(name("builtins", "__import__"), text("os"))
    return whole(call(call(name("builtins", "getattr"), os_, text("system")), text(touch(folder))))


def _attrgetter(folder: Path) -> bytes:
    os_ = call(name("importlib", "import_module"), text("os"))
    return whole(call(call(call(name("operator", "attrgetter"), text("system")), os_), text(touch(folder))))


def _hub(folder: Path) -> bytes:
    """functools.partial(torch.hub.load, folder, "entry", source="local")(), the partial by NEWOBJ_EX."""
    script(folder, "hubconf.py")
    made = b"(h\x00" + text(str(folder)) + text("entry") + b"t}" + text("source") + text("local") + b"s\x92"
    return whole(name("torch.hub", "load"), b"\x94", name("functools", "partial"), made, b")R")


def _numpy(folder: Path) -> bytes:
    np.save(folder / "objects.npy", np.array([Call(os.system, touch(folder))], dtype=object))
    return whole(call(name("numpy", "load"), text(str(folder / "objects.npy")), b"N", b"\x88"))


def _import(folder: Path) -> bytes:
    script(folder, "evil.py")
    return whole(call(name("importlib", "import_module"), text("evil")))


def _setstate(folder: Path) -> bytes:
    """A dict that is given os.system for its __setstate__, and then a state."""
    given = b"}" + text("__setstate__") + name("os", "system") + b"sb"
    return whole(call(name("collections", "OrderedDict")), given, text(touch(folder)), b"b")


CODE: dict[str, Hostile] = {  # what other readers run
    "os.system": Hostile(lambda f: file(Call(os.system, touch(f))), "import posix.system"),
    "eval": Hostile(lambda f: whole(call(name("builtins", "eval"), text(python(f)))), "import builtins.eval"),
    "exec": Hostile(lambda f: whole(call(name("builtins", "exec"), text(python(f)))), "import builtins.exec"),
    "open": Hostile(lambda f: file(Call(open, str(f / "proof"), "w")), "io.open"),
    "subprocess": Hostile(
        lambda f: file(Call(subprocess.call, ["touch", str(f / "proof")])), "import subprocess.call"
    ),
    "getattr": Hostile(_getattr, "import builtins.getattr"),
    "partial": Hostile(
        lambda f: whole(call(call(name("functools", "partial"), name("os", "system"), text(touch(f))))),
        "import functools.partial",
    ),
    "attrgetter": Hostile(_attrgetter, "import operator.attrgetter"),
    "import": Hostile(_import, "import importlib.import_module"),
    "run_path": Hostile(
        lambda f: whole(call(name("runpy", "run_path"), text(str(script(f, "evil.py"))))), "import runpy.run_path"
    ),
    "torch.hub": Hostile(_hub, "import torch.hub.load"),
    "torch.load": Hostile(
        lambda f: file(Call(torch.load, io.BytesIO(torch_file(Call(os.system, touch(f)))))),
        "import torch.serialization.load",
        runs=False,  # nor does torch itself, since it reads tensors alone unless it is told otherwise
    ),
    "numpy.load": Hostile(_numpy, "import numpy.load"),
    "a name with dots": Hostile(
        lambda f: whole(call(name("shutil", "os.system"), text(touch(f)))), "import shutil.os.system"
    ),
    "a name with a line": Hostile(
        lambda f: whole(call(name("os\n\x1b[2J", "system"), text(touch(f)))), r"'os\n\x1b[2J.system'", runs=False
    ),
    "protocol 0": Hostile(lambda f: f"cos\nsystem\n(V{touch(f)}\ntR.".encode(), "import os.system"),
    "INST": Hostile(lambda f: whole(b"(" + text(touch(f)) + b"ios\nsystem\n"), "import os.system"),
    "OBJ": Hostile(lambda f: whole(b"(" + name("os", "system") + text(touch(f)) + b"o"), "import os.system"),
    "OBJ of a dict": Hostile(lambda f: whole(b"(" + name("collections", "OrderedDict") + b"o"), "OBJ", runs=False),
    "EXT1": Hostile(lambda f: whole(call(b"\x82\xf0", text(touch(f)))), "instruction EXT1"),
    "PERSID": Hostile(lambda f: f"P{touch(f)}\n.".encode(), "instruction PERSID", runs=False),
    "BINPERSID": Hostile(lambda f: whole(text(touch(f)), b"Q"), "instruction BINPERSID", runs=False),
    "NEWOBJ_EX": Hostile(
        lambda f: whole(name("collections", "OrderedDict"), b")}\x92"), "instruction NEWOBJ_EX", runs=False
    ),
    "__setstate__": Hostile(_setstate, "import os.system"),
    "in an argument": Hostile(
        lambda f: file(network(_init_kwargs={"sigma_data": Call(os.system, touch(f))})), "import posix.system"
    ),
    "in a tensor's size": Hostile(
        lambda f: file(network({"w": tensor(size=Call(os.system, touch(f)))})), "import posix.system"
    ),
    "in a tensor's bytes": Hostile(
        lambda f: file(network({"w": tensor(archive(1, ONE, first=Call(os.system, touch(f))))})),
        "it calls torch.storage._load_from_bytes: it tries to import posix.system",
    ),
    "in a zip of a tensor": Hostile(
        lambda f: file(network({"w": tensor(torch_file(Call(os.system, touch(f))))})), "gives a zip archive"
    ),
    "after the end": Hostile(
        lambda f: whole(b"}") + file(Call(os.system, touch(f))), "bytes after its end", runs=False
    ),
}  # fmt: skip


# A tuple of the one before it, twice, 60 times: 2^60 of the first.
DOUBLED = b")\x94" + b"".join(b"h%c\x86\x94" % k for k in range(60))


def _zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("archive/data/0", bytes(2**26))
    return file(network({"w": tensor(buffer.getvalue())}))


def _ring() -> bytes:
    ring = nn.ModuleDict()
    ring._modules["again"] = ring
    return file(network(_modules={"model": ring}))


def _chain() -> bytes:
    chain = nn.ModuleDict()
    for _ in range(40):
        chain = nn.ModuleDict({"next": chain})
    return file(network(_modules={"model": chain}))


def _views() -> bytes:
    """A hundred tensors in one storage."""
    one = Call(torch.storage._load_from_bytes, archive(10_000, bytes(40_000)))
    made = (torch._utils._rebuild_tensor_v2, one, 0, (10_000,), (1,), False, {})
    return file(network({f"w{k}": Call(*made) for k in range(100)}))


def _numbers(**parts: object) -> bytes:
    return file(network({"w": tensor(**parts)}))


def _empty_arrays() -> bytes:
    """An array of no numbers, which as a list would be a thousand million empty ones."""
    array = call(name("numpy.core.multiarray", "_reconstruct"), b"N", b"N", b"N")
    dtype = call(name("numpy", "dtype"), text("f8"))
    return file_with(array + b"(K\x01(J" + struct.pack("<i", 10**9) + b"K\x00t" + dtype + b"\x89C\x00tb")


MODULES = name("torch.nn.modules.container", "ModuleDict")
BAD: dict[str, tuple[Callable[[], bytes], str]] = {  # what takes all memory or time, or means nothing
    "memo": (lambda: whole(b"Nr" + struct.pack("<I", 2**31 - 1)), "as number 2,147,483,647 where number 0 is next"),
    "bytes": (lambda: whole(b"\x8e" + struct.pack("<Q", 2**45)), "not all of one: expected 35184372088832 bytes"),
    "bytearray": (lambda: whole(b"\x96" + struct.pack("<Q", 2**45)), "not all of one: expected 35184372088832 bytes"),
    "frame": (lambda: whole(b"\x95" + struct.pack("<Q", 2**60) + b"}"), "it holds no 'ema', but nothing"),
    "long": (lambda: whole(b"\x8b" + struct.pack("<I", 2**31 - 1)), "not all of one: not enough data"),
    "digits": (lambda: b"I" + b"9" * 1_000_000 + b"\n.", "no pickle, or not all of one"),
    "instructions": (lambda: b"]" * 500_001, "more than 500,000 instructions"),
    "deep": (lambda: file_with(b"]" * 100_000 + b"a" * 99_999), "nested 32 levels deep"),
    "doubled": (lambda: file_with(DOUBLED), "more than 10,000 values"),
    "doubled key": (lambda: file_with(b"}" + DOUBLED + b"Ns"), "it uses a tuple as a name or key"),
    "doubled element": (lambda: file_with(b"\x8f(" + DOUBLED + b"\x90"), "it uses a tuple as a name or key"),
    "empty arrays": (_empty_arrays, "an argument is an array"),
    "pointers": (lambda: file(Call(np.ndarray, (1,), np.dtype(object), b"\x10" * 8)), "it calls numpy.ndarray"),
    "objects": (lambda: file(np.array([None, 1])), "array of objects, whose bytes would be pointers"),
    "zip bomb": (_zip_bomb, "gives a zip archive"),
    "more than there is": (lambda: _numbers(data=archive(2**40, ONE)), "declares 1,099,511,627,776 numbers of 4 bytes"),
    "another count": (lambda: _numbers(data=archive(1, ONE, 2)), "declares 1 numbers"),
    "a kind": (lambda: _numbers(data=archive(1, ONE, kind="Bool")), "import torch.BoolStorage"),
    "another magic": (lambda: _numbers(data=archive(1, ONE, first=1)), "of another version of torch"),
    "expanded": (lambda: _numbers(size=(10**12,), stride=(0,)), "asks for 1,000,000,000,000 numbers of a storage that"),
    "offset": (lambda: _numbers(offset=1), "asks for 2 numbers of a storage that holds 1"),
    "stride": (lambda: _numbers(data=archive(2, ONE * 2), size=(2,), stride=(7,)), "asks for 8 numbers"),
    "backwards": (lambda: _numbers(offset=1, stride=(-1,)), "none that tensors have"),
    "no numbers": (lambda: _numbers(size=(True,)), "none that tensors have"),
    "two axes": (lambda: _numbers(size=(1, 1)), "none that tensors have"),
    "text for bytes": (lambda: _numbers(data="bytes"), "_load_from_bytes: it gives what this does not take"),
    "views": (_views, "its tensors are larger than the file"),
    "ring": (_ring, "the module model.again. stands in two places"),
    "chain": (_chain, "32 levels deep"),
    "state of a dict": (lambda: whole(call(name("collections", "OrderedDict")) + b"}b"), "it fills a dict as if"),
    "no state": (lambda: whole(MODULES + b")\x81Nb"), "it gives a ModuleDict the state of None"),
    "two states": (lambda: whole(MODULES + b")\x81}b}b"), "it gives a ModuleDict the state of a dict, or one more"),
    "version": (lambda: file(network(version=7)), "it is no class of version 6"),
    "a function": (lambda: file(network(type="func")), "it is no class of version 6"),
    "class name": (lambda: file(network(class_name="os.system")), "it gives no name and state of a class"),
    "arguments": (lambda: file(network(_init_args=(8, 3))), "made with arguments that have no names"),
    "no arguments": (lambda: file(network(_init_kwargs=None)), "does not say with which arguments it was made"),
    "a class as argument": (lambda: file_with(name("collections", "OrderedDict")), "argument is collections.Ord"),
    "a list as weights": (lambda: file(network({"w": [1.0]})), "w is a list, where a tensor should be"),
    "a tensor as module": (lambda: file(network(_modules={"m": tensor()})), "m is a tensor, where a module should be"),
    "a dotted name": (lambda: file(network({"model.w": tensor()})), "'model.w' is no name of a parameter"),
    "weights in a list": (lambda: file(network(_buffers=[1])), "the _buffers of EDMPrecond are a list"),
    "a call of text": (lambda: whole(text("os.system") + b")R"), "it calls a str with a tuple"),
    "a number for a key": (lambda: whole(b"}K\x01Ns"), "it uses an int as a name or key"),
    "a dict alone": (lambda: pickle.dumps({"net": 1}), "it holds no 'ema', but net"),
    "a list alone": (lambda: pickle.dumps([1]), "it holds a list, not a dict with 'ema' in it"),
    "not a network": (lambda: pickle.dumps({"ema": {}}), "its 'ema' is a dict, not a network"),
    "two ends": (lambda: pickle.dumps({}) + b".", "it goes on for 1 bytes after its end"),
    "no end": (lambda: pickle.dumps({})[:-1], "no pickle, or not all of one"),
    "a mark": (lambda: whole(b"(}"), "no pickle, or not all of one"),
    "a zip": (lambda: torch_file({"w": torch.zeros(1)}), "no pickle, or not all of one"),
    "text": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "no pickle, or not all of one"),
    "nothing": (lambda: b"", "it is empty"),
}  # fmt: skip
