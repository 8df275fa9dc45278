"""Repositories of the Hugging Face hub: found in its cache, or brought there."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from bench.checkpoints.download import check_room
from bench.checkpoints.manifest import REPOSITORY, Source, validated
from bench.checkpoints.repository import INDEX, wanted
from bench.errors import UsageError
from bench.metrics.weights import in_short
from solvers import Option


def found(repository: str, options: Mapping[str, Option]) -> Path:
    """The folder of `owner/name` at the option `revision`, main without it: from the cache, or else brought there.

    Raises UsageError.
    """
    revision = str(options.get("revision", "main"))
    if not re.fullmatch(REPOSITORY, repository):
        raise UsageError(f"hub:{repository} is not of the form hub:owner/name")
    about = {"name": f"hub:{repository}", "hub": repository, "revision": revision, "licence": "see its page"}
    source = validated(Source, about)
    path = source.find(revision)
    if path is None:
        bring(source, revision, ())
        path = source.find(revision)
    if path is None:
        raise UsageError(f"{source.address} at {revision} holds no pipeline: a model in it lacks its weights")
    return path


def bring(source: Source, revision: str, names: tuple[str, ...]) -> dict[str, str | None]:
    """Bring the files of these patterns, or those wanted, into the hub's own cache, but for those that are there.

    Gives their names with the SHA-256 that the hub says they have, where it does; raises UsageError.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache

    assert source.hub
    with _in_one_line(source, revision):
        there = HfApi().model_info(source.hub, revision=revision, files_metadata=True)
        digests = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in there.siblings or ()}
        if not names:
            has = INDEX in digests
            index = json.loads(Path(hf_hub_download(source.hub, INDEX, revision=revision)).read_text()) if has else {}
            names = tuple(wanted(digests, index))
        files = [name for name in digests if any(fnmatchcase(name, pattern) for pattern in names)]
        if lacking := [p for p in names or ("pipeline in it",) if not any(fnmatchcase(name, p) for name in files)]:
            raise UsageError(f"{source.address} at {revision} has no {lacking[0]}")
        sizes = {file.rfilename: file.size or 0 for file in there.siblings or ()}
        kept = {name for name in files if isinstance(try_to_load_from_cache(source.hub, name, revision=there.sha), str)}
        check_room(Path(constants.HF_HUB_CACHE), sum(sizes[name] for name in files if name not in kept))
        snapshot_download(source.hub, revision=revision, allow_patterns=files)
    return {name: digests[name] for name in files}


@contextmanager
def _in_one_line(source: Source, revision: str) -> Iterator[None]:
    """Turns what the hub's client raises into a UsageError."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        page = f"https://huggingface.co/{source.hub}"
        raise UsageError(f"{source.address} is gated: accept its terms at {page}, and set $HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(f"{source.address} is not there, or is private: then set $HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{source.address} has no revision {revision}") from error
    except UsageError:
        raise
    except Exception as error:  # of its HTTP library too, and which that is depends on the client's version
        why = in_short(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise UsageError(f"{source.address} cannot be brought: {why}") from error
