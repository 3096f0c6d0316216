"""Communities by consensus over seeds, the resolution at which they are stable, and their comparison with a null."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from probe import display, plots
from probe.boundary import at_least, filled, public
from probe.errors import InputError
from probe.graphs.algorithms import Algorithm, Method, Objective, Signs
from probe.graphs.build import States, correlation_graph
from probe.graphs.graph import Graph
from probe.graphs.nulls import null_graph
from probe.graphs.partition import canonical_labels, consensus, stability
from probe.inference import permutation_p_value

# γ₀ · 2^−4 … γ₀ · 2^3
RESOLUTIONS = tuple(2.0**power for power in range(-4, 4))


@dataclass(frozen=True, eq=False, repr=False)
class Communities(display.Shown):
    """The consensus partition of a graph, with its quality and its stability.

    Attributes:
        labels: The community of each node, by decreasing size, then smallest member, (n,).
        quality: The objective of the consensus partition per edge weight.
        modularity: Signed modularity of the same partition at resolution 1, for comparison.
        stability: Mean pairwise AMI of the seeds' partitions.
        stability_error: Its standard error by the jackknife over seeds.
        resolution: In units of γ₀ (CPM) or of 1 (modularity).
        algorithm: The algorithm that found it.
        runs: The partition of each seed, canonical labels, (run, n).
    """

    labels: Int[np.ndarray, " node"]
    quality: float
    modularity: float
    stability: float
    stability_error: float
    resolution: float
    algorithm: Algorithm
    runs: Int[np.ndarray, "run node"] = field(repr=False)

    @property
    def sizes(self) -> Int[np.ndarray, " community"]:
        """Number of nodes of each community, decreasing."""
        return np.bincount(self.labels)

    @property
    def n_communities(self) -> int:
        """Number of communities of two or more nodes."""
        return int((self.sizes > 1).sum())

    def _facts(self) -> dict[str, object]:
        found: dict[str, object] = {"nodes": len(self.labels), "communities": self.n_communities}
        found |= {"sizes": self.sizes.tolist(), "quality": self.quality, "modularity": self.modularity}
        stable = f"{self.stability:.3g} ± {self.stability_error:.2g}"
        return found | {"stability": stable, "resolution": self.resolution, "algorithm": self.algorithm.method}


@dataclass(frozen=True)
class ResolutionChoice:
    """The resolution that a profile recommends.

    Attributes:
        resolution: In units of γ₀ (CPM) or of 1 (modularity); NaN where no resolution has two communities.
        excess: Stability there above that of the null; NaN likewise.
        stable: True if the largest excess passes the least that counts; if not, there are no stable communities.
    """

    resolution: float
    excess: float
    stable: bool


@dataclass(frozen=True, eq=False, repr=False)
class NullComparison(display.Shown):
    """A graph's communities beside those of its null graphs, found in the same way.

    Attributes:
        quality: Quality of the graph's communities.
        null_quality: Quality of the communities of each null graph, (draw,).
        stability: Stability of the graph's communities.
        null_stability: Stability of the communities of each null graph, (draw,).
    """

    quality: float
    null_quality: Float[np.ndarray, " draw"]
    stability: float
    null_stability: Float[np.ndarray, " draw"]

    @property
    def p_value(self) -> float:
        """``(1 + #{null quality ≥ quality}) / (1 + draws)``; NaN for a graph without edges, which has no quality."""
        return permutation_p_value(self.quality, self.null_quality)

    @property
    def above(self) -> bool:
        """True if the quality lies above the 95 % point of the null's."""
        return bool(self.quality > np.quantile(self.null_quality, 0.95))

    def plot(self, **options: Any) -> plots.Picture:
        """Draw the quality of the graph's communities over the histogram of the null's; see `probe.plots`.

        Args:
            **options: Of `probe.plots.null_comparison`, such as `ax` and `width`.

        Returns:
            The picture.
        """
        return plots.null_comparison(self, **options)

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"p_value": self.p_value, "draws": len(self.null_quality)}
        for name, value, null in (
            ("quality", self.quality, self.null_quality),
            ("stability", self.stability, self.null_stability),
        ):
            facts |= {name: value, f"null_{name}": f"{null.mean():.4g} ± {null.std():.2g}"}
        return facts


@public(seed=at_least(0))
def communities(
    graph: Graph | States,
    *,
    method: Method = "leiden",
    objective: Objective = "cpm",
    signs: Signs = "signed",
    n_communities: int | None = None,
    iterations: int = -1,
    resolution: float | ResolutionChoice = 1.0,
    seeds: int = 10,
    seed: int = 0,
) -> Communities:
    """Find the communities of a graph by consensus over several seeds.

    At a fixed resolution this takes one run for each seed. `resolution_profile` and `choose_resolution` find the
    resolution whose partitions are the most stable beyond a null, which takes hundreds of runs. `compare_with_null`
    tests whether a graph has communities at all: in pure noise every algorithm finds some, of low stability.

    Args:
        graph: A graph, or states (N, d), which stand for their signed correlation graph.
        method: ``leiden``, ``louvain``, ``infomap`` or ``spectral``; see `Algorithm`.
        objective: ``cpm`` or ``modularity``.
        signs: ``signed``, ``layers`` (a two-layer multiplex) or ``merged``.
        n_communities: Their number, for ``spectral``.
        iterations: Iterations of Leiden in each run; −1 continues until nothing improves.
        resolution: In units of the mean ``|w|`` over all pairs (CPM) or of 1 (modularity); or what `choose_resolution`
            returned.
        seeds: Number of runs, at least 3.
        seed: Seed from which the runs' seeds are drawn: equal seeds give equal partitions in any process.

    Returns:
        The partition with its quality and stability.

    Raises:
        InputError: If the resolution is not positive, or there are fewer than three seeds.

    Cost: with leiden and 10 seeds about 10 s for 4,096 nodes of 30 neighbours with clear structure, several times that
    in noise.

    Source: Traag, Waltman & van Eck, *From Louvain to Leiden*, arXiv 1810.08473.
    """
    algorithm = Algorithm(method, objective, signs, n_communities, iterations)
    found = graph if isinstance(graph, Graph) else correlation_graph(graph)
    value = resolution.resolution if isinstance(resolution, ResolutionChoice) else resolution
    return _communities(found, algorithm, value, seeds, seed)


@public(resolutions=filled, draws=at_least(1), seed=at_least(0))
def resolution_profile(
    graph: Graph,
    *,
    algorithm: Algorithm = Algorithm(),  # noqa: B008  (frozen)
    resolutions: tuple[float, ...] = RESOLUTIONS,
    seeds: int = 10,
    draws: int = 5,
    seed: int = 0,
) -> xr.Dataset:
    """Measure number, quality and stability of communities over resolutions, for a graph and for its null.

    Each graph, null graphs included, has its own γ₀, so that a resolution means the same on all of them.

    Args:
        graph: The graph.
        algorithm: The way to find communities.
        resolutions: In units of γ₀ (CPM) or of 1 (modularity).
        seeds: Runs at each resolution, at least 3.
        draws: Number of null graphs.
        seed: Seed from which the seeds of runs and null graphs are drawn.

    Returns:
        Dataset over `resolution` with `communities` (of two or more nodes; median over seeds), `quality` (mean over
        seeds), `stability`, `stability_error`, and over (`draw`, `resolution`) `null_quality` and `null_stability`.

    Raises:
        InputError: If a resolution is not positive, or there are fewer than three seeds.

    Cost: ``(1 + draws) · len(resolutions) · seeds`` runs, 480 by default.
    """
    nulls = [null_graph(graph, null_seed) for null_seed in _seeds(seed + 1, draws)]
    rows = [[_spread(each, algorithm, value, seeds, seed) for value in resolutions] for each in (graph, *nulls)]
    table = np.asarray(rows)  # (graph, resolution, measure)
    names = ("communities", "quality", "stability", "stability_error")
    data = xr.Dataset(
        {name: ("resolution", table[0, :, i]) for i, name in enumerate(names)}
        | {f"null_{name}": (("draw", "resolution"), table[1:, :, i]) for i, name in enumerate(names) if i in (1, 2)},
        coords={"resolution": list(resolutions)},
    )
    data["communities"].attrs["long_name"] = "communities of two nodes and more"
    data["quality"].attrs["long_name"] = f"{algorithm.objective} per edge weight"
    data["stability"].attrs["long_name"] = "mean pairwise AMI of seeds"
    unit = "mean |w| over pairs" if algorithm.objective == "cpm" else "1"
    data["resolution"].attrs.update(long_name="resolution", units=unit)
    return data


@public
def choose_resolution(
    profile: xr.Dataset, *, least_communities: int = 8, least_excess: float = 0.2
) -> ResolutionChoice:
    """Choose the resolution of the most stable communities beyond the null: the coarsest of those as good as the best.

    Excess is the stability less the mean stability of the null graphs. The best resolution has the largest excess;
    chosen is the coarsest within one standard error of it (over seeds and null graphs) that has enough communities, or
    the best itself if none has. A resolution with fewer than two communities does not count: one community is as
    stable as can be and says nothing.

    Args:
        profile: From `resolution_profile`.
        least_communities: Number of communities that is enough.
        least_excess: The excess above which communities are stable.

    Returns:
        The choice.
    """
    null = profile["null_stability"].values
    excess = profile["stability"].values - null.mean(axis=0)
    count = profile["communities"].values
    excess = np.where(count >= 2, excess, np.nan)
    if np.isnan(excess).all():
        return ResolutionChoice(float("nan"), float("nan"), False)
    null_error = null.std(axis=0, ddof=1) / np.sqrt(len(null)) if len(null) > 1 else np.zeros(null.shape[1])
    best = int(np.nanargmax(excess))
    error = np.hypot(profile["stability_error"].values[best], null_error[best])
    # Equal stabilities differ by rounding, and 1e-9 of AMI is nothing.
    near = np.flatnonzero((excess >= excess[best] - error - 1e-9) & (count >= least_communities))
    grid = profile["resolution"].values
    chosen = near[np.argmin(grid[near])] if len(near) else best
    return ResolutionChoice(float(grid[chosen]), float(excess[chosen]), bool(excess[best] > least_excess))


@public(draws=at_least(1), seed=at_least(0))
def compare_with_null(graph: Graph, found: Communities, *, draws: int = 20, seed: int = 0) -> NullComparison:
    """Compare a graph's communities with those of its null graphs, found in the same way.

    Each null graph goes through the same consensus at the same resolution in units of its own γ₀.

    Args:
        graph: The graph.
        found: Its communities.
        draws: Number of null graphs; the p value can fall below .05 from 20 on.
        seed: Seed from which the seeds of the null graphs are drawn.

    Returns:
        Qualities and stabilities of both.

    Cost: ``draws · seeds`` runs.
    """
    seeds = len(found.runs)
    nulls = [
        _communities(null_graph(graph, null_seed), found.algorithm, found.resolution, seeds, null_seed)
        for null_seed in _seeds(seed, draws)
    ]
    quality = np.asarray([null.quality for null in nulls])
    return NullComparison(found.quality, quality, found.stability, np.asarray([null.stability for null in nulls]))


def _communities(graph: Graph, algorithm: Algorithm, resolution: float, seeds: int, seed: int) -> Communities:
    runs = _runs(graph, algorithm, resolution, seeds, seed)
    labels = consensus(runs, seed=_seeds(seed, seeds)[0])
    mean, error = stability(runs)
    return Communities(
        labels=labels,
        quality=algorithm.quality(graph, labels, resolution),
        modularity=Algorithm(objective="modularity", signs=algorithm.signs).quality(graph, labels, 1.0),
        stability=mean,
        stability_error=error,
        resolution=resolution,
        algorithm=algorithm,
        runs=runs,
    )


def _spread(graph: Graph, algorithm: Algorithm, resolution: float, seeds: int, seed: int) -> tuple[float, ...]:
    """Number of communities, quality, stability and its error over seeds."""
    runs = _runs(graph, algorithm, resolution, seeds, seed)
    number = np.median([(np.bincount(run) > 1).sum() for run in runs])
    quality = np.mean([algorithm.quality(graph, run, resolution) for run in runs])
    return float(number), float(quality), *stability(runs)


def _runs(graph: Graph, algorithm: Algorithm, resolution: float, seeds: int, seed: int) -> Int[np.ndarray, "run node"]:
    if not (np.isfinite(resolution) and resolution > 0):
        raise InputError(f"resolution must be positive, got {resolution}: it is in units of the mean |w| over pairs")
    if seeds < 3:
        raise InputError(f"a consensus and its stability need at least 3 seeds, got {seeds}: pass more")
    return np.stack([canonical_labels(algorithm.run(graph, resolution, run_seed)) for run_seed in _seeds(seed, seeds)])


def _seeds(seed: int, count: int) -> list[int]:
    """Seeds below 2³¹, drawn from one."""
    return [int(state) >> 1 for state in np.random.SeedSequence(seed).generate_state(count)]
