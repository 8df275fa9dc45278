"""Pickles of EDM and EDM2: what they hold is found, and nothing in them runs."""

import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.checkpoints.unpickle import read_network
from bench.errors import UsageError
from tests.bench.edm_files import Persistent, PersistentModule, edm_module, published_names, write_edm_pickle
from tests.bench.hostile import BAD, CODE, OTHER_READER, python

ARGUMENTS = {
    "img_resolution": 16, "label_dim": 0, "model_type": "SongUNet", "channel_mult": [1, 2], "resample_filter": (1, 3),
    "dropout": 0.13, "use_fp16": False, "channel_mult_emb": None, "sigma_data": np.float32(0.5), "seeds": np.arange(3),
    "large": 2**70, "inner": {"a": [1, {"b": 2}]},
}  # fmt: skip
PLAIN = ARGUMENTS | {"sigma_data": 0.5, "seeds": [0, 1, 2]}


def tensors() -> dict[str, Tensor]:
    """What a network may hold: every precision, no axis, no number, views and other orders of axes."""
    seeded = torch.Generator().manual_seed(0)
    return {
        "u": torch.arange(5, dtype=torch.float64),
        "model.map.freqs": torch.arange(4),
        "model.enc.16x16_conv.weight": torch.randn(8, 3, 3, 3, generator=seeded),
        "model.enc.16x16_conv.bias": torch.randn(20, generator=seeded)[4:12],
        "model.enc.16x16_conv.resample_filter": torch.ones(1, 1, 2, 2, dtype=torch.float16) / 4,
        "model.enc.8x8_block.qkv": torch.randn(6, 4, generator=seeded).T,
        "model.enc.8x8_block.weight": torch.randn(1, 3, 4, 4, generator=seeded).to(memory_format=torch.channels_last),
        "model.dec.8x8_block.gain": torch.tensor(2.0),
        "model.dec.8x8_block.none": torch.empty(0, 3),
    }


def refusal(path: Path, key: str = "ema") -> str:
    """What is said of a file that is refused, in one line that moves no cursor."""
    with pytest.raises(UsageError) as error:
        read_network(path, key)
    message = str(error.value)
    assert message.isprintable()
    assert str(path) in message
    assert len(message) < len(str(path)) + 400
    return message


def same(found: object, expected: dict[str, Tensor]) -> None:
    assert isinstance(found, dict)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("edm2", [False, True])
def test_a_network_is_found_as_it_was_saved(edm2: bool, tmp_path: Path) -> None:
    encoder = Persistent("StabilityVAEEncoder", {"batch_size": 4}) if edm2 else None
    path = write_edm_pickle(tmp_path / "a.pkl", "Precond", ARGUMENTS, tensors(), encoder, half=edm2)
    saved = read_network(path)
    network = edm_module("Precond", {}, tensors())
    same(saved.tensors, (network.half() if edm2 else network).state_dict())
    assert saved.class_name == "Precond"
    assert saved.arguments == PLAIN
    assert [type(value) for value in saved.arguments.values()] == [type(value) for value in PLAIN.values()]
    if edm2:
        found = read_network(path, "encoder")
        assert (found.class_name, found.arguments, found.tensors) == ("StabilityVAEEncoder", {"batch_size": 4}, {})
    else:
        assert read_network(path, "loss_fn").class_name == "EDMLoss"


def test_tensors_are_ones_own(tmp_path: Path) -> None:
    """They can be written to, and outlive the file."""
    path = write_edm_pickle(tmp_path / "a.pkl", "Precond", {}, {"w": torch.ones(3)})
    found = read_network(path).tensors["w"]
    path.write_bytes(bytes(path.stat().st_size))
    assert found.add_(1).tolist() == [2, 2, 2]


def test_a_state_dict_leaves_out_what_torch_leaves_out(tmp_path: Path) -> None:
    network = PersistentModule("Precond", {})
    network.register_buffer("kept", torch.ones(1))
    network.register_buffer("fleeting", torch.ones(1), persistent=False)
    network.register_buffer("none", None)
    network.register_parameter("bias", None)
    network.layers = nn.Sequential(nn.Identity(), nn.ModuleList([edm_module("Inner", {}, {"w": torch.ones(2)})]))
    network.nothing = None
    with published_names():
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"ema": network}))
    same(read_network(tmp_path / "a.pkl").tensors, network.state_dict())


@pytest.mark.parametrize("case", CODE)
def test_what_would_run_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(CODE[case].make(tmp_path))
    assert CODE[case].says in refusal(path)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("case", BAD)
def test_what_means_nothing_or_too_much_is_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.pkl"
    make, says = BAD[case]
    path.write_bytes(make())
    assert says in refusal(path)


def source_that_runs(folder: Path) -> bytes:
    """A sound network whose module's source touches the proof."""
    network = edm_module("Precond", {}, {"w": torch.ones(1)})
    network._source = python(folder)
    with published_names():
        return pickle.dumps({"ema": network})


def test_the_source_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(source_that_runs(tmp_path))
    assert read_network(tmp_path / "a.pkl").tensors["w"].item() == 1
    assert not (tmp_path / "proof").exists()


def test_other_readers_run_the_same_files(tmp_path: Path) -> None:
    """What the tests above refuse is harmful indeed: pickle itself touches every proof."""
    makers = {case: hostile.make for case, hostile in CODE.items() if hostile.runs} | {"source": source_that_runs}
    for case, make in makers.items():
        (tmp_path / case).mkdir()
        (tmp_path / case / "evil.pkl").write_bytes(make(tmp_path / case))
    files = [tmp_path / case / "evil.pkl" for case in makers]
    ran = subprocess.run([sys.executable, "-c", OTHER_READER, *files], capture_output=True, text=True, check=False)
    assert [case for case in makers if not (tmp_path / case / "proof").exists()] == [], ran.stdout + ran.stderr
    assert len(makers) >= 20


LIMITED_READER = """
import json, resource, sys, time
from pathlib import Path
from bench.checkpoints.unpickle import read_network
from bench.errors import UsageError
(used,) = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize")]
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        read_network(Path(path))
    except UsageError as error:
        print(json.dumps([str(error), time.process_time() - start]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits of memory are Linux's")
def test_no_file_takes_much_memory_or_time(tmp_path: Path) -> None:
    """Each is refused for the same reason in a process that may take 128 MB: it is not memory that runs out."""
    files = {tmp_path / str(k): case for k, case in enumerate(BAD.values())}
    for path, (make, _) in files.items():
        path.write_bytes(make())
    command = [sys.executable, "-c", LIMITED_READER, *files]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(lines) == len(files), ran.stderr
    for (path, (_, says)), (message, seconds) in zip(files.items(), lines, strict=True):
        assert str(path) in message
        assert says in message
        assert seconds < 10


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.pkl")
    assert "is no file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.pkl")  # which nobody writes to: opening it would wait for ever
    assert "is no file" in refusal(tmp_path / "pipe.pkl")
    path = write_edm_pickle(tmp_path / "a.pkl", "Precond", {}, {})
    assert "its 'augment_pipe' is None, not a network" in refusal(path, "augment_pipe")
    assert "it holds no 'net', but augment_pipe, dataset_kwargs, ema, loss_fn" in refusal(path, "net")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "a.pkl"
    return write_edm_pickle(path, "Precond", ARGUMENTS, tensors(), Persistent("Encoder", {})).read_bytes()


def said_of(path: Path, data: bytes) -> str | None:
    """Why the bytes are refused, None if they are read; anything raised but a UsageError would fail the test."""
    path.write_bytes(data)
    try:
        read_network(path)
    except UsageError as error:
        return str(error)
    return None


def test_a_file_cut_short_anywhere_is_refused(sound: bytes, tmp_path: Path) -> None:
    for end in [*range(0, len(sound), 97), len(sound) - 1]:
        assert "is refused: it is" in (said_of(tmp_path / "a.pkl", sound[:end]) or "")
    assert said_of(tmp_path / "a.pkl", sound) is None


def test_a_file_changed_anywhere_is_read_or_refused(sound: bytes, tmp_path: Path) -> None:
    draw, said = random.Random(0), set()
    for _ in range(400):
        data = bytearray(sound)
        for _ in range(draw.choice([1, 1, 3, 30])):
            at = draw.randrange(len(data))
            choice = draw.randrange(3)
            if choice == 0:
                data[at] = draw.randrange(256)
            elif choice == 1:
                del data[at : at + draw.randrange(1, 9)]
            else:
                there = draw.randrange(len(data))
                data[at:at] = data[there : there + draw.randrange(1, 40)]
        said.add(said_of(tmp_path / "a.pkl", bytes(data)))
    assert None in said
    assert len(said) > 20
    assert all(message.isprintable() for message in said - {None})


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=200) | st.lists(st.sampled_from(b"}])N(tsuaeQRb\x85\x94K\x01."), max_size=60).map(bytes))
def test_any_bytes_are_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pkl"
    assert (said_of(path, data) or "").isprintable()
