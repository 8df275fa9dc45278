"""The manifest: checkpoints and students by name; what each is, where it comes from, and what was published of it."""

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.checkpoints.lock import default_lock, read_lock
from bench.checkpoints.repository import complete, files_in
from bench.errors import UsageError
from bench.files import cache_folder
from solvers import Option, did_you_mean

BUILTIN = Path(__file__).parent / "manifest.yaml"
FURTHER = "FEWSTEP_MANIFEST"  # names a manifest of one's own, which goes before the built-in one
REPOSITORY = r"^[\w.-]+/[\w.-]+$"  # of the hub
SECTIONS = ("checkpoints", "students")


class Frozen(BaseModel):
    """What is written in a manifest, key by key."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Frozen):
    """Where files come from, under which licence, and where they lie once they are here.

    On the hub: a repository at a revision; the checkpoint is all that its pipeline is loaded from, or the files of
    these patterns, or one file, all that in a subfolder if one is named.  Elsewhere: the address of one file.  `bytes`
    is about how much comes, where that is known; `sha256` that of the one file, where it was published, else the first
    pull is trusted and the lock keeps what came.  `verified` says that name, place and licence were looked up.
    """

    name: str = ""  # the entry's
    hub: Annotated[str, Field(pattern=REPOSITORY)] | None = None
    revision: str = "main"
    subfolder: str = ""
    file: str = ""
    files: tuple[str, ...] = ()
    url: Annotated[str, Field(pattern=r"^https?://[^/]+/.*[^/]$")] | None = None
    bytes: Annotated[int, Field(ge=1)] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    licence: str
    verified: bool = True

    @model_validator(mode="after")
    def _one_place(self) -> "Source":
        if (self.hub is None) == (self.url is None):
            raise ValueError("a source is either `hub: owner/name` or `url: https://…`")
        if self.url and (self.subfolder or self.file or self.files):
            raise ValueError("a url is one file: subfolder, file and files are for the hub")
        if self.sha256 and not (self.url or self.file):
            raise ValueError("sha256 is that of one file")
        return self

    @property
    def address(self) -> str:
        """Where the files come from, as people write it."""
        return self.url or f"hub:{self.hub}"

    @property
    def inside(self) -> str:
        """What in the repository is the checkpoint; "" for all of it."""
        return "/".join(filter(None, (self.subfolder, self.file)))

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of the files in the repository that it is; none where the pipeline decides."""
        within = f"{self.subfolder}/" if self.subfolder else ""
        return tuple(within + name for name in self.files) or ((within + self.file,) if self.file else ())

    @property
    def home(self) -> Path:
        """Where the file of a url is kept."""
        assert self.url
        return cache_folder() / "checkpoints" / self.name / self.url.rpartition("/")[2].partition("?")[0]

    def find(self, revision: str | None = None) -> Path | None:
        """The file or folder, if all of it is here; never asks the network.

        Of the hub that is the revision given, else the one that was pulled, else the source's own.
        """
        if self.url:
            return self.home if self.home.is_file() else None
        root, pin = self.snapshot(revision), read_lock(default_lock()).get(self.name)
        if root is None:
            return None
        here, pulled = files_in(root), tuple(pin.files) if pin and pin.revision == root.name else ()
        names = pulled or self.patterns
        whole = all(any(fnmatchcase(name, p) for name in here) for p in names) if names else complete(here)
        return root / self.inside if whole else None

    def snapshot(self, revision: str | None = None) -> Path | None:
        """The folder of the hub's cache with this revision, whole or not."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        assert self.hub
        pin = read_lock(default_lock()).get(self.name)
        at = revision or (pin and pin.revision) or self.revision
        try:
            return Path(snapshot_download(self.hub, revision=at, allow_patterns=[], local_files_only=True))
        except LocalEntryNotFoundError:
            return None


Model = TypeVar("Model", bound=Frozen)


class Statistics(Frozen):
    """The statistics that a checkpoint's FID is taken against, as published."""

    name: str
    url: str


class Published(Frozen):
    """FID that others published, by solver, at budgets of network calls; None where they give none."""

    citation: str
    note: str = ""
    nfe: tuple[int, ...]
    fid: Mapping[str, tuple[float | None, ...]]

    @model_validator(mode="after")
    def _complete(self) -> "Published":
        for solver, row in self.fid.items():
            if len(row) != len(self.nfe):
                raise ValueError(f"{solver} has {len(row)} numbers for {len(self.nfe)} budgets")
        return self


def as_published(fid: float | None) -> str:
    """At least two decimals, as papers give them; a dash where they give none."""
    if fid is None:
        return "—"
    return f"{fid:.2f}" if round(fid, 2) == fid else f"{fid:g}"


class Recommended(Frozen):
    """Settings that its publishers sample it with: noise levels sigma, the last time, the guidance scale, and solvers
    by budget as `--solvers` takes them.
    """

    sigma: tuple[float, float] | None = None
    t_end: float | None = None
    guidance: float | None = None
    solvers: Mapping[int, str] = {}
    note: str = ""


class Entry(Frozen):
    """A checkpoint that can be pulled; `resolution` is of its images, `parameters` those of its network alone."""

    name: str
    about: str
    source: Source
    loader: Literal["diffusers", "edm", "adm"]
    options: Mapping[str, Option] = {}
    resolution: int
    classes: int = 0
    text: bool = False
    parameters: float | None = None
    reference: Statistics | None = None
    published: tuple[Published, ...] = ()
    recommended: Recommended = Recommended()


@cache
def _read(path: Path, changed: int) -> dict[str, dict[str, Any]]:
    """The sections of a manifest, checked as far as they are mappings of mappings."""
    try:
        data = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"manifest {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"manifest {path}{line} is not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(data, dict) or not data or not data.keys() <= {*SECTIONS, "shared"}:
        raise UsageError(f"manifest {path} must hold a mapping with the keys {' and '.join(SECTIONS)}")
    found = {section: data.get(section) or {} for section in SECTIONS}
    for section, entries in found.items():
        if not isinstance(entries, dict) or not all(isinstance(about, dict) for about in entries.values()):
            raise UsageError(f"manifest {path}: {section} must map names to mappings")
    return found


def section(which: str) -> dict[str, dict[str, Any]]:
    """The entries of a section as written, by name, each with its name and its source's; raises UsageError.

    Those of one's own manifest, named by $FEWSTEP_MANIFEST, come first and hide built-in ones of the same name.
    """
    own = os.environ.get(FURTHER)
    found: dict[str, dict[str, Any]] = {}
    for path in ([Path(own)] if own else []) + [BUILTIN]:
        changed = path.stat().st_mtime_ns if path.exists() else 0
        for name, about in _read(path, changed)[which].items():
            found.setdefault(str(name), named(str(name), about))
    return found


def named(name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """An entry that knows its name, and whose `source`, or several `sources` by what they are for, do."""
    knowing: dict[str, Any] = {**about, "name": name}
    if isinstance(source := about.get("source"), dict):
        knowing["source"] = {**source, "name": name}
    if isinstance(several := about.get("sources"), dict):
        knowing["sources"] = {k: {**v, "name": f"{name}/{k}"} if isinstance(v, dict) else v for k, v in several.items()}
    return knowing


def entry(name: str) -> Entry | None:
    """The checkpoint called `name`; None when the manifest has none.  Raises UsageError for one written wrongly."""
    about = section("checkpoints").get(name)
    return None if about is None else validated(Entry, about)


def entries() -> list[Entry]:
    """All checkpoints of the manifest, one's own first."""
    return [validated(Entry, about) for about in section("checkpoints").values()]


def validated(model: type[Model], about: Mapping[str, Any]) -> Model:
    """An entry as its model; raises UsageError naming the entry, the key and what is wrong with its value."""
    try:
        return model.model_validate(about)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"manifest entry {about['name']!r}{f': {key}' if key else ''}: {what}") from None


def sources(name: str) -> list[Source]:
    """All that has to be here for a checkpoint or a student; raises UnknownNameError, UsageError."""
    found = {name: about for which in SECTIONS for name, about in section(which).items()}
    if name not in found:
        raise did_you_mean("checkpoint or student", name, list(found))
    about = found[name]
    several = [about["source"]] if "source" in about else list(about.get("sources", {}).values())
    return [validated(Source, source) for source in several]


def not_here(name: str, sources: Sequence[Source]) -> UsageError:
    """The error for an entry whose files are not on this machine."""
    sizes = [source.bytes for source in sources]
    size = f" {in_bytes(sum(filter(None, sizes)))}" if all(sizes) else ""
    return UsageError(f"{name!r} is not here: `fewstep pull {name}` brings{size or ' it'} under {sources[0].licence}")


def in_bytes(n: float) -> str:
    """213 MiB, 3.2 GiB."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:g} B"
