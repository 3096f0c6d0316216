"""The plan of the house: a room imports only from rooms below it, and no public name hides a module."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys

import pytest

import probe
from tests.plan import ROOT, circles, files, floors, graph, imported_rooms, room_of

# from the ground up; a room imports only from rooms on lower floors
FLOORS = [
    ("display", "errors", "machine"),
    ("boundary",),
    ("geometry", "inference", "model"),
    ("claims", "plots", "text"),
    ("graphs", "maps", "runs", "spectra", "stream", "training"),
    ("replay", "report", "weights"),
    ("analysis", "jacobian", "patching"),
    ("attribution", "directions"),
    ("lens",),
    ("analyses",),
    ("study",),
    ("cli",),
    ("__main__",),
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


FILES = files()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_rooms_below(path):
    own = room_of(path)
    for room in imported_rooms(path):
        assert room in FLOOR_OF, f"{own} imports probe.{room}, which has no floor: give it one"
        assert room == own or FLOOR_OF[room] < FLOOR_OF[own], f"{own} imports {room}, which is on no lower floor"


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} == set(FLOOR_OF)


def test_a_room_is_on_the_lowest_floor_that_its_imports_allow():
    assert floors(graph()) == FLOOR_OF
    assert circles(graph()) == []


def test_circles_are_seen(tmp_path):
    for room, imports in (("below", ""), ("left", "right, below"), ("right", "left")):
        (tmp_path / f"{room}.py").write_text(f"def late():\n    from probe import {imports}\n" if imports else "")
    assert circles(graph(tmp_path)) == [{"left", "right"}]
    assert floors(graph(tmp_path)) == {"below": 0, "left": 1, "right": 1}


def test_contributing_draws_the_same_plan():
    text = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \|", text, re.MULTILINE)
    drawn = [(int(floor), tuple(re.findall(r"`(\w+)`", rooms))) for floor, rooms in rows]
    assert drawn == list(enumerate(FLOORS))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_in_a_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_public_names_survive_the_import_of_every_module():
    for module in pkgutil.walk_packages(probe.__path__, "probe."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    modules = {module.name for module in pkgutil.iter_modules(probe.__path__)}
    assert not modules & set(probe.__all__)
    for name in ("load_model", "load_windows", "capture"):
        assert callable(getattr(probe, name))
        assert getattr(probe, name).__name__ == name
    assert probe.maps.LinearMap.__name__ == "LinearMap"
    assert callable(probe.analyses.tokenwise.run)
    assert set(probe.__all__) <= set(dir(probe))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = probe.nothing


@pytest.mark.parametrize(
    "module",
    [
        "probe",
        "probe.analyses",
        "probe.analysis.command",
        "probe.analysis",
        "probe.analyses.tokenwise",
        "probe.analyses.dynamics",
        "probe.analyses.lens",
        "probe.analyses.continuity",
        "probe.analyses.causes",
    ],
)
def test_what_help_needs_imports_no_torch(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers', 'xarray'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_the_library_reaches_for_no_network():
    code = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "import probe, pkgutil, importlib\n"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(probe.__path__, 'probe.')"
        " if not m.name.endswith('__main__')]"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_type_checkers_of_users_read_the_types():
    assert (ROOT / "py.typed").is_file()
