"""Runs as an MLflow tracking store in SQLite: an experiment a results folder, a run a cell."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.entities import Run as Tracked
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH
from sqlalchemy.exc import SQLAlchemyError

from bench.errors import UsageError
from bench.export import ABOUT, COSTS, check_ours, distinct, finite
from bench.report.run import Run
from bench.report.scores import series_of
from bench.report.text import cut
from bench.store import Record

FILE = "mlflow.db"
KEY = "fewstep.key"


def write(runs: Mapping[str, Run], place: Path) -> None:
    """Add to a store in `place` what it does not have yet.  Raises UsageError where something else has the place."""
    check_ours(place, FILE)
    place.mkdir(parents=True, exist_ok=True)
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table that it creates
    try:
        client = MlflowClient(tracking_uri=f"sqlite:///{(place / FILE).resolve()}")
        for name, run in runs.items():
            _write_run(client, run, _experiment(client, name, place))
    except (MlflowException, SQLAlchemyError) as error:
        raise UsageError(f"{place / FILE}: MLflow cannot write it: {error}") from error


def _experiment(client: MlflowClient, name: str, place: Path) -> str:
    there = client.get_experiment_by_name(name)
    if there is None:
        return client.create_experiment(name, artifact_location=(place / "artifacts").resolve().as_uri())
    if there.lifecycle_stage == "deleted":
        client.restore_experiment(there.experiment_id)
    return there.experiment_id


def _write_run(client: MlflowClient, run: Run, experiment: str) -> None:
    there = {tracked.data.tags.get(KEY): tracked for tracked in _tracked(client, experiment)}
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in run.table.to_dict("records"):
        rows[row["key"]].append(row)
    names = distinct(set(run.table["metric"]))
    for record in run.records:
        key, when = record["key"], round(1000 * datetime.fromisoformat(record["finished"]).timestamp())
        tracked = there.get(key) or client.create_run(experiment, when, {KEY: key}, run_name=_label(record))
        _add(client, tracked, _params(record), _numbers(rows[key], names), _tags(record, names), when)
        if tracked.info.status != "FINISHED":
            client.set_terminated(tracked.info.run_id, end_time=when)


def _tracked(client: MlflowClient, experiment: str) -> Iterator[Tracked]:
    """The runs of an experiment, page after page."""
    token = None
    while token != "":
        page = client.search_runs([experiment], page_token=token)
        yield from page
        token = page.token or ""


def _add(
    client: MlflowClient,
    tracked: Tracked,
    params: Mapping[str, str],
    numbers: Mapping[str, float],
    tags: Mapping[str, str],
    when: int,
) -> None:
    """Give a run what it lacks; a number that was measured anew goes after the one before, at the same step."""
    data, step = tracked.data, round(numbers["counted_nfe"])
    metrics = [Metric(k, v, when, step) for k, v in numbers.items() if data.metrics.get(k) != v]
    lacking = [Param(k, v) for k, v in params.items() if k not in data.params]
    other = [RunTag(k, v) for k, v in tags.items() if data.tags.get(k) != v]
    client.log_batch(tracked.info.run_id, metrics, lacking, other)


def _label(record: Record) -> str:
    cell = record["cell"]
    return f"{series_of(record)} nfe={cell['nfe'] or 'adaptive'} seed={cell['seed']}"


def _params(record: Record) -> dict[str, str]:
    cell = record["cell"]
    about = {"solver": series_of(record), "nfe": cell["nfe"] or "adaptive", "seed": cell["seed"]}
    about |= {name: cell[name] for name in ABOUT if cell.get(name) is not None} | {"digest": cell["digest"]}
    options = cell.get("options", {})
    names = distinct(set(options))
    about |= {f"option.{names[name]}": value for name, value in options.items()}
    return {name: cut(str(value), MAX_PARAM_VAL_LENGTH) for name, value in about.items()}


def _numbers(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, float]:
    """Each metric and, as <metric>.se, its standard error; the calls; the costs, where they are known."""
    found = {name: rows[0][name] for name in ("counted_nfe", *COSTS) if name in rows[0]}
    for row in rows:
        name = names[row["metric"]]
        found |= {name: row["value"], f"{name}.se": row["se"]}
    return finite(found)


def _tags(record: Record, names: Mapping[str, str]) -> dict[str, str]:
    """Where a run comes from, and for each metric what its numbers may be compared with."""
    environment = record["environment"]
    tags = {KEY: record["key"]} | {name: str(environment[name]) for name in ("commit", "device", "threads")}
    for value in record["metrics"]:
        tags[f"{names[value['metric']]}.family"] = f"{value['family']}, against {value['reference']['data']}"
    return {name: cut(value, MAX_TAG_VAL_LENGTH) for name, value in tags.items()}
