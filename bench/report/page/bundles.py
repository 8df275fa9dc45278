"""What the page runs and how it looks: the kept libraries, each once, and our own script and style."""

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

import vl_convert
from altair import SCHEMA_VERSION
from itables.utils import read_package_file
from markupsafe import Markup

EXPORT = re.compile(r"\bexport\s*\{[^{}]*?([\w$]+) as default\b[^{}]*\};?")  # of a bundled module, at its end
END = re.compile(r"</(script|style)", re.IGNORECASE)


@cache
def scripts() -> tuple[Markup, ...]:
    """Vega-Embed with all it needs, DataTables, and what uses them, in the order in which they run."""
    return _vega(), _tables(), _inline(_own("page.js"))


@cache
def styles() -> tuple[Markup, ...]:
    return _inline(read_package_file("html", "dt_bundle.css")), _inline(_own("page.css"))


def policy() -> Markup:
    """The page's Content-Security-Policy: no requests, and no script but those above."""
    digests = " ".join(f"'sha256-{b64encode(sha256(s.encode()).digest()).decode()}'" for s in scripts())
    return Markup(
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _vega() -> Markup:
    return _inline(vl_convert.javascript_bundle(vl_version=".".join(SCHEMA_VERSION.lstrip("v").split(".")[:2])))


def _tables() -> Markup:
    """The module of itables in a scope of its own, with its default export, DataTables, as a global name."""
    module = read_package_file("html", "dt_bundle.js")
    exports = EXPORT.findall(module)
    if len(exports) != 1:
        raise RuntimeError("itables' bundle has another form than is known: it does not end in one default export")
    return _inline(f"(() => {{{EXPORT.sub('', module)}\nwindow.DataTable = {exports[0]};}})();")


def _own(name: str) -> str:
    return (files("bench.report.page") / name).read_text(encoding="utf-8")


def _inline(text: str) -> Markup:
    """The text as a script or style that its element's end cannot be found in."""
    return Markup(END.sub(r"<\\/\1", text.replace("\r\n", "\n")))
