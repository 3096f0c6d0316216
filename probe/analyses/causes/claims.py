"""The claims on the causes of continuity (arXiv 2605.04971), computed from a run's Dataset.

The unit is the seed: a statistic is computed for each seed, a contrast for the same seed in both arms (same start, same
data), and the interval is Student's t over seeds. Continuity is the mean over neighbouring layers of |v₁(l) · v₁(l+1)|
in the input space, and over the snapshots of the last fifth of the steps. A contrast is read only where both arms
learned. Cost: well under a second a claim.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import xarray as xr
from jaxtyping import Float

from probe.analyses.causes.cells import ACTIVATIONS, BREAKING, DECAYS, RADIAL, SCALES, Cell, plain
from probe.analyses.causes.thresholds import Thresholds
from probe.claims import Claim, Condition, Criterion, Evidence, Sentence, line
from probe.inference import Interval, partial_spearman, seed_interval
from probe.table import AbsentError, Finding, Floats, Reading, Row, Sample, claim_of, number

__all__ = ["ROWS", "Thresholds", "claims"]

PAPER = "arXiv 2605.04971"
LAST = 0.2  # share of the steps over which continuity is averaged
NEEDED = 5  # activations of seven
NORMALISED = ("layer", "rms", "rms_bare")
WEIGHTS: tuple[Literal["W", "ΔW"], ...] = ("W", "ΔW")

Seeds = Float[np.ndarray, " seed"]


@runtime_checkable
class Settings(Protocol):
    """The part of a configuration that its claims read."""

    @property
    def thresholds(self) -> Thresholds:
        """What each statistic must clear."""

    @property
    def seed(self) -> int:
        """Of the first of the seeds."""


@dataclass(frozen=True)
class Grid(Reading[Thresholds]):
    """A run's toys and transformers, whose intervals are over seeds."""

    @property
    def sample(self) -> Sample:
        """The seeds."""
        return Sample("seeds", self.data.sizes["seed"], self.thresholds.threshold_seeds)

    def continuity(self, cell: Cell, weights: str = "W", space: str = "input") -> Seeds:
        """Continuity of a toy, late in training."""
        values = self.get("cosine", dims=("step", "seed", "pair"), cell=cell.name, weights=weights, space=space)
        return self.late(values.mean(axis=-1))

    def coherence(self, cell: Cell) -> tuple[Seeds, Seeds]:
        """Gradient coherence of a toy at step 0, and its mean over the steps of the training."""
        values = self.get("gradient_coherence", dims=("step", "seed"), cell=cell.name, space="output")
        steps = self.data["step"].values
        mean = np.trapezoid(values, steps, axis=0) / (steps[-1] - steps[0])
        return np.asarray(values[0]), np.asarray(mean)

    def excess(self, cell: Cell, weights: str = "W") -> Float[np.ndarray, "seed k"]:
        """Best matches of the leading directions beyond those of random frames, ``m_i² − null_i``, late in training."""
        values = self.get("match", dims=("step", "seed", "k"), cell=cell.name, weights=weights, space="input")
        return np.asarray(self.late(values) - self.data["null_match"].values)

    def late(self, values: Float[np.ndarray, "step seed *more"], along: str = "step") -> Floats:
        """Mean over the snapshots of the last fifth of the steps."""
        steps = self.data[along].values
        return np.asarray(values[steps >= (1 - LAST) * steps[-1]].mean(axis=0))

    def loss(self, cell: Cell) -> float:
        """Held-out loss of a toy, late in training; 1 is that of a constant guess."""
        return float(self.late(self.get("held_out_loss", dims=("step", "seed"), cell=cell.name)).mean())

    def learned(self, cell: Cell) -> bool:
        """Whether a toy learned."""
        return self.loss(cell) < self.thresholds.threshold_learned

    def gap(self, cell: Cell) -> float:
        """Median of σ₁/σ₂ of a toy's matrices, late in training."""
        dims = ("step", "seed", "layer")
        return float(np.median(self.late(self.get("gap", dims=dims, cell=cell.name, weights="W", space="input"))))

    def all_learned(self, wanted: Iterable[Cell]) -> Condition:
        """The precondition that each of some toys learned."""
        lazy = [f"{cell.name} (loss {self.loss(cell):.3g})" for cell in wanted if not self.learned(cell)]
        return Condition(not lazy, f"an arm did not learn: {', '.join(lazy)}")


def residual_coherence(grid: Grid) -> Finding:
    """Gradient coherence with a residual less without, at step 0 and over training: the fifth best of seven."""
    pairs = [(Cell(name), plain(Cell(name))) for name in ACTIVATIONS]
    found = {cell.name: grid.coherence(cell) for pair in pairs for cell in pair}
    learned = [(one, other) for one, other in pairs if grid.learned(one) and grid.learned(other)]
    differences = {
        one.activation: np.stack([a - b for a, b in zip(found[one.name], found[other.name], strict=True)])
        for one, other in pairs
    }
    lower = np.stack([differences[one.activation].min(axis=0) for one, _ in learned or pairs])  # (activation, seed)
    without = np.stack([np.max(found[other.name], axis=0) for _, other in pairs]).mean(axis=0)
    thresholds = grid.thresholds
    shown = {f"{name}, {when}": seed_interval(differences[name][i]) for name in differences for i, when in _TIMES}
    shown |= {
        f"{name}, branch form, {when}": seed_interval(branch[i] - found[plain(Cell(name)).name][i])
        for name in ACTIVATIONS
        if (branch := _maybe(grid, Cell(name, "branch"))) is not None
        for i, when in _TIMES
    }
    return Finding(
        Evidence(
            [
                Criterion(
                    f"coherence, residual − none, {NEEDED}th best activation",
                    seed_interval(np.sort(lower, axis=0)[-min(NEEDED, len(lower))]),
                    thresholds.threshold_residual_coherence,
                )
            ],
            [
                Criterion(
                    "coherence without a residual",
                    seed_interval(without),
                    thresholds.threshold_plain_coherence,
                    "below",
                )
            ],
            preconditions=[
                Condition(
                    len(learned) >= NEEDED,
                    f"only {len(learned)} of {len(pairs)} activations learned with and without the residual: {NEEDED} "
                    "are needed",
                )
            ],
        ),
        "for each activation the smaller of two differences, residual − none: of cos(vec G_l, vec G_{l+1}), mean over "
        f"neighbouring layers, at step 0 and averaged over training; the {NEEDED}th largest of "
        f"{len(lower)} activations, stream form",
        line("coherence without a residual, mean over activations", seed_interval(without)),
        shown | _over_cells(grid),
        "seeds",
    )


_TIMES = ((0, "step 0"), (1, "mean of training"))


def _maybe(grid: Grid, cell: Cell) -> tuple[Seeds, Seeds] | None:
    try:
        return grid.coherence(cell)
    except AbsentError:
        return None


def _over_cells(grid: Grid) -> dict[str, Interval]:
    """Partial rank correlation over the cells of one teacher: coherence at step 0, and what came of it."""
    data = grid.data.isel(cell=np.flatnonzero(grid.data["teacher"].values == "nonlinear"))
    coherence = data["gradient_coherence"].sel(space="output").isel(step=0).mean("seed").values
    covariates = [data[name].values for name in ("decay", "scale")]
    late = data["step"].values >= (1 - LAST) * data["step"].values[-1]
    ends = {
        "continuity of W": data["cosine"].sel(weights="W", space="input").mean("pair"),
        "continuity of ΔW": data["cosine"].sel(weights="ΔW", space="input").mean("pair"),
        "held-out loss": data["held_out_loss"],
    }
    return {
        f"partial ρ over {len(coherence)} cells, coherence at step 0 and {name}, given decay and scale": number(
            float(partial_spearman(coherence, values.isel(step=late).mean(("step", "seed")).values, covariates))
        )
        for name, values in ends.items()
    }


def symmetry_breaking(grid: Grid) -> Finding:
    """Share of the cells of decay × init × radial activation in which GELU is the more continuous, in W and in ΔW."""
    margin = grid.thresholds.margin_symmetry_breaking
    cases = []
    for decay, scale, radial in itertools.product(DECAYS, SCALES, RADIAL):
        pair = (Cell("gelu", decay=decay, scale=scale), Cell(radial, decay=decay, scale=scale))
        differences = np.stack([
            grid.continuity(pair[0], weights) - grid.continuity(pair[1], weights) for weights in WEIGHTS
        ])
        if all(map(grid.learned, pair)):
            cases.append((pair, differences))
    if not cases:
        raise AbsentError("in no cell of decay × init did GELU and a radial activation both learn")
    differences = np.stack([one for _, one in cases])  # (case, weights, seed)
    holds = (differences > margin).all(axis=1)
    share = seed_interval(holds.mean(axis=0))
    band, core = float(grid.data.attrs["haar_band"]), [Cell(name) for name in RADIAL]
    above = [f"{cell.name} {value:.3g}" for cell in core if (value := float(grid.continuity(cell).mean())) > band]
    gap = float(np.median([grid.gap(pair[0]) for pair, _ in cases]))
    refuted, needed = grid.thresholds.threshold_symmetry_refuted, grid.thresholds.threshold_symmetry_breaking
    part = _parts(cases, np.asarray(differences > margin))
    return Finding(
        Evidence(
            [Criterion("share of cells", share, needed)],
            [
                Criterion(f"GELU − {name} at matched loss, smaller of W and ΔW", _matched(grid, name), margin)
                for name in RADIAL
            ],
            preconditions=[
                Condition(
                    bool(share.high <= refuted or share.high >= needed),
                    f"it holds in part of the cells: {share.estimate:.3g} [{share.low:.3g}, {share.high:.3g}], neither "
                    f"{needed:g} nor at most {refuted:g}",
                ),
                Condition(gap >= grid.thresholds.threshold_gap, f"σ₁/σ₂ of GELU is {gap:.3g}: no leading direction"),
            ],
            conditions=[
                Condition(not above, f"above the Haar band ({band:.3g}), so not lost: {', '.join(above)}"),
            ],
        ),
        f"share of {len(cases)} pairs of GELU and a rotation-preserving activation, over decay × init × two radial "
        f"functions, in which both learned, whose continuity differs by more than {margin:g} both in W and in ΔW; "
        "stream form",
        line("random directions", number(float(grid.data.attrs["haar_cosine"]))),
        part | _core(grid),
        "seeds",
    )


def _matched(grid: Grid, radial: str) -> Interval | None:
    """The smaller of the differences in W and in ΔW under a linear teacher, which all arms learn."""
    pair = (Cell("gelu", teacher="linear"), Cell(radial, teacher="linear"))
    if not all(map(grid.learned, pair)):
        return None
    return seed_interval(
        np.min([grid.continuity(pair[0], weights) - grid.continuity(pair[1], weights) for weights in WEIGHTS], axis=0)
    )


def _parts(cases: Sequence[tuple[tuple[Cell, Cell], Floats]], holds: np.ndarray) -> dict[str, Interval]:
    """For which part it holds: the share by matrix, by radial activation, by decay and by scale of the start."""
    groups = {f"share of cells in {name} alone": holds[:, place].mean(axis=0) for place, name in enumerate(WEIGHTS)}
    both = np.asarray(holds.all(axis=1))
    for words, key in (("against {}", "activation"), ("at weight decay {:g}", "decay"), ("at init {:g}", "scale")):
        labels = [getattr(pair[1], key) for pair, _ in cases]
        for label in dict.fromkeys(labels):
            rows = [one == label for one in labels]
            groups[f"share of cells {words.format(label)}"] = both[rows].mean(axis=0)
            groups[f"share of cells {words.format(label)}, W alone"] = holds[rows, 0].mean(axis=0)
    return {name: seed_interval(values.astype(np.float64)) for name, values in groups.items()}


def _core(grid: Grid) -> dict[str, Interval]:
    """Continuity and loss of every activation in the core cell."""
    return {
        f"{name}, {weights}, no decay, init 0.5 (loss {grid.loss(Cell(name)):.2g})": seed_interval(
            grid.continuity(Cell(name), weights)
        )
        for name in ACTIVATIONS
        if grid.find("held_out_loss", dims=("step", "seed"), cell=Cell(name).name) is not None
        for weights in WEIGHTS
    }


def concentration(grid: Grid) -> Finding:
    """Share of the leading direction in what carries on: GELU less identity, and no norm less the three norms."""
    gelu, linear = Cell(), Cell("identity")
    norms = [Cell(norm=norm) for norm in NORMALISED]
    arms = [gelu, linear, *norms]
    sums = {cell.name: float(grid.excess(cell).sum(axis=-1).mean()) for cell in arms}
    thin = [f"{name} ({value:.3g})" for name, value in sums.items() if value <= grid.thresholds.margin_concentration]
    s = {cell.name: _first_share(grid.excess(cell)) for cell in arms}
    by_norm = np.mean([s[cell.name] for cell in norms], axis=0)
    bound = grid.thresholds.threshold_concentration
    shown = {f"s₁, GELU, no norm − {cell.norm}": seed_interval(s[gelu.name], s[cell.name]) for cell in norms}
    shown |= {f"s₁ of {name}": seed_interval(values) for name, values in s.items()}
    shown |= {f"Σ of {name}": seed_interval(grid.excess(cell).sum(axis=-1)) for cell in arms for name in [cell.name]}
    shown |= {
        f"s₁ of {name}, ΔW": seed_interval(_first_share(grid.excess(Cell(name), "ΔW"))) for name in ("gelu", "identity")
    }
    shown |= {f"s₁ of {cell.name}, ΔW": seed_interval(_first_share(grid.excess(cell, "ΔW"))) for cell in norms}
    for name in BREAKING:
        if (
            name != "gelu"
            and grid.find("match", dims=("step", "seed", "k"), cell=Cell(name).name, weights="W", space="input")
            is not None
        ):
            shown[f"s₁ of {Cell(name).name}"] = seed_interval(_first_share(grid.excess(Cell(name))))
    return Finding(
        Evidence(
            [
                Criterion("s₁, GELU − identity", seed_interval(s[gelu.name], s[linear.name]), bound),
                Criterion("s₁ of GELU, no norm − mean of three norms", seed_interval(s[gelu.name], by_norm), bound),
            ],
            preconditions=[
                grid.all_learned(arms),
                Condition(
                    not thin,
                    f"nothing carries on whose share could be taken: Σ(m_i² − null_i) is not above "
                    f"{grid.thresholds.margin_concentration:g} in {', '.join(thin)}",
                ),
            ],
        ),
        "s₁ = (m₁² − null)/Σ_{i≤8}(m_i² − null), m_i the best match of v_i(l) among the leading directions of l + 1, "
        "mean over neighbouring layers; W, stream form",
        line("m₁² of random frames (simulated)", number(float(grid.data["null_match"].values[0]))),
        shown,
        "seeds",
    )


def _first_share(excess: Float[np.ndarray, "seed k"]) -> Seeds:
    total = excess.sum(axis=-1)
    return np.where(total > 0, excess[:, 0] / np.where(total > 0, total, 1.0), np.nan)


def v_nonlinearity(grid: Grid) -> Finding:
    """Continuity of V in the input space, with a nonlinearity after it less without."""
    arms = [str(name) for name in grid.data["arm"].values] if "arm" in grid.data.coords else []
    if not {"full", "v_nonlinearity"} <= set(arms):
        raise AbsentError("this run trained no transformer with and without a nonlinearity after V: give --text FILE")

    def late(arm: str, projection: str, weights: str = "W", space: str = "input") -> Seeds:
        labels = {"arm": arm, "projection": projection, "weights": weights, "space": space}
        values = grid.get("arm_cosine", dims=("arm_step", "seed", "arm_pair"), **labels)
        return grid.late(values.mean(axis=-1), "arm_step")

    losses = {arm: grid.get("arm_held_out_loss", dims=("arm_step", "seed"), arm=arm)[-1] for arm in arms}
    guess = float(grid.data.attrs["arm_guess"])
    lazy = [
        arm for arm in ("full", "v_nonlinearity") if losses[arm].mean() >= grid.thresholds.threshold_learned * guess
    ]
    labels = {"arm": "v_nonlinearity", "projection": "v", "weights": "W"}
    gap = float(np.median(grid.late(grid.get("arm_gap", dims=("arm_step", "seed", "arm_layer"), **labels), "arm_step")))
    shown = {
        f"{words}, GELU after V − full": seed_interval(late("v_nonlinearity", p, w, s), late("full", p, w, s))
        for words, p, w, s in (
            ("v, output space", "v", "W", "output"),
            ("v of ΔW", "v", "ΔW", "input"),
            ("v of ΔW, output space", "v", "ΔW", "output"),
            ("o, output space", "o", "W", "output"),
        )
    }
    for arm in arms:
        shown |= {f"{p}, {arm}": seed_interval(late(arm, p)) for p in ("v", "q", "k", "gate", "up")}
        shown |= {f"{p}, {arm}, output space": seed_interval(late(arm, p, space="output")) for p in ("o", "down")}
        shown[f"held-out loss, bits/byte, {arm}"] = seed_interval(losses[arm] / np.log(2))
    null = float(grid.data["arm_null_cosine"].sel(projection="v", space="input"))
    return Finding(
        Evidence(
            [
                Criterion(
                    "continuity of v, GELU after V − full",
                    seed_interval(late("v_nonlinearity", "v"), late("full", "v")),
                    grid.thresholds.threshold_v_nonlinearity,
                )
            ],
            preconditions=[
                Condition(not lazy, f"an arm did not learn: {', '.join(lazy)}"),
                Condition(gap >= grid.thresholds.threshold_gap, f"σ₁/σ₂ of v is {gap:.3g}: no leading direction"),
            ],
        ),
        "mean over neighbouring blocks of |v₁(l) · v₁(l+1)| of V (gain folded in), last fifth of the steps",
        line("random directions", number(null)),
        shown,
        "seeds",
    )


# In the order in which they are printed.
ROWS = (
    Row(
        Sentence(
            "causes.residual_coherence",
            "Residual connections make the gradients of neighbouring layers coherent.",
            f"{PAPER}, abstract",
        ),
        "threshold_residual_coherence",
        residual_coherence,
    ),
    Row(
        Sentence(
            "causes.symmetry_breaking",
            "Continuity needs a nonlinearity that breaks the rotational symmetry; rotation-preserving ones lose it.",
            f"{PAPER}, abstract and section 4.3",
        ),
        "threshold_symmetry_breaking",
        symmetry_breaking,
    ),
    Row(
        Sentence(
            "causes.concentration",
            "Activation concentrates continuity in the leading direction, normalisation spreads it.",
            f"{PAPER}, abstract",
        ),
        "threshold_concentration",
        concentration,
    ),
    Row(
        Sentence(
            "causes.v_nonlinearity",
            "A nonlinearity after V raises the continuity of V.",
            f"ours; implied by {PAPER}",
        ),
        "threshold_v_nonlinearity",
        v_nonlinearity,
    ),
)


def claims(data: xr.Dataset, config: Settings) -> list[Claim]:
    """All claims on the causes of continuity that a run can speak to.

    A claim whose arms are absent is inconclusive and says what is missing.

    Args:
        data: the Dataset of the analysis of causes.
        config: thresholds.

    Returns:
        The claims in the order in which they are printed.
    """
    grid: Grid = Grid(data, config.thresholds, config.seed)
    return [claim_of(grid, row) for row in ROWS]
