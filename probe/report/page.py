"""Self-contained HTML pages, made of templates.

A page holds all it needs: figures as data URIs (PNG or SVG, whichever is smaller), plotly.js once, the numbers of the
interactive charts as JSON. Its Content-Security-Policy forbids the network and runs no script but the page's own,
by hash. All text from outside (titles, tokens, names, options) is escaped: by the templates in HTML, by `script_json`
inside script elements, and by `hover_text` where plotly would read tags.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from probe.claims import SIGNS, Claim, bound_text


def interval_text(estimate: float | None, low: float | None, high: float | None) -> str:
    """Format an estimate with its interval, with so many decimals that the interval's width has two digits.

    Args:
        estimate: A number; None and NaN become a dash.
        low: Lower end; without two finite ends the estimate stands alone.
        high: Upper end.

    Returns:
        For example "0.617 [0.601, 0.632]".
    """
    if estimate is None or low is None or high is None or not 0 < high - low < math.inf:
        return _number(estimate)
    decimals = max(0, 1 - math.floor(math.log10(high - low)))
    first, second, third = (f"{value:z.{decimals}f}".replace("-", "−") for value in (estimate, low, high))
    return f"{first} [{second}, {third}]"


def script_json(text: str) -> Markup:
    """Make JSON safe inside a script element: nothing in it can close the element or open a comment.

    Args:
        text: JSON.

    Returns:
        The same JSON with `<`, `>`, `&` and the two line separators of Unicode written as escapes.
    """
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def page(template: str, content: Mapping[str, Any], *, interactive: bool) -> str:
    """Render a template as a whole page, with style, scripts and a policy that lets no other script run.

    Args:
        template: File name of the template.
        content: Values for the template; escaped unless marked as safe.
        interactive: Whether to include plotly.js.

    Returns:
        HTML.
    """
    scripts = [_resource("page.js")]
    if interactive:
        from plotly.offline import get_plotlyjs

        scripts.insert(0, get_plotlyjs())
    return rendered(environment().get_template(template), content, style=_resource("page.css"), scripts=scripts)


def rendered(template: jinja2.Template, content: Mapping[str, Any], *, style: str, scripts: Sequence[str]) -> str:
    """Render a template with its style and scripts, and a policy that lets no other script run.

    Args:
        template: The template, which places `policy`, `style` and `scripts`.
        content: Values for the template; escaped unless marked as safe.
        style: The style sheet.
        scripts: The scripts.

    Returns:
        HTML.
    """
    # a browser reads line ends as \n before it computes the hash
    scripts = [script.replace("\r\n", "\n").replace("\r", "\n") for script in scripts]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    policy = "; ".join([
        "default-src 'none'",
        "script-src " + " ".join(f"'sha256-{value}'" for value in hashes),
        "style-src 'unsafe-inline'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
    ])
    marked = [Markup(script) for script in scripts]
    return template.render(content, policy=policy, style=Markup(style), scripts=marked)


def environment(room: str = "probe.report") -> jinja2.Environment:
    """Load the templates of a room, which escape all that is not marked as safe.

    Args:
        room: The package that has them, in its folder `templates`.

    Returns:
        The templates.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader(room, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["number"] = _number
    templates.filters["interval"] = _interval
    templates.filters["required"] = _required
    templates.filters["plain"] = _plain
    templates.globals["signs"] = SIGNS
    return templates


def _resource(name: str) -> str:
    return (resources.files("probe.report") / "templates" / name).read_text(encoding="utf-8")


def _number(value: object) -> str:
    """A number to three digits; a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:z.3g}".replace("-", "−") if isinstance(value, float) else str(value)


def _interval(entry: Claim | Mapping[str, Any]) -> str:
    """Estimate and interval of a claim, or of a null line or control in it."""
    values = asdict(entry) if isinstance(entry, Claim) else entry
    return interval_text(*(values.get(name) for name in ("estimate", "ci_low", "ci_high")))


def _required(control: Mapping[str, Any]) -> str:
    """Bound and side of a control that decides; a dash for what is only shown."""
    bound, direction = control.get("threshold"), control.get("direction")
    return "–" if bound is None or direction is None else bound_text(direction, bound)


def _plain(value: object) -> str:
    """A configuration value as text."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return {None: "–", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


def link(target: Path, page: Path) -> str:
    """Write the address of a file relative to a page.

    Args:
        target: The file.
        page: The page's file.

    Returns:
        The address, quoted.
    """
    return quote(Path(os.path.relpath(target.resolve(), page.resolve().parent)).as_posix())
