"""The plan of the house as its imports draw it: rooms, arrows, floors, circles.

python -m tests.plan          # of this checkout
python -m tests.plan FOLDER   # of another one
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import networkx as nx

import probe

ROOT = Path(probe.__file__).parent


def room_of(path: Path, root: Path = ROOT) -> str:
    """The room that a file belongs to."""
    return path.relative_to(root).parts[0].removesuffix(".py")


def files(root: Path = ROOT) -> list[Path]:
    """All files in rooms."""
    return sorted(path for path in root.rglob("*.py") if path != root / "__init__.py")


def imported_rooms(path: Path) -> Iterator[str]:
    """Rooms that a file imports when it runs, also inside functions; imports for type checkers alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "probe":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("probe."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("probe."))


def graph(root: Path = ROOT) -> nx.DiGraph:
    """Rooms, with an arrow to each room that one imports."""
    found = nx.DiGraph()
    for path in files(root):
        room = room_of(path, root)
        found.add_node(room)
        found.add_edges_from((room, other) for other in imported_rooms(path) if other != room)
    return found


def circles(rooms: nx.DiGraph) -> list[set[str]]:
    """Rooms that import each other, in a circle."""
    return [set(part) for part in nx.strongly_connected_components(rooms) if len(part) > 1]


def floors(rooms: nx.DiGraph) -> Mapping[str, int]:
    """The lowest floor that each room's imports allow; rooms of one circle share theirs."""
    condensed = nx.condensation(rooms)
    floor: dict[int, int] = {}
    for part in reversed(list(nx.topological_sort(condensed))):
        floor[part] = 1 + max((floor[below] for below in condensed.successors(part)), default=-1)
    return {room: floor[part] for room, part in condensed.graph["mapping"].items()}


def main(root: Path) -> str:
    """The plan in words."""
    rooms = graph(root)
    on = floors(rooms)
    lines = [
        f"{floor}: {', '.join(sorted(r for r in rooms if on[r] == floor))}" for floor in range(max(on.values()) + 1)
    ]
    told = [" ↔ ".join(sorted(circle)) for circle in circles(rooms)]
    counts = f"{len(rooms)} rooms, {len(lines)} floors, {rooms.number_of_edges()} arrows, {len(told)} circles"
    return "\n".join([*lines, counts, *told])


if __name__ == "__main__":
    print(main(Path(sys.argv[1]) / "probe" if len(sys.argv) > 1 else ROOT))  # noqa: T201
