"""What a run's work is made of: tasks by their labels, the variables that they measure, and a plan of both.

Nothing here imports an array library: an analysis can be named, and its options shown, without one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

Label: TypeAlias = int | str | float
"""What tells one place along an axis from another."""

KEY = re.compile(r"[\w=+,.-]+")
"""What stages and keys of tasks look like: file names."""


@dataclass(frozen=True)
class Task:
    """One independent piece of a run's work. It pickles, so that another process can do it.

    Attributes:
        stage: The stage it belongs to.
        labels: What tells it from the other tasks of its stage: along the axes of what it measures ("layer",
            "variant"), or beside them ("part"). They become labels of its piece.
        arguments: What else its function needs to know, in the types that JSON has.

    Raises:
        TypeError: If labels or arguments cannot be written as JSON.
        ValueError: If stage and labels make no file name.
    """

    stage: str
    labels: Mapping[str, Label] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        json.dumps([dict(self.labels), dict(self.arguments)])  # raises TypeError
        for name in (self.stage, self.key):
            if not KEY.fullmatch(name) or name.startswith("."):
                raise ValueError(f"stages and keys of tasks must be file names ({KEY.pattern}), got {name!r}")

    @cached_property
    def key(self) -> str:
        """Its name within the stage, made of its labels: for example "init-0-layer-003"; "all" without labels."""
        parts = [
            value if isinstance(value, str) else f"{name}-{value:05d}" if isinstance(value, int) else f"{name}-{value}"
            for name, value in self.labels.items()
        ]
        return "-".join(parts) or "all"

    def __getitem__(self, name: str) -> Any:
        """A label or an argument by its name."""
        return self.labels[name] if name in self.labels else self.arguments[name]

    @property
    def size(self) -> int:
        """Length of its batch; 1 for a task that is none."""
        return int(self["stop"] - self["start"]) if "start" in self.labels and "stop" in self.arguments else 1

    @property
    def rows(self) -> slice:
        """The batch from the label `start` to the argument `stop`."""
        return slice(self["start"], self["stop"])


@dataclass(frozen=True)
class Variable:
    """One variable of an analysis, declared once: what its tasks return, its Dataset holds and the docs tell.

    Attributes:
        axes: Names of its axes, in their order, separated by blanks: "map layer query".
        unit: Its unit: "nat", "rad", "1" for a plain number; None for labels.
        meaning: What it is, in a line: the `long_name` of the Dataset.
        kept: Whether the Dataset holds it; if not, it only passes from one stage to a later one.
        fill: What stands where nothing was measured; by default NaN.
    """

    axes: str
    unit: str | None = "1"
    meaning: str = ""
    kept: bool = True
    fill: float | int = math.nan

    @property
    def dims(self) -> tuple[str, ...]:
        """The axes, one by one."""
        return tuple(self.axes.split())

    @property
    def attributes(self) -> dict[str, str]:
        """Unit and meaning, as the Dataset has them."""
        return ({} if self.unit is None else {"units": self.unit}) | {"long_name": self.meaning}


class Schema(Mapping[str, Variable]):
    """The variables of an analysis by name; where they stand is where they are listed.

    An array whose shape depends on what it is of may have a name with a suffix: "left.q" is declared by "left".

    Args:
        variables: The variables.
        lengths: Of the axes that have one length in a whole run; an array without labels along one must have it.
    """

    def __init__(self, variables: Mapping[str, Variable], lengths: Mapping[str, int] | None = None) -> None:
        self._variables = dict(variables)
        self.lengths = dict(lengths or {})

    def sized(self, coordinates: Mapping[str, Any]) -> Schema:
        """Give the axes of a run a length each, so that a piece of another length is refused when it is saved.

        Args:
            coordinates: Of the Dataset, as `xarray.Dataset` takes them.

        Returns:
            The schema with these lengths.
        """
        lengths: dict[str, int] = {}
        for name, given in coordinates.items():
            axis, values = given if isinstance(given, tuple) and len(given) == 2 else (name, given)
            if isinstance(axis, str) and hasattr(values, "__len__"):
                lengths[axis] = len(values)
        return Schema(self._variables, lengths)

    def __getitem__(self, name: str) -> Variable:
        return self._variables[name if name in self._variables else name.partition(".")[0]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._variables or name.partition(".")[0] in self._variables)

    def entry(self, name: str, values: Any) -> tuple[tuple[str, ...], Any, dict[str, str]]:
        """Make a variable as `xarray.Dataset` takes it.

        Args:
            name: One of the schema's.
            values: An array with the declared axes.

        Returns:
            Axes, values and attributes.

        Raises:
            ValueError: If the array has another number of axes.
        """
        declared = self[name]
        if getattr(values, "ndim", 0) != len(declared.dims):
            raise ValueError(
                f"{name} must have the axes it is declared with ({declared.axes or 'none'}), got the shape "
                f"{getattr(values, 'shape', ())}"
            )
        return declared.dims, values, declared.attributes


@dataclass(frozen=True)
class StagePlan:
    """Tasks, time and memory of one stage.

    Attributes:
        name: The stage.
        tasks: Number of tasks.
        seconds: Estimated time, in seconds; NaN where nobody can say.
        bytes: Estimated peak memory, in bytes; NaN likewise.
    """

    name: str
    tasks: int
    seconds: float | int = math.nan
    bytes: float | int = math.nan


@dataclass(frozen=True)
class Plan:
    """The stages of a run with what they would take, in order; `--dry-run` prints it.

    Attributes:
        stages: The stages.
    """

    stages: Sequence[StagePlan]
