"""The cells of the grid: parts of one toy, the named cells, and the full product.

Without torch, so that `--help` and a bad `--cells` answer at once.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from probe.errors import InputError
from probe.training.names import ACTIVATIONS, NORMS, OPTIMISERS, RADIAL, TEACHERS, TOY_FORMS

DECAYS = (0.0, 0.01, 0.1, 1.0)
SCALES = (0.05, 0.2, 0.5, 1.0)
RESIDUAL_SCALE, PLAIN_SCALE = 0.5, 1.4  # without a residual the signal needs larger weights to arrive
GRID = ("identity", *RADIAL, "gelu")
"""Activations that are trained in every cell of decay × init."""
LINEAR_TEACHER = ("identity", *RADIAL, "relu", "gelu", "tanh")


@dataclass(frozen=True)
class Cell:
    """The parts of one toy; the defaults are the core cell.

    Attributes:
        activation: One of `ACTIVATIONS`.
        form: One of `TOY_FORMS`; stream and branch are one network where there is no residual connection.
        residual: Whether there is one.
        norm: One of `NORMS`.
        decay: Weight decay.
        scale: Standard deviation of the hidden weights at the start, in units of one over the root of the fan-in.
        teacher: One of `TEACHERS`.
        optimiser: One of `OPTIMISERS`.
    """

    activation: str = "gelu"
    form: str = "stream"
    residual: bool = True
    norm: str = "none"
    decay: float = 0.0
    scale: float = RESIDUAL_SCALE
    teacher: str = "nonlinear"
    optimiser: str = "adamw"

    @property
    def name(self) -> str:
        """Form and activation, and what differs from the core cell: for example `stream-gelu-decay=0.1`."""
        form = self.form if self.residual else {"block2": "plain2"}.get(self.form, "plain")
        usual = RESIDUAL_SCALE if self.residual else PLAIN_SCALE
        parts = [form, self.activation]
        parts += [f"norm={self.norm}"] if self.norm != "none" else []
        parts += [f"decay={self.decay:g}"] if self.decay else []
        parts += [f"init={self.scale:g}"] if self.scale != usual else []
        parts += [f"teacher={self.teacher}"] if self.teacher != "nonlinear" else []
        parts += [f"optimiser={self.optimiser}"] if self.optimiser != "adamw" else []
        return "-".join(parts)


def plain(cell: Cell) -> Cell:
    """Take the residual connection out of a cell, and start it as it needs then."""
    scale = PLAIN_SCALE if cell.scale == RESIDUAL_SCALE else cell.scale
    form = "stream" if cell.form == "branch" else cell.form  # one network
    return replace(cell, residual=False, form=form, scale=scale)


def named() -> list[Cell]:
    """List the cells that are trained by default, each once."""
    forms = [Cell(name, form) for name in ACTIVATIONS for form in ("stream", "branch")]
    norms = [Cell(name, norm=norm) for name in ("identity", "gelu") for norm in NORMS]
    grid = [Cell(name, decay=decay, scale=scale) for name in GRID for decay, scale in itertools.product(DECAYS, SCALES)]
    linear = [Cell(name, teacher="linear") for name in LINEAR_TEACHER]
    return _once([*forms, *map(plain, forms), *norms, *grid, *linear])


def full() -> list[Cell]:
    """List the full product under AdamW, and the core cells under the other optimisers."""
    product = [
        Cell(name, form, True, norm, decay, scale, teacher)
        for name, form, norm, decay, scale, teacher in itertools.product(
            ACTIVATIONS, TOY_FORMS, NORMS, DECAYS, SCALES, TEACHERS
        )
    ]
    others = [Cell(name, optimiser=optimiser) for name in GRID for optimiser in OPTIMISERS[1:]]
    return _once([*named(), *others, *product, *map(plain, product)])


def chosen(pattern: str, everything: bool) -> list[Cell]:
    """Choose the cells of a run.

    Args:
        pattern: Comma list of shell patterns of their names.
        everything: From the full product, by default from the named cells.

    Returns:
        Cells, in the order of the grid.

    Raises:
        InputError: If no cell has such a name.
    """
    cells = full() if everything else named()
    patterns = [part.strip() for part in pattern.split(",")]
    for part in patterns:
        if not fnmatch.filter((cell.name for cell in cells), part):
            more = "" if everything else "; full=True adds the whole product"
            raise InputError(f"cells= must match some cell, got {part!r}: names look like {cells[0].name}{more}")
    return [cell for cell in cells if any(fnmatch.fnmatchcase(cell.name, part) for part in patterns)]


def _once(cells: Iterable[Cell]) -> list[Cell]:
    """Each cell once, where it comes first."""
    return list({cell.name: cell for cell in cells}.values())
