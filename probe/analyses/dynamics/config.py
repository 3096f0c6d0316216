"""The options of the dynamics: the Python API's argument, the command line and `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from probe.analysis import AtLeast, TextConfig, control_names
from probe.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The bounds that each statistic must clear; the defaults were fixed before any model was measured.

    Attributes:
        threshold_gradient: Spearman's ρ of layer and score, for the slower of the two scores of K.
        threshold_late_symmetric: Antisymmetric fraction of K in the last quarter of the blocks; 0.316 = √0.1 leaves a
            tenth of ‖K‖² to the antisymmetric part, a random K has √½.
        threshold_bottleneck: Participation ratio of the product of all blocks, over d.
        threshold_learned: Difference of the trained model's drops and log participation ratio to a control's.
        threshold_nonnormal_origin: Share of the bottleneck that goes with the structure of the non-normal part.
        threshold_linear_holds: ε over median ‖u‖ at which the linear prediction is 10 % off.
        threshold_documents: Fewer documents than this decide nothing.
        threshold_seeds: Fewer fresh initialisations than this decide nothing.
    """

    threshold_gradient: float = -0.5
    threshold_late_symmetric: float = 0.316
    threshold_bottleneck: float = 0.05
    threshold_learned: float = 0.0
    threshold_nonnormal_origin: float = 0.5
    threshold_linear_holds: float = 0.1
    threshold_documents: int = 12
    threshold_seeds: int = 5


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """Rotation, stretch and compression of the residual stream in each block, and what their product leaves of it.

    Everything is read from exact Jacobians of the blocks at single positions. Nothing is fitted, so all documents of
    the text are used; windows are drawn round-robin over them. What costs much is measured on fewer positions: the
    first chosen position of each window for every control, and fewer windows still where an option says so.

    Raises:
        InputError: If an intervention is asked for, and none are.
    """

    examples: ClassVar[Mapping[str, str]] = {
        "--dataset sample --windows 4 --init-seeds 1 --control-windows 2": "a first look at the default model",
        "--text my-text.txt --dry-run": "what a full run would take",
        "--model pythia-160m --dataset wikitext-2 --revision step0,step1000,main": "through training",
    }

    windows: Annotated[int, AtLeast(1)] = 24
    """Number of windows, each from another document while there are any left."""
    skip_first: int = 16
    """Positions at the start of each window that are left out: attention sinks distort the operator there."""
    positions_per_window: Annotated[int, AtLeast(1)] = 2
    """Positions of each window at which the trained model is measured."""
    context: Literal["sequence", "alone", "detached"] = "sequence"
    """The rest of the text held fixed; the token alone; or norms, softmax and gates frozen (another operator)."""
    method: Literal["auto", "jacrev", "frozen", "analytic"] = "auto"
    """How Jacobians are computed."""
    alone: bool = True
    """Also measure every block on the token alone, as the paper does."""
    init_seeds: Annotated[int, AtLeast(0)] = 5
    """Fresh initialisations that serve as controls (at least 5 for a verdict)."""
    shuffled_seeds: Annotated[int, AtLeast(0)] = 1
    """Draws of shuffled weights that serve as controls."""
    control_windows: Annotated[int, AtLeast(1)] = 24
    """Windows on which the controls are measured, one position each."""
    interventions: bool = True
    """Products under nulls and interventions: norm-matched random, shuffled depth, Schur family, symmetrised."""
    product_windows: Annotated[int, AtLeast(1)] = 12
    """How many of these windows the products are repeated on, which is what costs most."""
    draws: Annotated[int, AtLeast(1)] = 5
    """Draws of each random null of the product."""
    order_windows: Annotated[int, AtLeast(0)] = 4
    """Windows in which schur_normal is repeated on the transpose and on a rotated K: it depends on their order."""
    eigenvector_windows: Annotated[int, AtLeast(0)] = 6
    """Windows in which eigenvectors are computed, for their condition number and the polar rotation."""
    mean: bool = True
    """Scores of the mean matrix, and the product of averages against the average of products."""
    perturb: bool = True
    """Perturb the real network and compare with the product of Jacobians."""
    perturb_layers: Annotated[int, AtLeast(1)] = 6
    """Blocks before which it is perturbed, evenly spread."""
    kreiss_layers: Annotated[int, AtLeast(0)] = 6
    """Blocks, evenly spread, whose Kreiss constant and pseudospectrum are computed at one position; 0 for none."""
    grid: Annotated[int, AtLeast(2)] = 48
    """Points of the pseudospectrum's grid along each axis."""
    symmetrised_ov: bool = False
    """Also symmetrise W_O W_V of every head inside the Jacobians (one more product a window)."""
    keep_matrices: bool = False
    """Keep the trained model's Jacobians as safetensors shards in the run directory (4 d² bytes a matrix)."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    """Thresholds and margins of the claims."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.symmetrised_ov and not self.interventions:
            raise InputError(
                "symmetrised_ov= is an intervention, but got interventions=False too: leave one of them out"
            )

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the controls: fresh initialisations, then shuffled weights."""
        fresh = control_names("init", self.init_seeds, self.random_init)
        return fresh + control_names("shuffled", self.shuffled_seeds, self.shuffled_weights)
