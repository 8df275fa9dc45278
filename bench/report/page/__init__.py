"""One self-contained HTML page of one or several runs: it opens offline, asks no host for anything, and stays small.

What the page shows is data in it as JSON, charts as Vega-Lite specifications that Altair made, tables of text as HTML;
page.js puts them together.  All text passes Jinja's escaping or is set as text; scripts run by their digest alone.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bench.errors import UsageError
from bench.files import nearest_folder, write_text
from bench.report.page.bundles import policy, scripts, styles
from bench.report.page.charts import charts
from bench.report.page.data import data_of
from bench.report.page.pictures import Pictures, pictures_of
from bench.report.page.sections import sections_of
from bench.report.run import Run, read_run
from bench.store import Store

LIMIT = 3_000_000  # bytes


def write_page(stores: Sequence[Store], path: Path) -> Path:
    """Write the page of these runs; raises UsageError for no results, a page too large, or a place not writable."""
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder: name a file")
    nearest_folder(path.parent)
    text = page([read_run(store) for store in stores])
    try:
        write_text(path, text)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    return path


def page(runs: Sequence[Run], limit: int = LIMIT) -> str:
    """The page as text; pictures take what room the rest leaves of `limit` bytes, and the page says what is missing.

    Raises UsageError when the rest alone is larger.
    """
    names = _names(runs)
    data = [{"name": name} | data_of(run) for name, run in zip(names, runs, strict=True)]
    about = [sections_of(name, run) for name, run in zip(names, runs, strict=True)]
    bare = _render(data, about, [Pictures()] * len(runs))
    room = limit - len(bare.encode()) - 4000 * len(runs)  # for what is said of the pictures
    if room < 0:
        size = (limit - room) / 1e6
        raise UsageError(
            f"the page of {len(runs)} runs would take {size:.1f} MB, more than {limit / 1e6:g}: give fewer folders"
        )
    return _render(data, about, [pictures_of(run, room // len(runs)) for run in runs])


def _render(data: Sequence[dict[str, Any]], about: Sequence[Any], pictures: Sequence[Pictures]) -> str:
    environment = Environment(
        loader=PackageLoader("bench.report.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [one | {"pictures": kept.data} for one, kept in zip(data, pictures, strict=True)]
    return environment.get_template("template.html.j2").render(
        runs=list(zip(about, pictures, strict=True)),
        data=shown,
        charts=charts(),
        styles=styles(),
        scripts=scripts(),
        policy=policy(),
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """What runs are called: their checkpoints, with the folder where two have the same one."""
    checkpoints = Counter(run.definition["checkpoint"] for run in runs)
    return [c if checkpoints[c := run.definition["checkpoint"]] == 1 else f"{c}, {run.store.folder}" for run in runs]
