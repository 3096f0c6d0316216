"""What a user sees of the library: its names by Tab, their types, and a page for each room."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import types
from pathlib import Path

import pytest

import probe
from probe import analyses

ROOT = Path(__file__).parent.parent
API = ROOT / "docs" / "api"
ROOMS = sorted(name for name in dir(probe) if inspect.ismodule(getattr(probe, name)))
every_room = pytest.mark.parametrize("room", ROOMS)


def test_tab_after_the_library_shows_what_is_public() -> None:
    assert set(dir(probe)) == {*probe.__all__, *ROOMS, "__version__"}
    assert 12 <= len(probe.__all__) <= 20
    assert {"analyses", "graphs", "maps", "plots", "spectra", "weights"} <= set(ROOMS)
    assert not {"Any", "TYPE_CHECKING", "cli", "display", "importlib", "machine", "pkgutil"} & set(dir(probe))


@every_room
def test_tab_after_a_room_shows_what_is_public(room: str) -> None:
    module = getattr(probe, room)
    shown = dir(module)
    inside = analyses.names() if room == "analyses" else []
    assert set(shown) - set(inside) == set(module.__all__)
    for name in module.__all__:
        found = getattr(module, name)
        assert not name.startswith("_")
        assert not isinstance(found, types.ModuleType), name
        assert getattr(found, "__module__", "probe").startswith(("probe", "typing", "types", "builtins")), name


@every_room
def test_every_public_room_has_a_page(room: str) -> None:
    page = API / f"{room}.md"
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# `probe.{room}`\n")
    index = (API / "index.md").read_text(encoding="utf-8")
    assert f"[`probe.{room}`]({room}.md)" in index
    assert re.search(rf"^{room}$", index, re.MULTILINE), "it is in the toctree"
    assert f"probe.{room}" in "".join(re.findall(r"^\.\. auto.*$", text, re.MULTILINE))


def test_every_page_is_of_a_public_room() -> None:
    assert {page.stem for page in API.glob("*.md")} - {"index", "probe"} == set(ROOMS)


def test_every_public_name_of_the_library_is_on_its_page() -> None:
    text = (API / "probe.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\.\. auto(?:function|class):: (\w+)$", text, re.MULTILINE)) == set(probe.__all__)


@pytest.mark.parametrize("module", [probe, analyses], ids=lambda module: module.__name__)
def test_type_checkers_see_what_loads_on_use(module: types.ModuleType) -> None:
    """Without mypy, which `make lint` runs on `tests/typed.py`."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    known = {
        alias.asname or alias.name
        for branch in tree.body
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    built_in = {name for name in dir(module) if not name.startswith("_")} - set(analyses._others())
    assert built_in <= known | defined | {"InputError"}


@every_room
def test_public_objects_that_hold_arrays_show_themselves(room: str) -> None:
    """A generated repr would print every number."""
    module = getattr(probe, room)
    for kind in (getattr(module, name) for name in module.__all__):
        if dataclasses.is_dataclass(kind) and any(
            re.search(r"Tensor|ndarray|xr\.|DataFrame", str(one.type)) for one in dataclasses.fields(kind) if one.repr
        ):
            written = inspect.unwrap(kind.__repr__).__code__.co_filename
            assert written != "<string>", f"{kind.__name__} prints its arrays"
            assert hasattr(kind, "_repr_html_"), f"{kind.__name__} shows nothing in a notebook"
