"""What works on a model's architecture, by which method and at what cost, and what is left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probe import display
from probe.model.architectures import ARCHITECTURES, BlockLayout

if TYPE_CHECKING:
    from probe.model.huggingface import HuggingFaceModel

COSTS: Mapping[str, str] = {
    "analytic": "about 10 d³ FLOPs a position",
    "frozen": "2 d · parameters FLOPs a position, whatever the length T",
    "carried": "2 d · parameters FLOPs a position, and one run of the block over the text before it",
    "sequences": "2 d · parameters · T FLOPs a position",
    "jacrev": "2 d · parameters · T FLOPs a position",
}
"""Cost of a block Jacobian by its method."""


@dataclass(frozen=True)
class BlockSupport:
    """Sites, matrices and method of the blocks of one kind.

    Attributes:
        layers: Indices of the blocks.
        sites: Names of their sites, besides those of the stream before and after the block.
        projections: Shape (out, in) of each matrix, by name.
        method: The method of their Jacobians.
        cost: Its cost.
        tried: Whether one of the blocks ran so with this model object; otherwise it is what the layout promises.
    """

    layers: tuple[int, ...]
    sites: tuple[str, ...]
    projections: Mapping[str, tuple[int, int]]
    method: str
    cost: str
    tried: bool


@dataclass(frozen=True)
class LeftOut:
    """Something that the library offers on other models, and not on this one.

    Attributes:
        what: Its names.
        layers: The blocks.
        why: The reason.
    """

    what: str
    layers: tuple[int, ...]
    why: str


@dataclass(frozen=True, repr=False)
class Support:
    """All that works on a model, and all that is left out.

    Attributes:
        architecture: Its family, the `model_type` of its configuration.
        module: Name of its class.
        stream: Where the stream is: blocks, width, and what follows.
        blocks: What works on its blocks, by kind.
        left_out: What does not, and why.
    """

    architecture: str
    module: str
    stream: str
    blocks: tuple[BlockSupport, ...]
    left_out: tuple[LeftOut, ...]

    def __str__(self) -> str:
        lines = [f"{self.architecture} ({self.module}): {self.stream}"]
        for kind in self.blocks:
            matrices = ", ".join(f"{name} {rows} × {columns}" for name, (rows, columns) in kind.projections.items())
            lines += [
                f"blocks {spans(kind.layers)}",
                f"  sites: {', '.join(kind.sites) or 'none inside'}",
                f"  matrices: {matrices or 'none known'}",
                f"  Jacobians: {kind.method}{'' if kind.tried else ' (not tried yet)'}, {kind.cost}",
            ]
        lines += [f"left out in blocks {spans(part.layers)}: {part.what}, for {part.why}" for part in self.left_out]
        return "\n".join(lines)

    def __repr__(self) -> str:
        methods = ", ".join(f"blocks {spans(kind.layers)}: {kind.method}" for kind in self.blocks)
        return f"Support({self.architecture!r}, {methods}, left out: {len(self.left_out)})"

    def _repr_html_(self) -> str:
        rows = {f"blocks {spans(kind.layers)}": f"{kind.method}: {kind.cost}" for kind in self.blocks}
        rows |= {f"left out: {part.what}": part.why for part in self.left_out}
        return display.table(f"Support of {self.architecture}", {"stream": self.stream, **rows})


def spans(layers: Sequence[int]) -> str:
    """Write indices as spans, "0 … 3, 5".

    Args:
        layers: Ascending indices.

    Returns:
        The text.
    """
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} … {part[-1]}" for part in parts)


def support_of(model: HuggingFaceModel) -> Support:
    """Gather what is known of a model.

    Args:
        model: The model.

    Returns:
        What works and what is left out.
    """
    kinds: dict[tuple[object, ...], list[int]] = {}
    shapes = [
        {name: (matrix.shape[0], matrix.shape[1]) for name, matrix in model.projections(layer).items()}
        for layer in range(model.n_layers)
    ]
    for layer in range(model.n_layers):
        kind = model.at(layer)
        key = (*kind.sites, kind.parallel, *shapes[layer].items(), repr(kind.form))
        kinds.setdefault(key, []).append(layer)
    blocks = []
    for layers in kinds.values():
        # a block that was tried speaks for its kind
        spoken = next((layer for layer in layers if layer in model.trials), layers[0])
        method, way, tried = model.method(spoken)
        kind = model.at(layers[0])
        blocks.append(BlockSupport(tuple(layers), tuple(kind.sites), shapes[layers[0]], method, COSTS[way], tried))
    tail = model.found.tail
    behind = " then ".join(path for path in (tail.norm, tail.head) if path)
    stream = f"{model.n_layers} blocks under {model.found.blocks}, width {model.d_model}, then {behind}"
    return Support(
        model.architecture, type(model.module).__name__, stream, tuple(blocks), left_out(model, list(kinds.values()))
    )


def kinds_of(model: HuggingFaceModel) -> list[list[int]]:
    """Group the blocks by their layout.

    Args:
        model: The model.

    Returns:
        Indices, ascending, a list for each kind.
    """
    kinds: dict[str, list[int]] = {}
    for layer in range(model.n_layers):
        kinds.setdefault(repr(model.at(layer)), []).append(layer)
    return list(kinds.values())


def left_out(model: HuggingFaceModel, kinds: Sequence[Sequence[int]]) -> tuple[LeftOut, ...]:
    """Find what other models have and this one has not.

    Args:
        model: The model.
        kinds: The blocks by kind.

    Returns:
        One entry a kind and missing thing.
    """
    missing = []
    for layers in kinds:
        missing += [LeftOut(what, tuple(layers), why) for what, why in _lacks(model.at(layers[0]))]
    return tuple(missing)


def _lacks(kind: BlockLayout) -> list[tuple[str, str]]:
    lacks = []
    if not kind.added:
        lacks.append((
            "hook_attn_out, hook_resid_mid, hook_mlp_out",
            "what these blocks add to the stream is not the output of a module, times a number",
        ))
    elif "hook_resid_mid" in kind.sites and "hook_mlp_out" not in kind.sites:
        lacks.append(("hook_mlp_out", "no one module's output leads from hook_resid_mid to the end of these blocks"))
    if kind.withheld is not None:
        lacks.append((
            "matrices by name of changed modules",
            f"{kind.withheld} does more than multiply by its matrix, or others run in its place: merge adapters with "
            "merge_and_unload(), dequantise packed weights, leave out a bridge's compatibility mode",
        ))
    elif not kind.projections:
        lacks.append(("matrices by name", "nothing states them, and running the blocks does not show them"))
    elif "o" in kind.projections and not {"q", "k", "v"} <= set(kind.projections):
        missing = [name for name in "qkv" if name not in kind.projections]
        why = "no one matrix of these blocks makes them of the stream"
        if all(f"{name}_b" in kind.projections for name in missing):
            why += f": {', '.join(f'{name}_b' for name in missing)} make them of normed latents"
        lacks.append((", ".join(missing), why))
    return lacks


_SIDES = {"o": 0, "gate": 1, "up": 1, "down": 0}
"""The axis of a matrix that is the stream's."""


def unconfirmed(model: HuggingFaceModel) -> tuple[str, ...]:
    """Find what the row of a model's architecture states and the model does not bear out.

    Loading passes over it in silence, because what a short pass shows is used instead: it is for who writes a row.

    Args:
        model: The model.

    Returns:
        A phrase for each such path; empty if all holds, or if there is no row.
    """
    row = ARCHITECTURES.get(model.architecture)
    if row is None:
        return ()
    doubts: list[str] = []
    if model.config is model.module.config:  # not the text part of a model of several, whose paths are longer
        tail = model.found.tail
        seen = {"blocks": model.found.blocks, "embedding": model.found.embedding, "head": tail.head}
        seen |= {} if tail.norm is None else {"final_norm": tail.norm}
        doubts += [
            f"{name} is {path}, not {getattr(row, name)}" for name, path in seen.items() if getattr(row, name) != path
        ]
    known = {name for layer in range(model.n_layers) for name in model.at(layer).projections}
    for layer, block in enumerate(model.blocks):
        missing = min((kind.missing(block) for kind in row.kinds), key=len)
        if missing:
            doubts.append(f"these blocks have no {', '.join(missing)}, so they are of none of its kinds")
            continue
        stated, shown = row.of(block), model.at(layer)
        for name, site in stated.sites.items():
            if shown.sites.get(name) != site and not (name == "hook_resid_mid" and shown.parallel):
                doubts.append(f"{name} is not the {site.side} of {site.module}")
        kind = next(kind for kind in row.kinds if kind.fits(block))
        doubts += [
            f"the matrix {name} is not at {matrix.module}"
            for name, matrix in kind.projections.items()
            if name not in known
        ]
        doubts += [
            f"the matrix {name}, {matrix.shape[0]} × {matrix.shape[1]} (out × in), does not "
            f"{'write to' if _SIDES[name] == 0 else 'read'} a stream of width {model.d_model}"
            for name, matrix in model.projections(layer).items()
            if name in kind.projections and name in _SIDES and matrix.shape[_SIDES[name]] != model.d_model
        ]
    return tuple(dict.fromkeys(doubts))
