"""How the site is built: `make docs`. Every page with code is run anew, and an error on it fails the build."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import jupytext
from sphinx.application import Sphinx

from probe import analyses
from probe.analysis import Config
from probe.claims import SIGNS

HERE = Path(__file__).parent
# pages run in kernels of their own: one core each, and no bars in their output
os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}

project = "probe"
author = copyright = "the probe authors"
version = release = "0.1.0"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "_generated", "examples", "ledger"]
suppress_warnings = ["ref.python"]  # short names in signatures meet: the continuity of weights, and that of a training
default_role = "code"

nb_execution_mode = "force"  # a cache would be keyed by the page alone, and not see that the library has changed
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_in_temp = True  # a page's runs/ are gone when it is built
nb_output_stderr = "remove"
nb_merge_streams = True
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_attr_annotations = False
napoleon_use_ivar = True

html_theme = "pydata_sphinx_theme"
html_title = "probe"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}  # left empty, the theme complains in the console of every page
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 5,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# pages without siblings have nothing to list beside them
html_sidebars = {
    page: []
    for page in (
        *("index", "install", "quickstart", "verdicts", "theory", "ledger"),
        *("examples", "errors", "benchmarks", "changelog", "contributing"),
    )
}
copybutton_exclude = ".linenos, .gp, .go"


def _notebooks(app: Sphinx) -> None:
    """Each notebook page also as a file that Jupyter opens."""
    for page in sorted((HERE / "notebooks").glob("*.md")):
        if page.stem != "index":
            _write(f"{page.stem}.ipynb", jupytext.writes(jupytext.read(page, fmt="md:myst"), fmt="ipynb"))


def _ledgers(app: Sphinx) -> None:
    """The committed ledgers as one fragment, and how many claims of each paper got which verdict as another."""
    columns = " | ".join(f"{sign} {verdict}" for verdict, sign in SIGNS.items())
    parts, counts = [], [f"| paper | {columns} |", "|---|" + len(SIGNS) * "--:|"]
    for folder in sorted((HERE / "ledger").iterdir()):
        found = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
        path = folder.relative_to(HERE).as_posix()
        links = ", ".join(f'<a href="{path}/ledger.{kind}">{kind}</a>' for kind in ("html", "csv", "json"))
        table = (folder / "ledger.md").read_text(encoding="utf-8")
        parts.append(f"## {found['title']}\n\n<p>The whole ledger: {links}.</p>\n\n{table}")
        first = {entry["id"]: entry["verdict"] for entry in reversed(found["entries"])}  # on the study's first model
        numbers = " | ".join(str(list(first.values()).count(verdict)) for verdict in SIGNS)
        counts.append(f"| [{found['title']}](https://arxiv.org/abs/{found['arxiv']}) | {numbers} |")
    _write("ledger.md", "\n".join(parts))
    _write("counts.md", "\n".join(counts) + "\n")


def _variables(app: Sphinx) -> None:
    """The variables of every analysis's Dataset, as its schema declares them, for the page on theory."""
    parts = []
    for name in ("tokenwise", "dynamics", "communities", "continuity", "causes", "lens"):
        rows = [
            f"| `{variable}` | {declared.axes} | {declared.unit or '–'} | {declared.meaning.replace('|', '&#124;')} |"
            for variable, declared in analyses.load(name).schema.items()
            if declared.kept
        ]
        parts += [f"### `{name}`", "", "| variable | axes | unit | meaning |", "|---|---|---|---|", *rows, ""]
    _write("variables.md", "\n".join(parts))


def _write(name: str, text: str) -> None:
    """A generated file, beside the pages that include it."""
    folder = HERE / "_generated"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def _kept_runs(app: Sphinx, error: Exception | None) -> None:
    """The kept reports and ledgers lie beside the pages, as they were written."""
    for name in ("examples", "ledger"):
        if error is None and (HERE / name).is_dir():
            shutil.copytree(HERE / name, Path(app.outdir) / name, dirs_exist_ok=True)


def _plain_signs(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings write |x| and stream-* as they are; outside code, reStructuredText would read markup in them."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)  # code at the odd places
        lines[number] = "".join(
            part if part.startswith("`") else re.sub(r"(\||(?<=[-(])\*|(?<=, )\*(?=\w))", r"\\\1", part)
            for part in parts
        )


def _fields_once(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Pages show the explanation of an option below it; the list in the docstring, for `help`, is left out."""
    if isinstance(obj, type) and issubclass(obj, Config) and "Attributes:" in lines:
        start = lines.index("Attributes:")
        end = next((row for row in range(start + 1, len(lines)) if lines[row][:1].strip()), len(lines))
        del lines[start:end]


def setup(app: Sphinx) -> None:
    """Connects what happens before and after the build."""
    app.connect("autodoc-process-docstring", _fields_once, priority=300)
    app.connect("autodoc-process-docstring", _plain_signs, priority=400)  # before napoleon
    app.connect("builder-inited", _notebooks)
    app.connect("builder-inited", _ledgers)
    app.connect("builder-inited", _variables)
    app.connect("build-finished", _kept_runs)
