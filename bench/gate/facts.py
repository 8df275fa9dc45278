"""What may not differ at all between a cell and its baseline, and how far numbers may: one line for each that does."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from bench.gate.baseline import Expected, Past, Settings
from solvers import Plan
from solvers.plan import Procedure

SAME = 1e-9  # relative, of coefficients and times: what another machine's libm may differ by is far below
NOTHING = 1e-12  # coefficients that are 0 but for rounding
ROUNDING = 1e-6  # relative, of a metric's value
REFERENCE = 0.01  # standard errors: a number that moved less was compared with the same reference, but for rounding
ADAPTED = 0.01  # of the calls of a solver that adapts: on another machine a step may be decided otherwise
PROGRAM = ("predicts", "schedule", "times", "instructions")  # of a plan: what it does, not what it is called


def program(plan: Plan | Procedure) -> dict[str, Any]:
    """What a baseline keeps of a plan."""
    said: dict[str, Any] = json.loads(plan.to_json())
    return {k: said[k] for k in PROGRAM} if isinstance(plan, Plan) else said


def plan_of(kept: Mapping[str, Any]) -> Plan:
    """The plan again, what it was called aside."""
    return Plan.from_json(json.dumps({"method": "", "options": {}, "order": 0} | dict(kept)))


def cell_fault(past: Past, now: Past) -> str:
    """The first deterministic difference; "" when there is none."""
    if past.digest != now.digest:
        return f"the network is another: {past.digest[:12]} became {now.digest[:12]}"
    if past.nfe != now.nfe:
        return f"NFE {past.nfe} became {now.nfe}"
    return program_fault(past.plan, now.plan)


def program_fault(past: dict[str, Any], now: dict[str, Any]) -> str:
    """The first number or instruction of a program that differs, by name, with both values."""
    for path, a, b in _differences(past, now, ()):
        if not isinstance(a, float | int) or not isinstance(b, float | int):
            return f"{_name(path, past)}: {json.dumps(a):.120} became {json.dumps(b):.120}"
        by = f", by {abs(b - a) / abs(a):.2g} of it" if a else ""
        return f"{_name(path, past)}: {a!r} became {b!r}{by}"
    return ""


def _differences(past: Any, now: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any, Any]]:
    if isinstance(past, dict) and isinstance(now, dict) and past.keys() == now.keys():
        for key in past:
            yield from _differences(past[key], now[key], (*path, key))
    elif isinstance(past, list) and isinstance(now, list):
        for k, (a, b) in enumerate(zip(past, now, strict=False)):
            yield from _differences(a, b, (*path, k))
        if len(past) != len(now):
            yield (*path, "length"), len(past), len(now)
    elif isinstance(past, float | int) and isinstance(now, float | int):
        if not math.isclose(past, now, rel_tol=SAME, abs_tol=NOTHING):
            yield path, past, now
    elif past != now:
        yield path, past, now


def _name(path: tuple[str | int, ...], past: dict[str, Any]) -> str:
    match path:
        case ("instructions", int(k), "terms", int(j), 0, *_):
            return f"instruction {k}, coefficient of r{past['instructions'][k]['terms'][j][1]}"
        case ("instructions", int(k), "noise", int(j), 0):
            return f"instruction {k}, coefficient of draw {past['instructions'][k]['noise'][j][1]}"
        case ("instructions", int(k), *rest):
            return f"instruction {k}" + f", {'.'.join(map(str, rest))}" * bool(rest)
        case ("times", int(k)):
            return f"time {k}"
        case _:
            return ".".join(map(str, path))


def window(past: Expected, settings: Settings) -> float:
    """How far a number may move."""
    return settings.window * past.se + ROUNDING * abs(past.value)


def quality_fault(past: Past, now: Past, settings: Settings) -> str:
    """The first number, or count of calls, that is not what it was; "" when there is none."""
    for what in ("counted_nfe", "forwards"):
        before, after = getattr(past, what), getattr(now, what)
        if not math.isclose(before, after, rel_tol=SAME if past.nfe else ADAPTED):
            name = {"counted_nfe": "counted NFE", "forwards": "forwards a sample"}[what]
            return f"{name} {before:g} became {after:g}, {after - before:+g}"
    if past.values.keys() != now.values.keys():
        return f"the numbers {', '.join(past.values)} became {', '.join(now.values)}"
    return next(
        (f"{name}: {fault}" for name, old in past.values.items() if (fault := _moved(old, now.values[name], settings))),
        "",
    )


def _moved(old: Expected, new: Expected, settings: Settings) -> str:
    moved, said = abs(new.value - old.value), f"{old.value:.6g} ± {old.se:.2g} became {new.value:.6g}"
    if old.family != new.family:
        return f"{said}, in the family {new.family!r} where it was {old.family!r}"
    about = [{k: v for k, v in e.reference.items() if k != "sha256"} for e in (old, new)]
    if about[0] != about[1]:
        return f"{said}, against {about[1]} where it was {about[0]}"
    by = f"{moved / old.se:.2g} standard errors" if old.se else f"{moved:.3g}"
    if moved > window(old, settings):
        return f"{said}, by {by}, outside its window of ± {window(old, settings):.2g}"
    if old.reference.get("sha256") != new.reference.get("sha256") and moved > REFERENCE * old.se:
        return f"{said}, by {by}, against another reference: {_digest(old)} became {_digest(new)}"
    return ""


def _digest(value: Expected) -> str:
    return str(value.reference.get("sha256"))[:12]


def expected(value: Mapping[str, Any]) -> Expected:
    """What a baseline keeps of a metric's number, as a record has it."""
    return Expected(value=value["value"], se=value["se"], family=value["family"], reference=value["reference"])
