"""FID that others published of the same checkpoint: citations beside a leaderboard, and never among its numbers."""

from bench.checkpoints.manifest import as_published, entry
from bench.report.text import markdown


def published(checkpoint: str) -> list[str]:
    """The section of a checkpoint that the manifest has numbers for; nothing for any other."""
    found = entry(checkpoint)
    if found is None or not found.published:
        return []
    budgets = sorted({nfe for about in found.published for nfe in about.nfe})
    lines = [["solver", *map(str, budgets), "source"], ["---"] * (len(budgets) + 2)]
    for about in found.published:
        source = "; ".join(filter(None, (about.citation, about.note)))
        for solver, row in about.fid.items():
            values = dict(zip(about.nfe, row, strict=True))
            lines.append([solver, *(as_published(values.get(nfe)) for nfe in budgets), source])
    return [
        "## Published, not ours",
        f"FID that others report of {checkpoint} or, where it says so, of students of its data set, by network calls.  "
        "None of it was measured here, and settings may differ: times, last step, guidance, number of samples, "
        "reference statistics.  The same solver on the same checkpoint differs between sources by 0.1 to 0.5.",
        markdown(lines),
    ]
