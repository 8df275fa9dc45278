"""Command lines that no command takes; what is wrong inside of sweep files is in corpus.py."""

from collections.abc import Iterator

from tests.chaos.asked import Files, Link, Pipe
from tests.chaos.corpus import NAMES, Case

GOOD = b"checkpoint: gmm\nsolvers: [ddim]\nnfe: [5]\nsamples: 8\nlatency: false\n"
RUN = b'{"checkpoint": "gmm", "digest": "d", "cells": {}}'
FILES: Files = {
    "good.yaml": GOOD, "afile": b"", "full/notes.txt": b"mine", "loop": Link("loop"), "dangling": Link("nowhere"),
    "pipe": Pipe(),
    "elsewhere": Link("../elsewhere"), "empty/.keep": b"", "list/sweep.json": b"[]",
    "broken/sweep.json": b'{"checkpoint": ',
    "deep/sweep.json": b"[" * 100_000, "bytes/sweep.json": b"\xff\xfe", "lacking/sweep.json": b'{"checkpoint": "gmm"}',
    "badcell/sweep.json": RUN, "badcell/cells/k.json": b"{", "noimage/a.png": b"\x89PNG\r\n\x1a\n",
    "noimage/b.png": b"GIF89a", "a.npz": b"PK\x03\x04",
    "a.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}" + b" " * 60 + b"\n",
    "a.parquet": b"PAR1",
    "a.pkl": b"cos\nsystem\n(S'touch proof'\ntR.", "a.pt": b"cos\nsystem\n(S'touch proof'\ntR.", "base.json": b"{}",
    "list.json": b"[1]",
    "deep.json": b"[" * 100_000, "card/card.json": b'{"checkpoint": "os:system", "sha256": "x"}',
    "cards/card.json": b"[" * 100_000,
    "config/config.json": b"{}", "index/model_index.json": b'{"_class_name": "os"}', "prompts.txt": b"\xff",
}  # fmt: skip
COMMANDS = (
    "sweep", "plan", "status", "report", "rank", "compare", "gate", "explain", "score", "reference", "distill",
    "tune", "train", "pull", "ls",
    "doctor", "schema",
)  # fmt: skip
NO_RUNS = (
    "afile", "full", "empty", "list", "broken", "bytes", "lacking", "loop", "dangling", "pipe", "nowhere",
    "good.yaml", "../elsewhere",
    "/dev/null", "/dev/zero", "x" * 300, "a/" * 3000, "afile/inside", "''", "gm\u202em", "\x1b[2J", "a\nb",
    "\udcff\udcfe", "-", "~root",
)  # fmt: skip
LINES = {  # by command, what it does not take; words between blanks, and a first word in brackets is what is said
    "sweep good.yaml": (
        "--nfe five", "--nfe 0", "--nfe -5", "--nfe 5,,6", "--nfe 1e3", "--nfe 5;6", "--nfe 0x10",
        "--nfe " + "9" * 5000, "--nfe 99999",
        "--nfe", "--nfe=", "--samples 1", "--samples 0", "--samples nan", "--samples inf", "--samples 8.0",
        "--samples " + "9" * 40,
        "--samples " + "9" * 5000, "--seed -1", "--seed 18446744073709551616", "--seed 1,1", "--seed None",
        "--guidance nan", "--guidance inf",
        "--guidance 1,1", "--guidance 1e999", "--guidance a", "--precision fp8", "--precision ,", "--layout rows",
        "--backend fast",
        "--metrics fd", "--metrics ,", "--metrics os:system", "--metrics frechet_exact(",
        "--metrics frechet_exact(a=1)", "--metrics kid",
        "--reference nowhere", "--reference pipe", "--reference a.npz", "--reference a.npy", "--reference a.parquet",
        "--reference noimage",
        "--reference full", "--reference full(n=2)", "--inception-weights nowhere --metrics fid", "--prompts nowhere",
        "--prompts prompts.txt",
        "--prompts pipe", "--prompts full", "--prompts /dev/zero", "--prompts good.yaml", "--device tpu",
        "--device cuda:99", "--device cpu:x",
        "--device cuda:\u0665", "--device cuda:-1", "--device ''", "--batch 0", "--batch -1", "--batch many",
        "--batch 1.5", "--out afile",
        "--out afile/inside", "--out full", "--out dangling", "--out loop", "--out pipe", "--out /dev/null",
        "--out " + "x" * 300, "--out list",
        "--out " + "a/" * 3000 + "afile", "--out elsewhere", "--png pngs", "--out /proc/fewstep", "--out good.yaml",
        "--nonsense", "-z", "extra",
        "--checkpoint nowhere/at/all", "--checkpoint full", "--checkpoint afile", "--checkpoint a.pkl",
        "--checkpoint a.pt", "--checkpoint card",
        "--checkpoint cards", "--checkpoint config", "--checkpoint index", "--checkpoint pipe",
        "--checkpoint gmm,gmm", "--checkpoint ,",
        "--checkpoint gmm(a=1)", "--checkpoint gmm(", "--checkpoint hub:x", "--checkpoint loop",
        "--checkpoint dangling", "--checkpoint .",
        "--solvers ,", "--solvers ddim(", "--solvers ddim)", "--solvers ddim()()", "--solvers ddim(eta=1,eta=1)",
        "--solvers ddim(**{})",
        "--solvers ddim(eta=__import__('os'))", "--solvers ddim(eta=open('proof','w'))", "--solvers ddim(eta=[1])",
        "--solvers ddim(grid=nowhere)",
        "--solvers ddim(eta=" + "(" * 5000 + ")" * 5000 + ")", "--solvers ddim(eta=" + "-" * 50_000 + "1)",
        "--solvers ddim(eta='" + "x" * 10**6 + "')",
        "--solvers ddim(eta=1e999)", "--solvers ddim(eta=" + "9" * 5000 + ")", "--solvers nowhere.py:f",
        "--solvers afile:f", "--solvers os:system",
        "--solvers good.yaml:f", "--solvers :", "--solvers :f", "--solvers os:", "--solvers .:f", "--solvers ..os:f",
        "--solvers full", "--solvers card",
        "--solvers a.pkl", "--solvers dangling.py:f", "--solvers pipe.py:f", "--set nfe", "--set =5", "--set nfe=[",
        "--set nfe=5", "--set a.b.c=1",
        "--set latency.rounds=x", "--set latency..rounds=9",
        "--set nfe=!!python/object/apply:os.system['touch␣proof']", "--set " + "a." * 5000 + "b=1",
        "--set nfe=" + "[" * 5000, "--set nfe=[&a␣[5],*a]", "--set samples=1", "--set include=nowhere.yaml",
        "--set include=/dev/zero",
        "--set include=pipe", "--set seed=0x" + "f" * 5000, "--set latency=3", "--set quality=1",
        "--set checkpoint=os:system", "--set tuned=3",
        "--set a=&a␣[*a]", "--set overrides.gm.nfe=[5]", "--nfe 5 --set nfe=[6]", "--set nfe=!!timestamp␣x",
        "--set nfe=!!bool␣x",
    ),
    "plan": (
        "nowhere.yaml", "full", "afile", "pipe", "loop", "dangling", "/dev/zero", "/dev/tty", "a.pkl", "deep.json",
        "list.json", "x" * 300, "-", "''",
    ),
    "rank ../../nowhere": ("--nfe x", "--separate a", "--metric x"),
    "gate": (
        "", "--baseline nowhere.json", "--baseline base.json", "--baseline list.json", "--baseline deep.json",
        "--baseline pipe", "--baseline full",
        "--baseline /dev/zero", "--baseline loop", "--update", "--reason why", "--update --reason ␣",
        "nowhere.yaml --update --reason why",
        "--golden base.json", "good.yaml good.yaml --update --reason x", "pipe --update --reason x",
        "--baseline afile", "--device tpu --baseline base.json",
        "good.yaml --update --reason x --golden list.json", "good.yaml --update --reason x --golden nowhere",
        "good.yaml --update --reason x --golden pipe",
    ),
    "explain": (
        "", "ddi", "ddim --nfe 0", "ddim --nfe x", "ddim --nfe 100000", "ddim --nfe " + "9" * 5000,
        "ddim --checkpoint nowhere", "ddim --schedule x",
        "ddim --schedule edm --checkpoint gmm", "ddim --out x.exe", "ddim --out afile/x.png", "ddim --out full",
        "ddim(eta=", "os:system", "pipe",
        "nowhere.py:f", "x" * 300, "ddim ddim", "heun --nfe 6 --schedule edm",
        "ddim --out dangling/x.png --schedule edm", "ddim(a=1)", "\x1b[2J",
    ),
    "score": (
        "", "nowhere", "afile", "full", "noimage", "a.npz", "a.npy", "a.parquet", "a.pkl", "pipe", "/dev/zero",
        "loop", "x" * 300, "noimage --metrics x",
        "a.npz(images=x)", "nowhere(", "full --out afile", "full --out afile/x.json", "full --device tpu",
        "noimage(n=2)", "full --metrics ,",
    ),
    "reference": (
        "", "nowhere", "afile", "full", "noimage", "a.npz", "a.npy", "a.pkl", "pipe", "/dev/zero", "full --name ../x",
        "full --samples x", "full --shape 3x3",
        "full --shape 0x0x0", "full --shape axbxc", "full --format x", "full --out afile", "full --device tpu",
        "x" * 300, "full --features nowhere",
    ),
    "distill": (
        "", "ec", "ect(", "ect(a=1)", "ect --teacher nowhere", "ect --steps 0", "ect --steps x", "ect --batch 0",
        "ect --lr nan", "ect --lr x", "ect --lr 0",
        "ect --seed -1", "ect --out afile", "ect --out full", "ect --data nowhere", "ect --pool 0",
        "ect --precision fp8", "ect --metric x",
        "ect --points 0", "ect --samples 0", "ect --device tpu", "ect --student nowhere", "ect --reference nowhere",
        "nowhere.py:F", "os:system",
        "ect --prompts nowhere", "ect --out " + "x" * 300, "ect --teacher a.pkl", "ect --data pipe", "ect --lr 1e999",
        "ect --teacher " + "x" * 300,
    ),
    "tune": (
        "", "dc_solve", "ddim", "dc_solver(", "dc_solver(a=1)", "dc_solver --checkpoint nowhere", "dc_solver --nfe x",
        "dc_solver --nfe 0",
        "dc_solver --guidance nan", "dc_solver --seed -1", "dc_solver --classes x", "dc_solver --classes 99",
        "dc_solver --precision fp16",
        "dc_solver --metric x", "dc_solver --prompts nowhere", "dc_solver --device tpu", "dc_solver --out afile",
        "dc_solver --out afile/x", "os:system",
        "dc_solver --out " + "x" * 300, "dc_solver --checkpoint a.pkl", "dc_solver --prompts pipe",
        "dc_solver(samples=x)", "dc_solver --out dangling",
    ),
    "train": (
        "", "nowhere", "gmm --steps 0", "gmm --steps x", "gmm --seed -1", "gmm --seed 99999999999999999999",
        "gmm --out afile", "gmm --out full",
        "gmm --out dangling", "gmm --out afile/x", "gmm --out " + "x" * 300, "../gmm", "gmm --out pipe",
    ),
    "pull": ("", "nowhere", "gmm", "../../etc/passwd", "http://localhost/x", "x" * 300, "a b", "nowhere --lock full"),
    "ls": ("", "solver", "x" * 300, "\x1b]0;title\x07", "solvers metrics", "--verbose", "SOLVERS", "'solvers '"),
    "doctor": ("now", "--all"),
    "schema": ("good.yaml", "--out x"),
    "status": ("", "empty full"),
    "report": (
        "", "full", "nowhere", "badcell", "list --html", "full --html --out page.html", "full empty --html", "pipe",
        "full --out page.html", "loop --html --out page.html", "x" * 300,
    ),
    "compare good.yaml": ("full", "nowhere", "badcell", "list", "pipe", "x" * 300, "HEAD", "''", "\x1b[2J"),
    "compare": (
        "", "full", "full full", "HEAD:nowhere full", "--help=1", "-c:x full", "--upload-pack=touch full",
        "$(touch) full", "HEAD:../../x full",
    ),
    "sweep": (
        "../../elsewhere/nowhere.yaml", "good.yaml good.yaml", "full", "x" * 300, "good.yaml\0", "''", "a\nb.yaml",
        "\udcff.yaml", "\x1b[2J.yaml",
    ),
}  # fmt: skip


def words(line: str) -> tuple[str, ...]:
    """A command line's words: between blanks, '' for an empty one, ␣ for a blank in a word."""
    return tuple("" if word == "''" else word.replace("␣", " ") for word in line.split(" "))


def asking(name: str, arguments: tuple[str, ...], says: str = "") -> Case:
    """A command line, with those of the files in its working directory that it may mean."""
    said = " ".join(arguments)
    return Case(name, arguments, {k: v for k, v in FILES.items() if k.split("/")[0] in said}, says)


def lines() -> Iterator[Case]:
    """All of them, each under a name of its own."""
    for command, kinds in LINES.items():
        for more in kinds:
            yield asking(f"lines/{command} {more[:60]!r} {len(more)}", words(f"{command} {more}".strip(" ")))
    for folder in NO_RUNS:
        yield asking(f"folders/{folder[:40]!r} {len(folder)}", words(f"status {folder}"))
    for command in COMMANDS:
        yield asking(f"options/{command}", (command, "--no-such-option"), "No such option")
    for what, name in NAMES.items():
        if "\0" not in name:
            yield asking(f"commands/{what}", (name,))
