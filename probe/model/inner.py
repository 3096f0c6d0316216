"""Sites inside attention and MLP, which follow from a block's matrices: heads, patterns and hidden units.

By TransformerLens's names, where H is the number of query heads, G that of key heads, and T of positions:

- `attn.hook_q`, `attn.hook_k`, `attn.hook_v`: outputs of the matrices, (windows, T, H or G, d_head)
- `attn.hook_rot_q`, `attn.hook_rot_k`: queries and keys as their products are taken, behind norms and rotation
- `attn.hook_pattern`: probabilities of the keys, (windows, T, H, T); TransformerLens has (windows, H, T, T)
- `attn.hook_z`: what the matrix `o` reads, head by head, (windows, T, H, d_value)
- `mlp.hook_pre`: output of `gate`, or of `up` where there is no gate, (windows, T, d_ff)
- `mlp.hook_pre_linear`: output of `up` beside a gate
- `mlp.hook_post`: what `down` reads
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from probe.boundary import public
from probe.model.architectures import BlockLayout, Projection, SitePath, matrix_of
from probe.model.attending import can_be_watched
from probe.model.hooks import first_tensor
from probe.model.protocol import LanguageModel

ATTENTION_SITES = (
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_rot_q",
    "attn.hook_rot_k",
    "attn.hook_pattern",
    "attn.hook_z",
)
MLP_SITES = ("mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post")


@public
def spelled(short: str, known: Collection[str]) -> str:
    """Find the name of a site inside a block that was written short, as "mlp_out" or "attn.z".

    Args:
        short: What was written.
        known: The names that there are.

    Returns:
        The name; what was written if it is none of them.
    """
    group, _, rest = short.rpartition(".")
    forms = (short, f"{group}.hook_{rest}" if group else f"hook_{rest}", f"attn.hook_{rest}", f"mlp.hook_{rest}")
    return next((form for form in (forms[:2] if group else forms) if form in known), short)


@public
def site_name(model: LanguageModel, name: str) -> str:
    """Find the full name of a site that was written short, as "blocks.3.mlp_out".

    Args:
        model: The model.
        name: The site.

    Returns:
        The name; what was written if the model has no such site.
    """
    head, _, rest = name.partition(".")
    layer, _, inner = rest.partition(".")
    if head != "blocks" or not inner:
        return name
    begin = f"blocks.{layer}."
    return begin + spelled(inner, {site.removeprefix(begin) for site in model.sites if site.startswith(begin)})


@dataclass(frozen=True)
class Columns:
    """A `Reading` of some entries of a module's input or output, by head.

    Attributes:
        side: The side.
        heads: Number of heads; None: no axis of heads.
        columns: The entries; None: all.
    """

    side: str
    heads: int | None = None
    columns: tuple[int, ...] | None = None

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
        """Return the entries."""
        tensor = self._tensor(arguments, named, output)
        found = tensor if self.columns is None else tensor[..., self._index(tensor)]
        return found if self.heads is None else found.unflatten(-1, (self.heads, -1))

    def put(self, tensor: Tensor, value: Tensor) -> Tensor:
        """Put other entries in.

        Args:
            tensor: The module's input or output.
            value: The entries, as they were read.

        Returns:
            A new tensor.
        """
        flat = (value if self.heads is None else value.flatten(-2)).to(tensor)
        if self.columns is None:
            return flat.reshape(tensor.shape)
        changed = tensor.clone()
        changed[..., self._index(tensor)] = flat.reshape(*tensor.shape[:-1], -1)
        return changed

    def _tensor(self, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
        if self.side == "output":
            return first_tensor(output)
        first = arguments[0] if arguments else next(iter(named.values()))
        assert isinstance(first, Tensor)
        return first

    def _index(self, tensor: Tensor) -> slice | Int[Tensor, " n"]:
        assert self.columns is not None
        first, count = self.columns[0], len(self.columns)
        if self.columns == tuple(range(first, first + count)):
            return slice(first, first + count)
        return torch.tensor(self.columns, device=tensor.device)


def inner_sites(kind: BlockLayout, block: nn.Module, heads: int | None) -> dict[str, SitePath]:
    """Find the sites inside attention and MLP that a block's matrices show.

    Args:
        kind: The block's layout.
        block: The block.
        heads: Number of query heads; None if the configuration states no one number.

    Returns:
        The sites by name, in the order of the pass.
    """
    matrices = kind.projections
    found: dict[str, SitePath] = {}
    if heads is not None and "o" in matrices:
        found |= _attention(kind, block, heads)
    gated = "gate" in matrices
    for name, matrix in (("mlp.hook_pre", "gate" if gated else "up"), ("mlp.hook_pre_linear", "up" if gated else "")):
        if isinstance(matrices.get(matrix), Projection):
            found[name] = _output(matrices[matrix], block, heads or 1, None)
    if isinstance(matrices.get("down"), Projection):
        found["mlp.hook_post"] = SitePath(matrices["down"].module, "input", reading=Columns("input"), flat=True)
    return found


def _attention(kind: BlockLayout, block: nn.Module, heads: int) -> dict[str, SitePath]:
    matrices: Mapping[str, Any] = kind.projections
    found: dict[str, SitePath] = {}
    if all(isinstance(matrices.get(name), Projection) for name in "qkv"):
        rows = {name: len(matrices[name].weight(block, heads)) for name in "qkv"}
        width = rows["q"] // heads
        groups = max(1, rows["k"] // width)
        if rows["q"] % heads == 0 and rows["k"] % groups == 0 and rows["v"] % groups == 0:
            counts = {"q": heads, "k": groups, "v": groups}
            found |= {f"attn.hook_{name}": _output(matrices[name], block, heads, counts[name]) for name in "qkv"}
    path = matrices["o"].module
    attention = path.rpartition(".")[0]
    if attention and can_be_watched(block.get_submodule(attention)):
        found |= {
            "attn.hook_rot_q": SitePath(attention, "query"),
            "attn.hook_rot_k": SitePath(attention, "key"),
            "attn.hook_pattern": SitePath(attention, "pattern"),
        }
    if matrix_of(block.get_submodule(path)).shape[1] % heads == 0 and isinstance(matrices["o"], Projection):
        found["attn.hook_z"] = SitePath(path, "input", reading=Columns("input", heads), flat=True)
    return found


def _output(matrix: Any, block: nn.Module, heads: int, count: int | None) -> SitePath:
    rows = matrix.rows(block, heads)
    columns = None if rows is None else tuple(rows.tolist())
    return SitePath(matrix.module, "output", reading=Columns("output", count, columns), flat=True)
