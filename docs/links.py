"""Checks the links of the built site: `python docs/links.py docs/_build/html`.

Every link inside the site must lead to a file, and its anchor to an element of that page. Links that lead outside are
written to `outside-links.txt` beside the site and are not fetched: the site is built where there is no network.
"""

from __future__ import annotations

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

NO_PAGES = ("_static", "examples", "ledger")  # the theme's own files, and reports as they were written


class Page(HTMLParser):
    """The anchors of a page, and where it links to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the tag's anchors and links."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value and not value.startswith(("data:", "javascript:")):
                self.links.append(value)


page_at = cache(Page)


def broken(site: Path) -> tuple[list[str], set[str]]:
    """Links that lead nowhere, as "page: link", and all addresses outside."""
    wrong, outside = [], set()
    for path in sorted(site.rglob("*.html")):
        if path.relative_to(site).parts[0] in NO_PAGES:
            continue
        for link in page_at(path).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                outside.add(link)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            found = target.is_file()
            if found and target.suffix == ".html" and parts.fragment:
                found = unquote(parts.fragment) in page_at(target).anchors
            if not found:
                wrong.append(f"{path.relative_to(site)}: {link}")
    return wrong, outside


def main(site: Path) -> int:
    """Prints what is wrong; status 1 if anything is."""
    wrong, outside = broken(site)
    (site.parent / "outside-links.txt").write_text("".join(f"{link}\n" for link in sorted(outside)), encoding="utf-8")
    sys.stdout.write("".join(f"broken link in {each}\n" for each in wrong))
    sys.stdout.write(f"{len(list(site.rglob('*.html')))} pages, {len(wrong)} broken links, {len(outside)} outside\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
