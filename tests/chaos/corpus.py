"""Sweep files that no sweep comes of, by what is wrong with them; the command lines are in lines.py."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

import yaml

from tests.chaos.asked import Files, Link, Pipe

GOOD: Mapping[str, object] = {"checkpoint": "gmm", "solvers": ["ddim"], "nfe": [5], "samples": 8, "latency": False}


@dataclass(frozen=True)
class Case:
    """A command line, the files in its working directory, and what its refusal says."""

    name: str
    arguments: tuple[str, ...]
    files: Files = field(default_factory=dict)
    says: str = ""


def swept(name: str, text: str | bytes, says: str = "", others: Files | None = None) -> Case:
    """A sweep file that is bad as it stands."""
    data = text if isinstance(text, bytes) else text.encode()
    return Case(name, ("sweep", "sweep.yaml"), {"sweep.yaml": data, **(others or {})}, says)


def spoilt(name: str, key: str, text: str, says: str | None = None, others: Files | None = None) -> Case:
    """A good sweep file but for one key, whose value is this text."""
    rest = yaml.safe_dump({k: v for k, v in GOOD.items() if k != key})
    return swept(name, f"{rest}{key}: {text}\n", key if says is None else says, others)


# Wrong types: every key with every value that it does not take.

VALUES = {
    "a number": "3", "yes": "true", "nothing": "null", "a word": "word", "no word": "''",
    "no list": "[]", "a list in a list": "[[]]", "a list of nothing": "[null]",
    "an empty mapping": "{}", "a mapping": "{a: 1}", "a date": "2020-01-31",
    "not a number": ".nan", "infinity": "-.inf",
}  # fmt: skip
NONE, LISTS = {"nothing"}, {"a list of nothing", "no list"}
TAKEN: Mapping[str, set[str]] = {  # what a key takes of them, or may take
    "checkpoint": set(),
    "overrides": {"an empty mapping"},
    "include": {"no list"},
    "solvers": NONE,
    "nfe": set(),
    "samples": {"a number"},
    "seed": {"a number"},
    "guidance": {"a number"},
    "guidance_interval": NONE,
    "cfg_plus_plus": {"yes"},
    "classes": NONE,
    "prompts": NONE | {"no word"},
    "negative_prompt": {"a word", "no word"},
    "backend": set(),
    "metrics": NONE,
    "reference": {"no list"},
    "inception_weights": NONE | {"a word", "no word"},
    "latency": NONE | {"yes", "an empty mapping"},
    "quality": NONE,
    "tuned": {"a word", "no word"},
}
INSIDE = {"latency": {}, "quality": {"metric": "word", "low": "1", "high": "2"}, "overrides.gmm": {}}
LAST = {
    "latency": ("rounds", "threads", "max_batch", "seconds"),
    "quality": ("metric", "low", "high"),
    "overrides.gmm": ("samples", "nfe", "latency", "solvers"),
}
NEVER = (
    "a word",
    "a list in a list",
    "a mapping",
    "a date",
    "infinity",
)  # what none of them takes


def wrong_types() -> Iterator[Case]:
    """Every key with every value that it does not take, and those below it."""
    for key, (what, text) in product(TAKEN, VALUES.items()):
        if what not in TAKEN[key]:
            says = "sweep.yaml, line" if what == "a date" else "" if key == "reference" else key
            yield spoilt(f"types/{key}: {what}", key, text, says)
    for above, what in product(LAST, NEVER):
        for last in LAST[above]:
            if (last, what) != ("metric", "a word"):
                held = ", ".join(f"{k}: {v}" for k, v in (INSIDE[above] | {last: VALUES[what]}).items())
                top, _, below = above.partition(".")
                text = f"{{{below}: {{{held}}}}}" if below else f"{{{held}}}"
                says = "sweep.yaml, line" if what == "a date" else f"{above}.{last}"
                yield spoilt(f"types/{above}.{last}: {what}", top, text, says)


# Numbers.

HUGE = {
    "0": "0", "-1": "-1", "-0.5": "-0.5", "1e400": "1.0e400", "10^30": "1" + "0" * 30, "-10^30": "-1" + "0" * 30,
    "5,000 digits": "9" * 5000, "16^10,000": "0x" + "f" * 10_000, "a text": "'5'", "sixties": "5:61:00",
    "another script's": "\u0665", "an int that is none": "!!int five", "a float that is none": "!!float five",
    "a word for infinity": "inf", "a bool that is none": "!!bool perhaps",
    "a time that is none": "!!timestamp yesterday", "the 31st of February": "2020-02-31",
}  # fmt: skip


def numbers() -> Iterator[Case]:
    """Numbers that are too large, too small, or none."""
    fine = {("seed", "sixties"), ("samples", "sixties"), ("guidance", "a text")}
    counted = {"nfe": "[{}]", "samples": "{}", "seed": "[0, {}]"}
    for (key, form), (what, text) in product(counted.items(), HUGE.items()):
        if (key, what) not in fine:
            yield spoilt(f"numbers/{key}: {what}", key, form.format(text), "sweep.yaml, line")
    for key, text in {
        "guidance": ".inf", "guidance_interval": "[2, 1]", "classes": "[-1]", "latency": "{rounds: 4}",
        "quality": "{metric: frechet_exact, low: 1.0e308, high: -1.0e308}", "include": "[0]", "checkpoint": "1e5",
        "solvers": "[{ddim: {eta: 1.0e400}}]",
    }.items():  # fmt: skip
        yield spoilt(f"numbers/{key}: {text}", key, text, key.removesuffix("s"))
    for setting in ("rounds", "max_batch", "seconds", "threads"):
        for what in ("10^30", "16^10,000", "-1"):
            yield spoilt(
                f"numbers/latency.{setting}: {what}", "latency", f"{{{setting}: {HUGE[what]}}}", "sweep.yaml, line"
            )
    for option in ("eta=1e400", "eta=-1", "eta=nan", "eta=" + "9" * 5000, "eta=1e-400j", "t_end=-5", "t_end=1e308"):
        yield spoilt(f"numbers/ddim({option[:12]})", "solvers", f"['ddim({option})']", "ddim(")


# Names in which there is more than letters.

NAMES = {
    "bidi": "gmm\u202ednuos\u202c",  "NUL": "gmm\0", "a line": "gmm\nfewstep: done",
    "a carriage return": "gmm\rdone   ", "escapes": "\x1b[2J\x1b]0;title\x07",
    "C1": "gmm\x9b2J", "next line": "gmm\x85", "a line separator": "gm\u2028m", "a mark": "\ufeffgmm",
    "no width": "g\u200bmm", "a surrogate": "gmm\ud800",
    "an emoji": "\U0001f469\u200d\U0001f52c",
    "stacked": "g" + "\u0301" * 300, "Cyrillic": "gm\u043c", 
    "Arabic": "\u0634\u0628\u0643\u0629",
    "blanks": " \u00a0\u3000", "1 MB": "x" * 1_000_000, "300": "x" * 300, "5,000 parts": "a/" * 5000,
    
    "markup": "[red]gmm[/red]", "html": "<script>alert(1)</script>", "a shell's": "$(touch proof)`touch proof`;&|",
}  # fmt: skip
NAMED = {  # by key, the value in which a name stands
    "checkpoint": "[{}]", "solvers": "[ddim, {}]", "metrics": "[{}]", "reference": "{}", "prompts": "{}",
    "include": "{}",
    "overrides": "{{? {} : {{nfe: [5]}}}}",
}  # fmt: skip
CALLED = {"solvers": "solver", "metrics": "metric", "reference": "", "include": "", "checkpoint": ""}
UNREAD = ("1 MB", "a surrogate")  # for which the file itself is refused
STRIPPED = {("checkpoint", "next line"), ("prompts", "blanks"), ("reference", "blanks")}  # of blanks, good names remain


def quoted(name: str) -> str:
    """A text as YAML, every letter of it that is no ASCII escaped."""
    if name.isascii() and name.isprintable():
        return f'"{name}"'  # none of ours has a quote or a backslash
    letters = (c if c.isascii() and c.isprintable() else f"\\U{ord(c):08x}" for c in name)
    return f'"{"".join(letters)}"'


def names() -> Iterator[Case]:
    """Names that would play tricks with a terminal, a shell or a reader, or that no file can have."""
    for (key, form), (what, name) in product(NAMED.items(), NAMES.items()):
        if (key, what) not in STRIPPED:
            says = "sweep.yaml" if what in UNREAD else CALLED.get(key, key)
            yield spoilt(f"names/{key}: {what}", key, form.format(quoted(name)), says)
    for what, name in NAMES.items():
        yield swept(f"names/a key: {what}", f"checkpoint: gmm\n{quoted(name)}: 3\n")


# What is no text, or no YAML.

BYTES = {
    "not UTF-8": b"checkpoint: \xff\xfe\n", "Latin-1": "checkpoint: d\xe9j\xe0\n".encode("latin-1"),
    "UTF-16": "checkpoint: gmm\n".encode("utf-16"), "UTF-32": "checkpoint: gmm\n".encode("utf-32"),
    "NULs": bytes(1000),
    "empty": b"", "a comment": b"# nothing\n", "blanks": b" \n" * 100_000,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(100), "a surrogate": b"checkpoint: \xed\xa0\x80\n",
    "tabs": b"checkpoint:\n\t- gmm\n",
    "an overlong slash": b"checkpoint: ..\xc0\xaf..\n", "half a letter": "checkpoint: é".encode()[:-1],
    "JSON": b'["gmm"]',
    "a document of documents": b"checkpoint: gmm\n---\ncheckpoint: digits\n", "a number": b"3", "a word": b"gmm",
    "null": b"null\n",
    "an ESC": b"checkpoint: \x1b[2J\n", "10 MB": b"#" * 10_000_000,
    "a long line": b"nfe: [" + b"5, " * 300_000 + b"5]\n",
    "a pickle": b"cos\nsystem\n(S'touch proof'\ntR.", "a zip": b"PK\x03\x04" + bytes(60),
}  # fmt: skip


def no_text() -> Iterator[Case]:
    for what, data in BYTES.items():
        yield swept(f"bytes/{what}", data)
        if what not in ("a comment", "blanks", "a number", "a word", "tabs", "JSON", "an ESC", "a pickle", "10 MB"):
            yield spoilt(f"bytes/prompts: {what}", "prompts", "prompts.txt", "", {"prompts.txt": data})


# YAML that grows, goes in circles, or asks for more than values.


def _laughs(first: str, line: Callable[[int], str], levels: int = 12) -> str:
    return f"a0: &a0 {first}\n" + "".join(f"a{k}: &a{k} {line(k - 1)}\n" for k in range(1, levels))


BOMBS = {
    "lists": _laughs("[5, 5]", lambda k: f"[{', '.join([f'*a{k}'] * 9)}]") + "nfe: *a11\n",
    "in a key": "nfe: " + "[" * 30 + "&a [5, 5]" + ", *a]" * 30 + "\n",
    "mappings": _laughs("{x: 1}", lambda k: f"{{{', '.join(f'k{n}: *a{k}' for n in range(9))}}}") + "latency: *a11\n",
    "merges": _laughs("{x: 1}", lambda k: f"{{<<: [{', '.join([f'*a{k}'] * 9)}]}}") + "latency: *a11\n",
    "doubled": _laughs("[5, 5]", lambda k: f"[*a{k}, *a{k}]", 200) + "seed: *a199\n",
    "a list in itself": "nfe: &a [5, *a]\n", "a mapping in itself": "latency: &a {rounds: *a}\n",
    "two in each other": "nfe: &a [&b [*a, *b]]\n", "a merge of itself": "latency: &a {<<: *a, rounds: 9}\n",
    "a merge in a circle": "latency: &a {<<: &b {<<: *a}}\n",
    "the file in itself": "&a\ncheckpoint: gmm\nlatency: *a\n",
    "10,000 lists": "nfe: " + "[" * 10_000 + "]" * 10_000,
    "10,000 mappings": "latency: " + "{a: " * 10_000 + "1" + "}" * 10_000,
    "10,000 lists left open": "nfe: " + "[" * 10_000, "deep blocks": "".join(" " * k + "a:\n" for k in range(1000)),
    "deep keys": "? " * 5000 + "a\n", "a list of lists": "nfe:\n " + "- " * 10_000 + "5\n",
    "300 lists": "nfe: " + "[" * 300 + "]" * 300,
    "no anchor": "nfe: *nothing\n", "an anchor twice": "nfe: &a [5]\nseed: &a *a\n",
    "a merge of a number": "latency: {<<: 3}\n",
    "a merge of a list of numbers": "latency: {<<: [1, 2]}\n", "a key twice": "nfe: [5]\nnfe: [6]\n",
    "a key twice below": "latency: {rounds: 9, rounds: 8}\n", "a list as key": "? [a]\n: 3\n",
    "a mapping as key": "? {a: 1}\n: 3\n",
    "an alias as key": "solvers: &a [ddim]\n? *a\n: 3\n", "a null key": "~: 3\n", "a number as key": "5: 3\n",
    "a set": "!!set {nfe, samples}\n",
    "a key of 2,000 letters": "k" * 2000 + ": 3\n", "200,000 values": "nfe: [" + "5," * 200_000 + "]\n",
    "a value key": "latency: {=: 3}\n",
    "a version": "%YAML 9.9\n---\ncheckpoint: gmm\nnonsense: 1\n",
    "a directive": "%TAG ! tag:x,2000:\n---\nnfe: !a [5]\n", "no end": "nfe: [5\n",
    "a quote": "checkpoint: 'gmm\n", "an indent": "nfe: [5]\n seed: 1\n", "a percent": "%\n",
    "an at": "checkpoint: @gmm\n", "a mark": "nfe: &\n",
}  # fmt: skip
TAGS = (
    "!!python/object/apply:os.system ['touch proof']", "!!python/object/new:os.system ['touch proof']",
    "!!python/object:os.system {}", "!!python/name:os.system ''", "!!python/module:os ''", "!!python/tuple [1, 2]",
    "!!python/object/apply:subprocess.check_output [['touch', 'proof']]", "!!python/object/apply:eval ['1']",
    "!!python/none ''",
    "!!python/object/apply:builtins.open ['proof', 'w']", "!!python/object/new:type {args: [z, [], {}]}",
    "!!python/long 5",
    "!python/object/apply:os.system ['touch proof']",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch proof']",
    "!ruby/object:Gem::Installer {i: x}", "!!java.lang.ProcessBuilder [[touch, proof]]",
    "!include ../elsewhere/secret.yaml",
    "!ENV ${HOME}", "!env HOME", "!!js/function 'function(){}'", "!!omap [a: 1]", "!!set {a}", "!!binary '@@@'",
    "!!binary aGk=",
    "!!timestamp 5", "!!map [5]", "!!seq {a: 1}", "!!str [5]", "!!null [5]", "!!float [5]", "!odd 5", "! 5x",
    "!!int [5]", "!<!> 5x",
)  # fmt: skip


def bombs() -> Iterator[Case]:
    for what, text in BOMBS.items():
        yield swept(f"bombs/{what}", text)
    for key, tag in product(("nfe",), TAGS):
        if not (key == "checkpoint" and tag in ("! 5x", "!<!> 5x")):
            yield spoilt(f"tags/{key}: {tag[:50]}", key, tag, "sweep.yaml")


# Files that are none, and ways out of the folder.

AWAY = (
    "../elsewhere/secret.txt", "../elsewhere", "../../../../../../../../etc/passwd", "/etc/passwd", "/etc/shadow",
    "/proc/self/mem",
    "/dev/null", "/dev/zero", "/dev/tty", "/", "..", ".", "~/.netrc",
    "file:///etc/passwd",
    "..\\..\\elsewhere", "C:\\Windows\\win.ini", "\\\\server\\share", "elsewhere/../../elsewhere/secret.txt",
    
    "hub:../../elsewhere", "hub:/etc/passwd",
    "../elsewhere/secret.txt:load", "os:system", "a:b:c",
    "../elsewhere/secret.txt\0.yaml", "loop", "dangling", "linked", "pipe", "linked/../../elsewhere", "pipe/inside",
    "afile/inside", "locked.txt/..",
)  # fmt: skip
AROUND: Files = {
    "loop": Link("loop"), "dangling": Link("nowhere"), "linked": Link("../elsewhere/secret.txt"), "pipe": Pipe(),
    "afile": b"\0",
    "folder/loop": Link("../folder"),
}  # fmt: skip
FILED = {key: NAMED[key] for key in ("checkpoint", "reference", "prompts", "include")}


def ways_out() -> Iterator[Case]:
    """Names that lead out of the folder, to devices, pipes and links."""
    harmless = {
        "../elsewhere/secret.txt",
        "linked",
        "/etc/passwd",
        "linked/../../elsewhere",
    }  # as prompts, they are text
    for (key, form), away in product(FILED.items(), AWAY):
        whole_disk = key == "reference" and away in ("/", "//")
        if not whole_disk and not (key == "prompts" and (away in harmless or away.endswith("passwd"))):
            yield spoilt(f"paths/{key}: {away!r}", key, form.format(quoted(away)), "", AROUND)


def links() -> Iterator[Case]:
    """Sweep files and what they include, as links, pipes and circles of themselves."""
    good = yaml.safe_dump(dict(GOOD)).encode()
    whole: dict[str, bytes | Link | Pipe] = {
        "a loop": Link("sweep.yaml"), "dangling": Link("nowhere.yaml"), "a pipe": Pipe(), "to a pipe": Link("../pipe"),
        "a device": Link("/dev/zero"), "a terminal": Link("/dev/tty"), "memory": Link("/proc/self/mem"),
        "a folder": Link("."),
    }  # fmt: skip
    for what, held in whole.items():
        yield Case(
            f"links/the file: {what}", ("sweep", "sweep.yaml"), {"sweep.yaml": held, "../pipe": Pipe()}, "sweep.yaml"
        )
        if what != "a loop":
            others: Files = {"inner.yaml": held, "../pipe": Pipe()}
            yield spoilt(f"links/included: {what}", "include", "inner.yaml", "inner.yaml", others)
    two: Files = {"inner.yaml": Link("outer.yaml"), "outer.yaml": Link("inner.yaml")}
    yield spoilt("links/included: a loop of two", "include", "inner.yaml", "inner.yaml", two)
    yield swept("includes/itself", "include: sweep.yaml\n", "includes this file")
    yield swept("includes/itself by a link", "include: other.yaml\n", "", {"other.yaml": Link("sweep.yaml")})
    circle = {f"{k}.yaml": f"include: {(k + 1) % 3}.yaml\n".encode() for k in range(3)}
    yield spoilt("includes/a circle of three", "include", "0.yaml", "includes this file", circle)
    chain = {f"{k}.yaml": f"include: {k + 1}.yaml\n".encode() for k in range(1500)} | {"1500.yaml": good}
    yield spoilt("includes/a chain of 1,500", "include", "0.yaml", "", chain)
    doubled = {f"{k}.yaml": f"include: [{k + 1}.yaml, {k + 1}.yaml]\n".encode() for k in range(30)}
    yield spoilt("includes/2^30 times the same", "include", "0.yaml", "", doubled | {"30.yaml": b"nonsense: 1\n"})
    yield swept("includes/what is bad", "include: bad.yaml\n", "bad.yaml, line 2", {"bad.yaml": b"seed: 1\nnfe: [0]\n"})
    yield spoilt("includes/2,000 times nothing", "include", f"[{', '.join(['no.yaml'] * 2000)}]", "no.yaml")


def files() -> Iterator[Case]:
    """All of them, each under a name of its own."""
    for category in (wrong_types, numbers, names, no_text, bombs, ways_out, links):
        yield from category()
