"""Students made here: a folder with weights and a card that says what made them and how they are sampled.

weights/students/<name> in the package, or any folder of `fewstep distill`.  A student's weights are those that were
trained; the rest, and the architecture, are its teacher's, without which it cannot be opened.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import solvers
from bench.checkpoints import Checkpoint, Task, load
from bench.checkpoints.bundle import BUNDLED, read_bundle, read_card
from bench.errors import UsageError
from bench.teaching import teacher_of
from bench.words import parse
from distill import METHODS, Method
from distill.student import FewStep

SHIPPED = BUNDLED / "students"
KIND = "student"  # what cards of students say they are of


def shipped() -> list[str]:
    """The students that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/card.json"))


def shipped_for(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Those of this very checkpoint."""
    return tuple(name for name in shipped() if read_card(SHIPPED / name)["teacher"]["digest"] == checkpoint.digest)


def folder_of(name: str) -> Path | None:
    """Where the student called `name`, or at the path `name`, lies; None where there is none."""
    found = SHIPPED / name if name in shipped() else Path(name)
    return found if os.path.isfile(found / "card.json") else None  # Path's own fails for names that no file can have


def make_method(text: str) -> Method:
    """The distillation method of `name` or `name(option=value, ...)`; raises UsageError and UnknownNameError."""
    name, given = parse("method", text)
    kind = METHODS.get(name)
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UsageError(f"method {name!r} is no method of distillation: derive one from distill.Method")
    known = {field.name: field for field in dataclasses.fields(kind)}
    for option, value in given.items():
        if option not in known:
            raise UsageError(f"method {text!r}: {solvers.did_you_mean('option', option, list(known) or ['none'])}")
        wanted = type(known[option].default)
        if type(value) is int and wanted is float:
            given[option] = float(value)
        elif type(value) is not wanted:
            raise UsageError(f"method {text!r}: {option}={value!r} is not of type {wanted.__name__}")
    made: Method = kind(**given)
    return made


def read_student(folder: Path) -> dict[str, Any]:
    """A student's card; raises UsageError for a folder that holds another thing."""
    card = read_card(folder)
    if card["checkpoint"] != KIND or not {"method", "teacher", "sampler", "training"} <= card.keys():
        raise UsageError(f"{folder} holds a checkpoint, not a student: name it with --checkpoint")
    return card


def sampler_of(folder: Path, card: Mapping[str, Any]) -> FewStep:
    """What a student is sampled with; raises UsageError."""
    try:
        return FewStep.from_dict(card["sampler"])
    except ValueError as error:
        raise UsageError(f"{folder}/card.json: {error}") from error


def open_distilled(folder: Path, base: Checkpoint) -> Checkpoint:
    """The student in a folder on its teacher; raises UsageError for another base, or weights that do not fit."""
    card, bundle = read_student(folder), read_bundle(folder)
    teacher, start = card["teacher"], card.get("student")
    if teacher["digest"] != base.digest:
        there = f"{base.name} ({base.digest[:12]})"
        raise UsageError(f"student {folder.name!r} is of {teacher['name']} ({teacher['digest'][:12]}), not of {there}")
    begun = load(start["name"]) if start else base
    network = make_method(card["method"]).student(teacher_of(begun, Task(), torch.device("cpu")))
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in bundle.tensors.items()}
    try:
        missing, unknown = network.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise UsageError(f"student {folder.name!r}: {str(error).splitlines()[-1].strip()}") from error
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    if wrong := sorted(trained.intersection(missing)) + sorted(unknown):
        raise UsageError(f"student {folder.name!r}: its weights are not its method's: {wrong[0]}")
    return dataclasses.replace(
        base, name=folder.name, digest=bundle.digest, network=network.eval().requires_grad_(False), card=card,
        scale_as_input=base.scale_as_input or sampler_of(folder, card).embedded,
    )  # fmt: skip
