"""The options of a run on causes: the Python API's argument, the command line and `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from probe.analyses.causes import cells
from probe.analysis.config import Among, AtLeast, settled_text
from probe.analysis.config import Config as AnyConfig
from probe.errors import InputError
from probe.text.names import Choice
from probe.training.names import ARMS


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Bounds that each statistic must clear; the defaults were fixed before any network was trained.

    Attributes:
        threshold_residual_coherence: Gradient coherence with the residual less without, in the fifth best of seven
            activations.
        threshold_plain_coherence: Below this lies the gradient coherence without a residual.
        threshold_symmetry_breaking: Share of the cells of decay × init in which the difference holds.
        threshold_symmetry_refuted: At most this share refutes the claim.
        margin_symmetry_breaking: Continuity of the symmetry-breaking activation less that of each radial one.
        threshold_concentration: Of both differences of s₁.
        margin_concentration: Σ of the excess of the best matches without which s₁ is a quotient of noise.
        threshold_v_nonlinearity: Continuity of V, with a nonlinearity after it less without.
        threshold_learned: An arm learned if its held-out loss is below this share of that of a constant guess.
        threshold_gap: σ₁/σ₂ below which a leading direction means nothing.
        threshold_seeds: Fewer seeds than this decide nothing.
    """

    threshold_residual_coherence: float = 0.1
    threshold_plain_coherence: float = 0.1
    threshold_symmetry_breaking: float = 0.8
    threshold_symmetry_refuted: float = 0.5
    margin_symmetry_breaking: float = 0.1
    threshold_concentration: float = 0.0
    margin_concentration: float = 0.1
    threshold_v_nonlinearity: float = 0.0
    threshold_learned: float = 0.9
    threshold_gap: float = 1.05
    threshold_seeds: int = 5


@dataclass(frozen=True, kw_only=True)
class Config(AnyConfig):
    """Causes of neighbouring layers' alike leading directions: toys in which each suspect is switched on and off.

    Toy MLPs learn a frozen teacher, small transformers the bytes of a text (where one is given), all seeds of an
    experiment at once. No model is read.

    Raises:
        InputError: If both a data set and a file are named, or options are out of range or contradict each other.
    """

    examples: ClassVar[Mapping[str, str]] = {
        "--cells 'stream-*'": "the toys with a residual stream",
        "--text my-text.txt --arms full,no_residual": "small transformers as well, in two arms",
        "--full --dry-run": "what the full product of toys would take",
    }

    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of everything that is drawn at random, and the first of the seeds."""
    seeds: Annotated[int, AtLeast(1)] = 5
    """Seeds of every experiment (at least 5 for a verdict): starts, teachers and data differ, arms share them."""
    full: bool = False
    """The full product of toys (4,500 cells, about a day) and all arms of the transformer."""
    cells: str = "*"
    """Only the toys whose names match one of these patterns, for example stream-*,plain-gelu."""
    steps: Annotated[int, AtLeast(20)] = 3000
    """Steps of a toy."""
    batch: Annotated[int, AtLeast(1)] = 128
    """Inputs of a step of a toy."""
    width: Annotated[int, AtLeast(2)] = 64
    """Width of a toy's stream."""
    blocks: Annotated[int, AtLeast(2)] = 8
    """Blocks of a toy."""
    snapshots: Annotated[int, AtLeast(2)] = 24
    """How often a training is looked at, evenly spread, and a few times more at its start."""
    dataset: str | None = None
    """wikitext-2, wikitext-103, sample or OWNER/NAME of the hub: train small transformers on it."""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A UTF-8 file instead of a data set; or .jsonl, .json or .parquet, a document a row."""
    split: Annotated[
        str | None, tyro.conf.arg(help_behavior_hint="(default: test; of a data set of the hub the only one)")
    ] = None
    """Split of the data set; its documents are divided into those to learn and those held out."""
    column: Annotated[str | None, tyro.conf.arg(help_behavior_hint="(default: the only column of text, or 'text')")] = (
        None
    )
    """Column of the documents, where these are rows."""
    arms: Annotated[tuple[str, ...], Among(ARMS)] = ARMS[:3]
    """Arms of the transformer; full, v_nonlinearity, radial, no_residual, no_norm or linear_attention."""
    arm_steps: Annotated[int, AtLeast(20)] = 500
    """Steps of a transformer."""
    arm_batch: Annotated[int, AtLeast(1)] = 16
    """Windows of a step of a transformer."""
    arm_width: Annotated[int, AtLeast(2)] = 128
    """Width of a transformer's stream."""
    arm_blocks: Annotated[int, AtLeast(2)] = 6
    """Blocks of a transformer."""
    arm_heads: Annotated[int, AtLeast(1)] = 4
    """Heads of its attention."""
    window_length: Annotated[int, AtLeast(2)] = 128
    """Bytes of a window."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    """Thresholds and margins of the claims."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reads_text:
            settled_text(self)
        elif self.split is None:
            object.__setattr__(self, "split", "test")  # as in records of runs that named no text
        cells.chosen(self.cells, self.full)
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype= must be float32 or float64 to train, got {self.dtype}: leave it out")
        if self.arm_width % (2 * self.arm_heads):
            raise InputError(
                "arm_width= must be a multiple of twice arm_heads=, for the rotary embedding turns pairs, got "
                f"{self.arm_width} and {self.arm_heads}: change one of them"
            )

    @property
    def reads_text(self) -> bool:
        """True if a text was given, so that small transformers are trained."""
        return self.text is not None or self.dataset is not None

    @property
    def trained_arms(self) -> tuple[str, ...]:
        """The arms of the transformer that are trained."""
        if not self.reads_text:
            return ()
        return ARMS if self.full else self.arms

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds of every experiment."""
        return tuple(range(self.seed, self.seed + self.seeds))

    def require_inputs(self) -> None:
        """Refuse a text that is neither here nor to be fetched, within seconds."""
        from probe.text import corpora

        if self.reads_text:
            corpora.require(Choice(self.dataset, self.text, self.split, self.column))
