"""Pictures of graphs: nodes by community, links by sign; and of a graph's communities beside those of null graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Unpack, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from probe.boundary import public, shown
from probe.errors import InputError
from probe.plots.canvas import Page, Picture
from probe.plots.pages import drawing, shared_legend
from probe.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY
from probe.plots.values import Numbers, array_of, labels_of

COMMUNITY_COLORS = (BLUE, ORANGE, GREEN, PINK, SKY, RED)  # of the largest communities; the others are pale grey
REST = "#C4C4C4"
SMALLEST, LARGEST = 12.0, 90.0  # points²: area of a node's marker
MOST_LINKS = 6000  # more hide each other


@runtime_checkable
class HasEdges(Protocol):
    """Nodes 0 … n − 1 and weights on pairs of them, as `probe.graphs.Graph` has them."""

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        ...

    @property
    def edges(self) -> Int[np.ndarray, "edge 2"]:
        """Pairs of nodes."""
        ...

    @property
    def weights(self) -> Float[np.ndarray, " edge"]:
        """Weight of each."""
        ...

    def layout(self, labels: Int[np.ndarray, " node"] | None = None, *, seed: int = 0) -> Float[np.ndarray, "node 2"]:
        """Place the nodes in the plane."""
        ...


@runtime_checkable
class HasNull(Protocol):
    """A graph's communities beside those of null graphs, as `probe.graphs.compare_with_null` gives them."""

    @property
    def quality(self) -> float:
        """Quality of the graph's communities."""
        ...

    @property
    def null_quality(self) -> Float[np.ndarray, " draw"]:
        """Quality of those of each null graph."""
        ...

    @property
    def p_value(self) -> float:
        """Share of the null at or above it."""
        ...


def community_colors(labels: Int[np.ndarray, " node"]) -> list[str]:
    """Choose a colour for each node: one for each of the largest communities, grey for the rest.

    Args:
        labels: Communities by falling size; −1 for nodes without one.

    Returns:
        Colours, told apart with every common colour vision.
    """
    return [COMMUNITY_COLORS[label] if 0 <= label < len(COMMUNITY_COLORS) else REST for label in labels.tolist()]


@public
def graph(
    of: HasEdges,
    communities: Any = None,
    *,
    positions: Numbers | None = None,
    size: Numbers | None = None,
    names: Sequence[object] | None = None,
    links: int = MOST_LINKS,
    title: str | None = None,
    seed: int = 0,
    ax: Axes | None = None,
    **page: Unpack[Page],
) -> Picture:
    """Draw a graph: nodes coloured by community, as large as you say; negative links are red.

    Args:
        of: A `probe.graphs.Graph`.
        communities: What `probe.graphs.communities` found, or a label for each node, (n,). The six largest communities
            have colours, the others are grey.
        positions: Where the nodes are drawn, (n, 2); by default by forces, communities held together.
        size: A number for each node, such as its gain, (n,): the area of its marker grows with it.
        names: A name beside each node.
        links: The most links that are drawn, strongest first.
        title: Title of the panel; by default the numbers of nodes, links and communities.
        seed: Seed of the positions.
        ax: Where to draw; by default on a new figure.
        **page: Width, height, font and its size of the new figure, see `Page`.

    Returns:
        The picture. A drawing is no test: forces show clusters in noise too.

    Raises:
        InputError: If labels, positions, sizes or names are not those of the graph's nodes.
    """
    n = of.n_nodes
    labels = None if communities is None else _of_nodes(getattr(communities, "labels", communities), n, "communities")
    whole = None if labels is None else labels.astype(np.int64)
    place = of.layout(whole, seed=seed) if positions is None else array_of(positions, "positions", (2,))
    if place.shape != (n, 2):
        raise InputError(f"positions must be ({n}, 2), got {place.shape}: pass two numbers for each node")
    area = np.full(n, (SMALLEST + LARGEST) / 4)
    if size is not None:
        sizes = _of_nodes(size, n, "size")
        least, reach = sizes.min(), max(float(np.ptp(sizes)), np.finfo(float).tiny)
        area = SMALLEST + (LARGEST - SMALLEST) * (sizes - least) / reach
    colors = [BLUE] * n if whole is None else community_colors(whole)
    strongest = np.sort(np.argsort(-np.abs(of.weights), kind="stable")[:links])
    with drawing(ax, page, width=4.8, height=4.4) as picture:
        nodes_and_links(picture.ax, place, of.edges[strongest], of.weights[strongest], area, colors)
        for name, (x, y) in zip([] if names is None else labels_of(names, n, "names"), place, strict=False):
            picture.ax.annotate(name, (x, y), xytext=(3, 3), textcoords="offset points", parse_math=False)
        picture.ax.set_title(_counted(of, whole) if title is None else title, loc="left")
    return picture


def nodes_and_links(
    ax: Axes,
    place: Float[np.ndarray, "node 2"],
    links: Int[np.ndarray, "link 2"],
    weights: Float[np.ndarray, " link"],
    area: Float[np.ndarray, " node"],
    colors: Sequence[str],
) -> None:
    """Draw the links of a graph, and its nodes over them, the small ones on top.

    Args:
        ax: The Axes; its frame is taken away.
        place: Coordinates of the nodes.
        links: Pairs of nodes.
        weights: Weights of the links; negative ones are red.
        area: Area of each node's marker in points², which shrinks where there are more than 200.
        colors: Colour of each node.
    """
    for chosen, color in ((weights >= 0, GREY), (weights < 0, RED)):
        lines = LineCollection(list(place[links[chosen]]), colors=color, linewidths=0.4, alpha=0.35, zorder=1)
        lines.set_rasterized(True)
        ax.add_collection(lines)
    order = np.argsort(-area)
    x, y = place[order].T
    shrunk = area[order] * min(1.0, 200 / max(len(area), 1)) ** 0.5
    ax.scatter(x, y, s=shrunk, c=np.array(colors)[order], lw=0.4, edgecolors="white", zorder=2, rasterized=True)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_axis_off()


@public
def null_comparison(
    found: HasNull, *, title: str | None = None, ax: Axes | None = None, **page: Unpack[Page]
) -> Picture:
    """Draw the quality of a graph's communities as a line over the histogram of that of null graphs.

    Args:
        found: From `probe.graphs.compare_with_null`.
        title: Title of the panel; by default the p value.
        ax: Where to draw; by default on a new figure.
        **page: Width, height, font and its size of the new figure, see `Page`.

    Returns:
        The picture; dotted: the 95 % point of the null.
    """
    null = array_of(found.null_quality, "the null's quality", (1,))
    with drawing(ax, page, width=4.2, height=2.8) as picture:
        picture.ax.hist(null, bins=max(5, round(len(null) ** 0.5)), color=GREY, alpha=0.5, label="null graphs")
        edge = float(np.quantile(null, 0.95))
        picture.ax.axvline(edge, color=BLACK, lw=1, ls=":", label="95 % of them")
        picture.ax.axvline(found.quality, color=BLUE, lw=2, label="the graph")
        picture.ax.set(xlabel="quality", ylabel="null graphs")
        picture.ax.set_title(f"p = {found.p_value:.3g}" if title is None else title, loc="left")
        if picture.new:
            shared_legend(picture.figure, 3)
    return picture


def _of_nodes(values: Any, n: int, name: str) -> Float[np.ndarray, " node"]:
    found = array_of(values, name)
    if found.shape != (n,):
        raise InputError(f"{name} must have a number for each of {n} nodes, got {shown(values)}: pass ({n},)")
    return found


def _counted(of: HasEdges, labels: Int[np.ndarray, " node"] | None) -> str:
    words = f"{of.n_nodes:,} nodes, {len(of.edges):,} links"
    if labels is None:
        return words
    count = int((np.bincount(labels[labels >= 0]) > 1).sum())
    return f"{words}, {count} {'community' if count == 1 else 'communities'}"
