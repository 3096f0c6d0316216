"""Reading states out by lenses: what the model would say if a layer's stream were its last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from probe import display, replay
from probe.boundary import public
from probe.errors import InputError
from probe.jacobian import MEMORY, JacobianOptions
from probe.lens.estimators import same_position
from probe.lens.jacobian_lens import require_raw
from probe.model import LanguageModel, undisturbed
from probe.stream import watch
from probe.text import Given, TokenRows, Which, as_rows

if TYPE_CHECKING:
    import pandas as pd

    from probe.plots import Picture

Named = Literal["logit", "own"]
"""Lenses that need no fit: the identity, and the context's own Jacobian at the position."""
_BATCH = 32


@runtime_checkable
class Transport(Protocol):
    """Any lens: it carries the stream behind a block to that behind the last one."""

    def transport(self, states: Float[Tensor, "*batch d"], layer: int) -> Float[Tensor, "*batch d"]:
        """Carry states behind block `layer` to the last block."""

    def require(self, model: LanguageModel) -> None:
        """Refuse a model that it was not fitted on."""


Lens = Transport | Named


@dataclass(frozen=True, eq=False, repr=False)
class Readout(display.Shown):
    """Readings of several lenses at positions of prompts, beside the model's own output there.

    A row is a position of a prompt. The last layer is the model's output itself, by every lens.

    Attributes:
        name: Name of the model.
        lenses: Names of the lenses.
        layers: The layers that were read: the stream behind these blocks.
        window: The prompt of each row.
        position: The position of each row.
        token: The text of the token at each row.
        top: Ids of the most probable tokens, (lens, layer, row, k).
        words: Their texts, by id.
        probability: Their probabilities, (lens, layer, row, k).
        kl: KL divergence of the lens's distribution from the output's, Σ p_out log(p_out / p_lens), nat, (lens, layer,
            row).
        rank: How many tokens the lens puts before the output's first token; 0 where the two agree.
        final: Ids of the output's first token, (row,).
        n_vocab: Number of logits.
    """

    name: str
    lenses: tuple[str, ...]
    layers: tuple[int, ...]
    window: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    token: tuple[str, ...]
    top: Int[Tensor, "lens layer row k"]
    words: Mapping[int, str]
    probability: Float[Tensor, "lens layer row k"]
    kl: Float[Tensor, "lens layer row"]
    rank: Int[Tensor, "lens layer row"]
    final: Int[Tensor, " row"]
    n_vocab: int

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"model": self.name, "lenses": list(self.lenses), "layers": list(self.layers)}
        return facts | {"rows": len(self.window), "k": self.top.shape[-1]}

    @public
    def top_tokens(self, lens: str | None = None) -> list[list[list[str]]]:
        """List the most probable tokens.

        Args:
            lens: Name of the lens; None: the first.

        Returns:
            Texts, by layer, row and rank.

        Raises:
            InputError: If there is no such lens.
        """
        of_lens = self.top[self._index(lens)]
        return [[[self.words[int(one)] for one in row] for row in layer] for layer in of_lens]

    def _index(self, lens: str | None) -> int:
        if lens is None:
            return 0
        if lens not in self.lenses:
            raise InputError(f"lens= must be one of {', '.join(self.lenses)}, got {lens!r}: choose one")
        return self.lenses.index(lens)

    def to_dataset(self) -> xr.Dataset:
        """Convert to a Dataset over (lens, layer, row, rank).

        Returns:
            `token`, `probability` (rank), `kl`, `output_rank` and `agrees`, with `window`, `position` and `text` along
            `row`.
        """
        words = np.array([[[[self.words[int(one)] for one in row] for row in at] for at in lens] for lens in self.top])
        data = xr.Dataset({
            "token": (("lens", "layer", "row", "rank"), words),
            "probability": (("lens", "layer", "row", "rank"), self.probability.numpy()),
            "kl": (("lens", "layer", "row"), self.kl.numpy()),
            "output_rank": (("lens", "layer", "row"), self.rank.numpy()),
            "agrees": (("lens", "layer", "row"), self.rank.numpy() == 0),
        })
        said = {
            "token": ("the tokens that the lens reads first", "token"),
            "probability": ("their probabilities", "1"),
            "kl": ("KL divergence of the lens's distribution from the output's", "nat"),
            "output_rank": ("tokens that the lens puts before the output's first token", "tokens"),
            "agrees": ("the lens's first token is the output's", "1"),
        }
        for name, (words_of, unit) in said.items():
            data[name].attrs = {"long_name": words_of, "units": unit}
        return data.assign_coords(
            lens=list(self.lenses),
            layer=list(self.layers),
            window=("row", self.window.numpy()),
            position=("row", self.position.numpy()),
            text=("row", list(self.token)),
        )

    def table(self) -> pd.DataFrame:
        """Tabulate: one row for each lens, layer and position, with the first token, its probability, KL and rank."""
        data = self.to_dataset().isel(rank=0, drop=True)
        return data.to_dataframe().reset_index().drop(columns="row")

    @public
    def save_page(self, path: Path | str) -> Path:
        """Write an interactive page, token by layer, that needs no network: the lenses side by side.

        Args:
            path: The file, .html.

        Returns:
            The path.

        Raises:
            InputError: If the ending is another, or the file cannot be written.
        """
        from probe.lens.page import save

        return save(self, path)

    def _repr_html_(self) -> str:
        from probe.lens.page import in_notebook

        page = in_notebook(self)
        return f"{super()._repr_html_()}<p>A large page: readout.save_page(path)</p>" if page is None else page

    @public
    def plot(
        self,
        lens: str | None = None,
        *,
        prompt: int = 0,
        of: Literal["probability", "kl", "rank"] = "probability",
        **options: Any,
    ) -> Picture:
        """Draw what a lens reads of one prompt, token by layer, for a paper: its first tokens, on a scale of colours.

        Args:
            lens: Name of the lens; None: the first.
            prompt: Index of the prompt.
            of: What the colours show: the probability of the lens's first token; the KL divergence from the output; or
                how many tokens come before the output's.
            **options: Further arguments of `probe.plots.token_layer_map`, such as `width`.

        Returns:
            The picture.

        Raises:
            InputError: If there is no such lens, prompt or quantity.
        """
        from probe.plots import token_layer_map

        here = (self.window == prompt).nonzero()[:, 0]
        if not len(here):
            raise InputError(
                f"prompt= must be one that was read, {display.brief(self.window.unique().tolist())}, got {prompt}: "
                "choose one"
            )
        index = self._index(lens)
        values = {"probability": self.probability[..., 0], "kl": self.kl, "rank": self.rank}
        labels = {
            "probability": "probability of the token",
            "kl": "KL from the output (nat)",
            "rank": "tokens before the output's",
        }
        if of not in values:
            raise InputError(f"of= must be one of {', '.join(values)}, got {of!r}: choose one")
        first = self.top[index][:, here, 0].tolist()
        usual: dict[str, Any] = {
            "tokens": [self.token[row] for row in here.tolist()],
            "layers": list(self.layers),
            "text": [[self.words[one] for one in layer] for layer in first],
            "label": labels[of],
            "title": self.lenses[index],
            "symmetric": False,
        }
        return token_layer_map(values[of][index][:, here], **(usual | options))


@public
@undisturbed()
def readout(
    model: LanguageModel,
    prompts: Given,
    lenses: Mapping[str, Lens],
    *,
    layers: int | Sequence[int] | None = None,
    positions: Which | None = None,
    k: int = 5,
    memory: int = MEMORY,
) -> Readout:
    """Read the stream out by several lenses, through the model's own final norm and head.

    Args:
        model: The model.
        prompts: What `probe.load_prompts` takes or gives; lengths may differ.
        lenses: Lenses by name: a `JacobianLens`, an `AffineLens`, "logit" (J = I) or "own": the exact Jacobian
            ∂h_b(t)/∂h_l(t) of the context at the very position.
        layers: The layers to read, negative ones from the end; None: all. The last is the output.
        positions: The positions of each prompt: indices, "last", "counted", or a `probe.Substring`; None: all.
        k: Number of tokens kept.
        memory: Bytes to use for the context's own Jacobians.

    Returns:
        The readout.

    Raises:
        InputError: If a lens is of another model or lacks a layer, or a layer or position does not exist.
    """
    rows = as_rows(model, prompts)
    chosen = _layers(model, layers)
    if not lenses:
        raise InputError('lenses= must name at least one lens, got none: pass {"logit": "logit"}')
    if not 1 <= k <= model.n_vocab:
        raise InputError(f"k= must lie in 1 … {model.n_vocab}, the size of the vocabulary, got {k}: choose another")
    require_raw(model)
    for name, lens in lenses.items():
        if isinstance(lens, str):
            if lens not in ("logit", "own"):
                raise InputError(f'a lens must be "logit", "own" or a fitted one, got {lens!r} as {name}: pass one')
        else:
            lens.require(model)
    if positions is None:
        windows = torch.repeat_interleave(torch.arange(len(rows.ids)), rows.lengths)
        where = torch.cat([torch.arange(length) for length in rows.lengths.tolist()])
    else:
        windows, where = rows.chosen(positions)
    states, final = _states(model, rows, chosen, windows, where)
    shape = (len(lenses), len(chosen), len(windows))
    top, probability = torch.empty(*shape, k, dtype=torch.int64), torch.empty(*shape, k)
    kl, rank = torch.empty(shape), torch.empty(shape, dtype=torch.int64)
    carried = {
        name: _carried(model, rows, lens, chosen, states, windows, where, memory) for name, lens in lenses.items()
    }
    first = torch.empty(len(windows), dtype=torch.int64)
    for part in torch.arange(len(windows)).split(_BATCH):
        output = _log_probabilities(model, final[part])
        first[part] = output.argmax(-1)
        for at, name in enumerate(lenses):
            for depth, layer in enumerate(chosen):
                last = layer == model.n_layers - 1
                read = output if last else _log_probabilities(model, carried[name][depth, part])
                best = read.topk(k, dim=-1)
                top[at, depth, part], probability[at, depth, part] = best.indices, best.values.exp()
                kl[at, depth, part] = (output.exp() * (output - read)).nan_to_num(0.0).sum(-1)
                of_first = read.gather(-1, first[part][:, None])
                rank[at, depth, part] = (read > of_first).sum(-1)
    ids = [int(rows.ids[window][position]) for window, position in zip(windows.tolist(), where.tolist(), strict=True)]
    words = {one: _text(model, one) for one in {*top.flatten().tolist(), *first.tolist()}}
    return Readout(
        model.name,
        tuple(lenses),
        tuple(chosen),
        windows,
        where,
        tuple(_text(model, one) for one in ids),
        top,
        words,
        probability,
        kl,
        rank,
        first,
        model.n_vocab,
    )


def _layers(model: LanguageModel, layers: int | Sequence[int] | None) -> list[int]:
    given = range(model.n_layers) if layers is None else [layers] if isinstance(layers, int) else layers
    if not len(given) or not all(-model.n_layers <= layer < model.n_layers for layer in given):
        raise InputError(
            f"layers= must lie in 0 … {model.n_layers - 1} for {model.name}, got {list(given)}: choose blocks"
        )
    return sorted({layer % model.n_layers for layer in given})


@torch.no_grad()
def _states(
    model: LanguageModel, rows: TokenRows, layers: list[int], windows: Tensor, where: Tensor
) -> tuple[Float[Tensor, "layer row d"], Float[Tensor, "row d"]]:
    """The streams behind the layers, and behind the last block, at the rows."""
    names = [f"blocks.{layer}.hook_resid_post" for layer in (*layers, model.n_layers - 1)]
    found = torch.empty(len(names), len(windows), model.d_model)
    for indices, tokens in rows.groups():
        for part, batch in zip(indices.split(8), tokens.split(8), strict=True):
            with watch(model, dict.fromkeys(names)) as seen:
                model.final_states(batch.to(model.device))
            for row, window in enumerate(part.tolist()):
                here = (windows == window).nonzero()[:, 0]
                for at, name in enumerate(names):
                    found[at, here] = seen[name][row, where[here].to(model.device)].float().cpu()
    return found[:-1], found[-1]


@torch.no_grad()
def _carried(
    model: LanguageModel,
    rows: TokenRows,
    lens: Lens,
    layers: list[int],
    states: Float[Tensor, "layer row d"],
    windows: Tensor,
    where: Tensor,
    memory: int,
) -> Float[Tensor, "layer row d"]:
    if lens == "logit":
        return states
    found = states.clone()
    inner = [layer for layer in layers if layer < model.n_layers - 1]
    if isinstance(lens, str):
        at = {layer + 1: layers.index(layer) for layer in inner}
        for window in windows.unique().tolist() if at else []:
            here = (windows == window).nonzero()[:, 0]
            options, done = JacobianOptions(memory=memory), dict.fromkeys(at, 0)
            for depth, products in same_position(
                model, rows.ids[window].to(model.device), where[here], at, model.n_layers, options
            ):
                part = here[done[depth] : done[depth] + len(products)]
                done[depth] += len(products)
                carried = torch.bmm(products, states[at[depth], part, :, None].to(products.device))
                found[at[depth], part] = carried[..., 0].float().cpu()
        return found
    for layer in inner:
        found[layers.index(layer)] = lens.transport(states[layers.index(layer)], layer)
    return found


@torch.no_grad()
def _log_probabilities(model: LanguageModel, states: Float[Tensor, "row d"]) -> Float[Tensor, "row n_vocab"]:
    return model.unembed(states.to(model.device, model.dtype)).float().cpu().log_softmax(-1)


def _text(model: LanguageModel, token: int) -> str:
    return str(token) if model.tokenizer is None else str(model.tokenizer.decode([token]))


@public
@undisturbed()
def own_lens(
    model: LanguageModel,
    prompts: Given,
    positions: Which = "last",
    *,
    layers: int | Sequence[int] | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "window chosen layer d d"]:
    r"""Compute the context's own lens: the exact ∂h_b(t)/∂h_l(t) of every layer at chosen positions, no mean.

    It is the product of the block Jacobians J_b ⋯ J_{l+1} at t, with the last block as target. FLOPs a position and
    layer: about 10 d³ for a standard block's Jacobian and 2 d³ for the product, whatever T.

    Args:
        model: The model.
        prompts: What `probe.load_prompts` takes or gives.
        positions: The same number in each prompt: indices, (P,) or (W, P), "last", or a `probe.Substring`.
        layers: Source layers; None: all before the last.
        memory: Bytes to use beside the result.
        dtype: Of the arithmetic and the result.

    Returns:
        The matrices, (W, P, layers, d, d), layers ascending.

    Raises:
        InputError: If a layer or position does not exist, or blocks are given more than the stream.
    """
    rows = as_rows(model, prompts)
    where = rows.positions(positions)
    chosen = [layer for layer in _layers(model, layers) if layer < model.n_layers - 1]
    if not chosen:
        raise InputError(f"layers= must be before the last, {model.n_layers - 1}, got {layers!r}: its lens is I")
    found = torch.empty(*where.shape, len(chosen), model.d_model, model.d_model, dtype=dtype, device=model.device)
    options = JacobianOptions(memory=memory, dtype=dtype)
    at = {layer + 1: index for index, layer in enumerate(chosen)}
    replay.require_chain(model, min(at), model.n_layers)
    for window, ids in enumerate(rows.ids):
        done = dict.fromkeys(at, 0)
        for depth, products in same_position(model, ids, where[window], at, model.n_layers, options):
            found[window, done[depth] : done[depth] + len(products), at[depth]] = products
            done[depth] += len(products)
    return found
