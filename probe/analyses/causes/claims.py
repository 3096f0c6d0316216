"""The claims on the causes of continuity (arXiv 2605.04971), computed from a run's Dataset.

Seeds are what varies: a statistic is computed for each seed, a contrast for the same seed in both arms (same start,
same data), and the interval is Student's t over seeds. Continuity is the mean over neighbouring layers of
|v₁(l) · v₁(l+1)| in the input space, and over the snapshots of the last fifth of the steps. A contrast is read only
where both arms learned. Cost: well under a second a claim.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from probe.analyses.causes.cells import DECAYS, SCALES, Cell, plain
from probe.analyses.causes.config import Config, Thresholds
from probe.analyses.causes.table import LAST, TIMES, Grid, Seeds
from probe.claims import Claim, Condition, Criterion, Evidence, Sentence, line
from probe.claims.evidence import AbsentError, Finding, Row, claims_of, number
from probe.inference import Interval, partial_spearman, seed_interval
from probe.training.names import ACTIVATIONS, POINTWISE, RADIAL

__all__ = ["ROWS", "Thresholds", "claims"]

PAPER = "arXiv 2605.04971"
NEEDED = 5  # activations of seven
NORMALISED = ("layer", "rms", "rms_bare")
WEIGHTS: tuple[Literal["W", "ΔW"], ...] = ("W", "ΔW")
CONTRASTED = ("full", "v_nonlinearity")
Case: TypeAlias = tuple[tuple[Cell, Cell], Float[np.ndarray, "weights seed"]]


def residual_coherence(grid: Grid) -> Finding:
    """Compare gradient coherence with a residual and without, at step 0 and over training: the fifth best of seven."""
    pairs = {name: (Cell(name), plain(Cell(name))) for name in ACTIVATIONS}
    found = {name: [grid.coherence(cell) for cell in pair] for name, pair in pairs.items()}
    without = {name: other for name, (_, other) in found.items()}
    differences = {name: one - other for name, (one, other) in found.items()}
    learned = [name for name, pair in pairs.items() if all(map(grid.learned, pair))]
    lower = np.stack([differences[name].min(axis=0) for name in learned or ACTIVATIONS])  # (activation, seed)
    plain_mean = seed_interval(np.stack([values.max(axis=0) for values in without.values()]).mean(axis=0))
    branch = {
        f"{name}, branch form": grid.coherence(Cell(name, "branch")) - without[name]
        for name in ACTIVATIONS
        if grid.holds(Cell(name, "branch"))
    }
    return Finding(
        Evidence(
            [
                Criterion(
                    f"coherence, residual − none, {NEEDED}th best activation",
                    seed_interval(np.sort(lower, axis=0)[-min(NEEDED, len(lower))]),
                    grid.thresholds.threshold_residual_coherence,
                )
            ],
            [Criterion("coherence without a residual", plain_mean, grid.thresholds.threshold_plain_coherence, "below")],
            preconditions=[
                Condition(
                    len(learned) >= NEEDED,
                    f"only {len(learned)} of {len(ACTIVATIONS)} activations learned with and without the residual: "
                    f"{NEEDED} are needed",
                )
            ],
        ),
        "for each activation the smaller of two differences, residual − none: of cos(vec G_l, vec G_{l+1}), mean over "
        f"neighbouring layers, at step 0 and averaged over training; the {NEEDED}th largest of "
        f"{len(lower)} activations, stream form",
        line("coherence without a residual, mean over activations", plain_mean),
        _by_time(differences) | _by_time(branch) | _over_cells(grid),
        "seeds",
    )


def _by_time(differences: Mapping[str, Float[np.ndarray, "time seed"]]) -> dict[str, Interval]:
    return {
        f"{name}, {when}": seed_interval(values)
        for name, difference in differences.items()
        for when, values in zip(TIMES, difference, strict=True)
    }


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
    """Count the cells of decay × init × radial activation in which GELU is the more continuous, in W and in ΔW."""
    margin = grid.thresholds.margin_symmetry_breaking
    cases = _learned_cases(grid)
    if not cases:
        raise AbsentError("in no cell of decay × init did GELU and a radial activation both learn")
    differences = np.stack([one for _, one in cases])  # (case, weights, seed)
    holds = (differences > margin).all(axis=1)
    share = seed_interval(holds.mean(axis=0))
    gap = float(np.median([grid.gap(pair[0]) for pair, _ in cases]))
    refuted, needed = grid.thresholds.threshold_symmetry_refuted, grid.thresholds.threshold_symmetry_breaking
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
            conditions=[_radial_lost(grid)],
        ),
        f"share of {len(cases)} pairs of GELU and a rotation-preserving activation, over decay × init × two radial "
        f"functions, in which both learned, whose continuity differs by more than {margin:g} both in W and in ΔW; "
        "stream form",
        line("random directions", number(float(grid.data.attrs["haar_cosine"]))),
        _parts(cases, np.asarray(differences > margin)) | _core(grid),
        "seeds",
    )


def _learned_cases(grid: Grid) -> list[Case]:
    """GELU and a radial activation at one decay and start, where both learned, and the difference of continuity."""
    pairs = [
        (Cell("gelu", decay=decay, scale=scale), Cell(radial, decay=decay, scale=scale))
        for decay, scale, radial in itertools.product(DECAYS, SCALES, RADIAL)
    ]
    cases = [(pair, _differences(grid, *pair)) for pair in pairs]
    return [(pair, differences) for pair, differences in cases if all(map(grid.learned, pair))]


def _differences(grid: Grid, one: Cell, other: Cell) -> Float[np.ndarray, "weights seed"]:
    """Continuity of one cell less that of another, in W and in ΔW."""
    return np.stack([grid.continuity(one, weights) - grid.continuity(other, weights) for weights in WEIGHTS])


def _matched(grid: Grid, radial: str) -> Interval | None:
    """The smaller of the differences in W and in ΔW under a linear teacher, which all arms learn."""
    pair = (Cell("gelu", teacher="linear"), Cell(radial, teacher="linear"))
    if not all(map(grid.learned, pair)):
        return None
    return seed_interval(_differences(grid, *pair).min(axis=0))


def _radial_lost(grid: Grid) -> Condition:
    """The condition that radial activations have lost their continuity: in the core cell it lies in the Haar band."""
    band = float(grid.data.attrs["haar_band"])
    means = {cell.name: float(grid.continuity(cell).mean()) for cell in map(Cell, RADIAL)}
    above = [f"{name} {value:.3g}" for name, value in means.items() if value > band]
    return Condition(not above, f"above the Haar band ({band:.3g}), so not lost: {', '.join(above)}")


def _parts(cases: Sequence[Case], holds: Bool[np.ndarray, "case weights seed"]) -> dict[str, Interval]:
    """The share of cells by matrix, by radial activation, by decay and by scale of the start."""
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
        if grid.holds(Cell(name))
        for weights in WEIGHTS
    }


def concentration(grid: Grid) -> Finding:
    """Compare the leading direction's share in what carries on: GELU and identity, no norm and the three norms."""
    gelu, linear = Cell(), Cell("identity")
    norms = [Cell(norm=norm) for norm in NORMALISED]
    arms = [gelu, linear, *norms]
    s = {cell.name: _first_share(grid.excess(cell)) for cell in arms}
    by_norm = np.mean([s[cell.name] for cell in norms], axis=0)
    sums = {cell.name: grid.excess(cell).sum(axis=-1) for cell in arms}
    least, bound = grid.thresholds.margin_concentration, grid.thresholds.threshold_concentration
    thin = [f"{name} ({total.mean():.3g})" for name, total in sums.items() if total.mean() <= least]
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
                    "nothing carries on whose share could be taken: Σ(m_i² − null_i) is not above "
                    f"{least:g} in {', '.join(thin)}",
                ),
            ],
        ),
        "s₁ = (m₁² − null)/Σ_{i≤8}(m_i² − null), m_i the best match of v_i(l) among the leading directions of l + 1, "
        "mean over neighbouring layers; W, stream form",
        line("m₁² of random frames (simulated)", number(float(grid.data["null_match"].values[0]))),
        {f"s₁, GELU, no norm − {cell.norm}": seed_interval(s[gelu.name], s[cell.name]) for cell in norms}
        | {f"s₁ of {name}": seed_interval(values) for name, values in s.items()}
        | {f"Σ of {name}": seed_interval(total) for name, total in sums.items()}
        | _other_shares(grid, norms),
        "seeds",
    )


def _other_shares(grid: Grid, norms: Sequence[Cell]) -> dict[str, Interval]:
    """s₁ of ΔW, and of the other activations that break the symmetry."""
    changes = {"gelu": Cell(), "identity": Cell("identity")} | {cell.name: cell for cell in norms}
    others = [Cell(name) for name in POINTWISE if name != "gelu" and grid.holds(Cell(name))]
    return {
        f"s₁ of {name}, ΔW": seed_interval(_first_share(grid.excess(cell, "ΔW"))) for name, cell in changes.items()
    } | {f"s₁ of {cell.name}": seed_interval(_first_share(grid.excess(cell))) for cell in others}


def _first_share(excess: Float[np.ndarray, "seed k"]) -> Seeds:
    total = excess.sum(axis=-1)
    return np.where(total > 0, excess[:, 0] / np.where(total > 0, total, 1.0), np.nan)


def v_nonlinearity(grid: Grid) -> Finding:
    """Compare the continuity of V in the input space with a nonlinearity after it and without."""
    if not {*CONTRASTED} <= {*grid.arms}:
        raise AbsentError("this run trained no transformer with and without a nonlinearity after V: give --text FILE")
    bound = grid.thresholds.threshold_learned * float(grid.data.attrs["arm_guess"])
    lazy = [arm for arm in CONTRASTED if grid.arm_loss(arm).mean() >= bound]
    gap = grid.arm_gap("v_nonlinearity", "v")
    null = float(grid.data["arm_null_cosine"].sel(projection="v", space="input"))
    return Finding(
        Evidence(
            [
                Criterion(
                    "continuity of v, GELU after V − full", _raised(grid, "v"), grid.thresholds.threshold_v_nonlinearity
                )
            ],
            preconditions=[
                Condition(not lazy, f"an arm did not learn: {', '.join(lazy)}"),
                Condition(gap >= grid.thresholds.threshold_gap, f"σ₁/σ₂ of v is {gap:.3g}: no leading direction"),
            ],
        ),
        "mean over neighbouring blocks of |v₁(l) · v₁(l+1)| of V (gain folded in), last fifth of the steps",
        line("random directions", number(null)),
        _elsewhere(grid) | _of_arms(grid),
        "seeds",
    )


def _raised(grid: Grid, projection: str, weights: str = "W", space: str = "input") -> Interval:
    """Continuity of a projection with a nonlinearity after V, less that of the full arm."""
    full, raised = (grid.arm_continuity(arm, projection, weights, space) for arm in CONTRASTED)
    return seed_interval(raised, full)


def _elsewhere(grid: Grid) -> dict[str, Interval]:
    """The same contrast in the output space, in ΔW and in O."""
    places = {
        "v, output space": ("v", "W", "output"),
        "v of ΔW": ("v", "ΔW", "input"),
        "v of ΔW, output space": ("v", "ΔW", "output"),
        "o, output space": ("o", "W", "output"),
    }
    return {f"{words}, GELU after V − full": _raised(grid, *place) for words, place in places.items()}


def _of_arms(grid: Grid) -> dict[str, Interval]:
    """Continuity of every projection in the stream's space, and loss, of every arm."""
    shown: dict[str, Interval] = {}
    for arm in grid.arms:
        shown |= {f"{p}, {arm}": seed_interval(grid.arm_continuity(arm, p)) for p in ("v", "q", "k", "gate", "up")}
        shown |= {
            f"{p}, {arm}, output space": seed_interval(grid.arm_continuity(arm, p, space="output"))
            for p in ("o", "down")
        }
        shown[f"held-out loss, bits/byte, {arm}"] = seed_interval(grid.arm_loss(arm) / np.log(2))
    return shown


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


def claims(data: xr.Dataset, config: Config) -> list[Claim]:
    """Judge all claims on the causes of continuity that a run can speak to, over its seeds."""
    return claims_of(Grid(data, config.thresholds, config.seed), ROWS)
