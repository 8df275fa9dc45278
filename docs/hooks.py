"""What the site takes from the repository when it is built: results, figures, and the command line's help."""

import re
from pathlib import Path, PurePosixPath
from posixpath import relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)((?:#[^)\s]*)?)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The committed runs' pages and figures, at the paths that they have in the repository."""
    for path in sorted((ROOT / "results").rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in (".md", ".png") and not name.startswith("results/local-"):
            file = File.generated(config, name, abs_src_path=str(path))
            file.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to the repository's files lead to their pages here, and what has none is only named."""
    if page.file.src_uri == "reference/cli.md":
        return command_line()
    if page.file.src_uri.startswith("results/"):
        page.meta["search"] = {"exclude": True}  # numbers
    here = Path(page.file.abs_src_path or "").parent
    pages = {Path(f.abs_src_path).resolve(): f.src_uri for f in files if f.abs_src_path}

    def resolved(link: re.Match[str]) -> str:
        mark, text, target, anchor = link.groups()
        path = (here / target).resolve()
        if path in pages:
            to = relpath(pages[path], str(PurePosixPath(page.file.src_uri).parent))
            return f"{mark}[{text}]({to}{anchor})"
        in_repository = path.exists() and not path.is_relative_to(ROOT / "docs")
        return text if in_repository else link[0]

    return LINK.sub(resolved, markdown)


def command_line() -> str:
    """Every command with its options, as `fewstep COMMAND --help` says them."""
    import typer
    from typer.cli import get_docs_for_click

    from bench.cli import app

    command = typer.main.get_command(app)
    with command.make_context("fewstep", [], resilient_parsing=True) as context:
        text = get_docs_for_click(obj=command, ctx=context, name="fewstep", title="Command line")
    code = text.split("`")  # every second piece, of fences too
    return "`".join(piece if i % 2 else piece.replace("<", "&lt;") for i, piece in enumerate(code))
