"""Recordings of the Time-Shift samplers: what their authors released, on DDPM's code and on ADM's."""

import solvers
from solvers.time_shift import TimeShift
from tests.golden import Case

BASES = {"ddim": "ddim", "ddpm": "ddpm", "spndm": "pndm_s", "fpndm": "pndm_f"}


def time_shift(case: Case) -> TimeShift:
    given, official = case.options, "adm" if case.id.startswith("tsadm") else "pnm"
    options: dict[str, solvers.Option] = {
        "base": BASES[case.id.split("-")[1]],
        "window": given["window"] if official == "adm" else given["window_size"],
        "cutoff": given["cutoff"] if official == "adm" else given["cut_off_value"],
        "official": official,
    }
    made = solvers.plan("time_shift", case.schedule, times=case.times, **options)
    assert isinstance(made, TimeShift)
    return made


PLANS = {"ts-|tsadm-": time_shift}
EXPLAINED: dict[str, str] = {}
