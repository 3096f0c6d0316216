"""How the site is built: `make docs`. Every page with code is run anew, and an error on it fails the build."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import jupytext
from sphinx.application import Sphinx

HERE = Path(__file__).parent
# pages run in kernels of their own: one core each, and no bars in their output
os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}

project = "probe"
author = copyright = "the probe authors"
version = release = "0.1.0"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "_generated", "examples", "ledger"]
suppress_warnings = ["ref.python"]  # short names in signatures meet: a plan of a run, and one of a training
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
    folder = HERE / "_generated"
    folder.mkdir(exist_ok=True)
    for page in sorted((HERE / "notebooks").glob("*.md")):
        if page.stem != "index":
            jupytext.write(jupytext.read(page, fmt="md:myst"), folder / f"{page.stem}.ipynb")


def _ledger(app: Sphinx) -> None:
    """The committed ledgers as one fragment; until there is one, a sentence that says so."""
    parts = []
    for table in sorted((HERE / "ledger").rglob("ledger.md")):
        folder = table.parent.relative_to(HERE).as_posix()
        title = json.loads((table.parent / "ledger.json").read_text(encoding="utf-8"))["title"]
        links = ", ".join(f'<a href="{folder}/ledger.{kind}">{kind}</a>' for kind in ("html", "csv", "json"))
        parts.append(f"## {title}\n\n<p>The whole ledger: {links}.</p>\n\n{table.read_text(encoding='utf-8')}")
    nothing = "No ledger has been committed yet: `probe study` writes one from real runs.\n"
    (HERE / "_generated").mkdir(exist_ok=True)
    (HERE / "_generated" / "ledger.md").write_text("\n".join(parts) or nothing, encoding="utf-8")


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


def setup(app: Sphinx) -> None:
    """Connects what happens before and after the build."""
    app.connect("autodoc-process-docstring", _plain_signs, priority=400)  # before napoleon
    app.connect("builder-inited", _notebooks)
    app.connect("builder-inited", _ledger)
    app.connect("build-finished", _kept_runs)
