"""Students: networks distilled to few steps, each with the sampler it was trained for, beside solvers in a sweep.

The manifest's section `students` says what was published; others were made here (bench/distilled.py) and come with the
package or lie in a folder.  In a sweep a student is written as solvers are, `lcm_lora_sdv1_5(guidance=1.5)`, and stands
on the sweep's checkpoint: a LoRA or another UNet in its pipeline, a pipeline of its own that samples the same space, or
the weights that were distilled of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

import solvers
from bench.checkpoints import Checkpoint, Guide
from bench.checkpoints.manifest import Frozen, Source, not_here, section, validated
from bench.distilled import folder_of, open_distilled, read_student, sampler_of
from bench.errors import UsageError
from bench.words import parse
from distill.student import FewStep
from solvers import Option

KINDS = {"lora": "a LoRA", "unet": "a UNet"}
OPTIONS = {"lora": ("lora_scale",), "unet": (), "pipeline": ("resolution",)}  # further ones, of the loader


class StudentEntry(Frozen):
    """A published student: what it is, where it comes from, and how it is sampled.

    `kind` says what its weights are and `base`, where they are no pipeline of their own, the class of the pipeline that
    they go into; `options` are those that its loader needs for them.
    """

    name: str
    about: str
    source: Source
    kind: Literal["lora", "unet", "pipeline"]
    base: str = ""
    options: Mapping[str, Option] = {}
    sampler: Annotated[FewStep, BeforeValidator(FewStep.from_dict)]


@dataclass(frozen=True)
class Student:
    """A student ready to be sampled: its own network in the base's sampling space, its sampler and its guidance.

    `training` is what its own cost, and None for a published one.
    """

    name: str
    checkpoint: Checkpoint
    sampler: FewStep
    guide: Guide
    training: Mapping[str, Any] | None = None

    def plan(self, nfe: int) -> solvers.Plan:
        """The plan of `nfe` calls; raises BudgetError naming the student and the budgets it was trained for."""
        try:
            return self.sampler.plan(self.checkpoint.schedule, nfe)
        except solvers.BudgetError as error:
            raise solvers.BudgetError(f"{self.name}: {error}") from error
        except ValueError as error:
            raise UsageError(f"student {self.name!r}: {error}") from error


def names() -> list[str]:
    """Every published student, those of the manifest."""
    return list(section("students"))


def is_student(name: str) -> bool:
    return name in section("students") or folder_of(name) is not None


def entry(name: str) -> StudentEntry:
    """The student called `name` in the manifest; raises UnknownNameError, or UsageError for one written wrongly."""
    about = section("students").get(name)
    if about is None:
        raise solvers.did_you_mean("student", name, names())
    return validated(StudentEntry, about)


def open_student(text: str, base: Checkpoint) -> Student:
    """The student that a sweep on `base` calls `text`: name, or name(path=…, guidance=…), or a folder's path.

    Raises UsageError where its weights are not here, do not fit the base, or its guidance is another than it accepts.
    """
    name, options = parse("student", text)
    if folder := folder_of(name):
        return _open_folder(name, folder, options, base)
    found = entry(name)
    _check_options(name, options, ("path", "guidance", *OPTIONS[found.kind]))
    guide = Guide(_scale(name, found.sampler, options.get("guidance")))
    _check_base(found, base)
    path = _weights(found, options.get("path"))
    further = {k: v for k, v in options.items() if k in OPTIONS[found.kind]}
    checkpoint = _load(found, base, path, {**found.options, **further})
    _check_space(found, checkpoint, base)
    return Student(name, checkpoint, found.sampler, guide)


def _open_folder(name: str, folder: Path, options: Mapping[str, Option], base: Checkpoint) -> Student:
    """A student that was made here."""
    card = read_student(folder)
    sampler = sampler_of(folder, card)
    _check_options(name, options, ("guidance",))
    guide = Guide(_scale(name, sampler, options.get("guidance")))
    return Student(name, open_distilled(folder, base), sampler, guide, card["training"])


def _check_options(name: str, options: Mapping[str, Option], known: Sequence[str]) -> None:
    if unknown := [k for k in options if k not in known]:
        raise solvers.did_you_mean(f"option of {name}", unknown[0], list(known))


def _scale(name: str, sampler: FewStep, asked: Option | None) -> float:
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int | float)):
        raise UsageError(f"student {name!r}: guidance={asked!r} is not a number")
    try:
        return sampler.scale(asked)
    except ValueError as error:
        raise UsageError(f"student {name!r}: {error}") from error


def _weights(found: StudentEntry, given: Option | None) -> Path:
    """Where its weights lie: at the path given, or where `fewstep pull` puts them."""
    if given is None:
        path = found.source.find()
        if path is None:
            raise not_here(found.name, [found.source])
        return path
    if not Path(str(given)).exists():
        raise UsageError(f"student {found.name!r}: there is nothing at path={given!r}")
    return Path(str(given))


def _load(found: StudentEntry, base: Checkpoint, path: Path, options: Mapping[str, Option]) -> Checkpoint:
    if found.kind == "pipeline":
        from bench.checkpoints import pipelines  # diffusers takes seconds to import

        return pipelines.load(path, options, found.name)
    assert base.reopen  # _check_base
    return base.reopen({found.kind: str(path), **options})


def _check_base(found: StudentEntry, base: Checkpoint) -> None:
    """Raises UsageError for a base that the student's weights cannot belong to, before they are read."""
    there = base.card.get("pipeline")
    if found.kind != "pipeline" and (base.reopen is None or there != found.base):
        what = f"student {found.name!r} is {KINDS[found.kind]} for a {found.base}"
        raise UsageError(f"{what}, and {base.name} is {f'a {there}' if there else 'none'}")


def _check_space(found: StudentEntry, checkpoint: Checkpoint, base: Checkpoint) -> None:
    """Raises UsageError where student and base do not sample the same space for the same conditions."""
    if checkpoint.shape != base.shape:
        raise UsageError(
            f"student {found.name!r} samples {_size(checkpoint)}, and {base.name} {_size(base)}: open one of them with "
            "another resolution"
        )
    if len(checkpoint.classes) != len(base.classes) or (checkpoint.text is None) != (base.text is None):
        raise UsageError(f"student {found.name!r} is told {_told(checkpoint)}, and {base.name} {_told(base)}")
    if checkpoint.scale_as_input != found.sampler.embedded:
        takes = "is to take its guidance as an input" if found.sampler.embedded else "takes no guidance as an input"
        raise UsageError(f"student {found.name!r} {takes}, and these weights do the opposite")


def _size(checkpoint: Checkpoint) -> str:
    return " x ".join(map(str, checkpoint.shape))


def _told(checkpoint: Checkpoint) -> str:
    if checkpoint.text:
        return "prompts"
    return f"one of {len(checkpoint.classes)} classes" if checkpoint.classes else "nothing"
