"""Interventions in every pass of a model, while a context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe import display
from probe.boundary import at_least, public
from probe.model import LanguageModel, changed, ending_after, undisturbed
from probe.patching.edits import Edit, Edits, edits_of, joined
from probe.stream import watch
from probe.text import Given, TokenRows, Which, as_rows

_UNDER_WAY: ContextVar[int] = ContextVar("interventions that a pass meets", default=0)


@dataclass(frozen=True)
class Intervention:
    """An intervention that is in place; called with prompts, it gives the logits under it.

    Attributes:
        model: The model.
        sites: The sites that are replaced.
        positions: The positions, as they were named; None: all.
    """

    model: LanguageModel
    sites: tuple[str, ...]
    positions: Any = None

    @public(batch_size=at_least(1))
    def __call__(
        self, prompts: Given, *, read: Which = "last", batch_size: int = 8
    ) -> Float[Tensor, "prompt read n_vocab"]:
        """Compute the logits of prompts.

        Args:
            prompts: What `probe.load_prompts` takes or gives.
            read: The positions whose logits are returned, equally many in each prompt: indices, negative ones from the
                end, "last" or a `probe.Substring`.
            batch_size: Prompts in a pass.

        Returns:
            The logits, float32 on the CPU.
        """
        rows = as_rows(self.model, prompts)
        return logits_at(self.model, rows, rows.positions(read, argument="read"), batch_size=batch_size)

    def _repr_html_(self) -> str:
        where = "all" if self.positions is None else str(self.positions)
        return display.table(f"Intervention in {self.model.name}", {"sites": ", ".join(self.sites), "positions": where})


@public
@contextmanager
def intervene(model: LanguageModel, edits: Edits, *, positions: Any = None) -> Iterator[Intervention]:
    """Replace tensors in every pass of a model while the context lasts; afterwards nothing is left of it.

    Every pass meets the intervention: `model.forward`, `probe.capture`, the module's own `generate`. A value is a
    number; an array that broadcasts to the site's tensor at the positions, (prompt, position, …); or a function from
    that tensor, a copy, to what takes its place. The sites are edited in the order of the pass, so that a function sees
    what earlier edits have made of its tensor.

    Args:
        model: The model.
        edits: The value of each site that a capture knows and that can be written, by its full name, such as
            "blocks.3.hook_mlp_out"; of a site with heads also by (site, head) or (site, (head, …)), where an array for
            one head has no axis of heads.
        positions: Indices, (P,) for all windows of a pass or (W, P), negative ones from its end; None: all positions.

    Yields:
        Intervention: Called with prompts, it gives their logits.

    Raises:
        InputError: If there is no such site or head, it can only be read, positions lie outside a pass, or a value does
            not broadcast.
    """
    found = edits_of(model, edits, positions)
    with intervened(model, found):
        yield Intervention(model, tuple(found), positions)


@contextmanager
def intervened(model: LanguageModel, edits: dict[str, list[Edit]]) -> Iterator[None]:
    """Make edits in every pass of a model while the context lasts.

    Args:
        model: The model.
        edits: The edits of each site.

    Yields:
        None: They are in place.
    """
    with changed(model, {name: joined(parts) for name, parts in edits.items()}):
        token = _UNDER_WAY.set(_UNDER_WAY.get() + 1)
        try:
            yield
        finally:
            _UNDER_WAY.reset(token)


def is_intervened() -> bool:
    """Tell whether an intervention is in place."""
    return _UNDER_WAY.get() > 0


Around = Callable[[Tensor], AbstractContextManager[None]]
"""From the prompts of a batch, by index, to the context in which their pass runs."""


@undisturbed()
@torch.no_grad()
def logits_at(
    model: LanguageModel,
    rows: TokenRows,
    read: Int[Tensor, "prompt read"],
    around: Around | None = None,
    *,
    batch_size: int = 8,
) -> Float[Tensor, "prompt read n_vocab"]:
    """Compute the logits of prompts at some positions.

    Args:
        model: The model.
        rows: The prompts.
        read: The positions.
        around: The context of each batch's pass.
        batch_size: Prompts in a pass.

    Returns:
        The logits, float32 on the CPU.
    """
    logits = torch.empty(*read.shape, model.n_vocab)
    for indices, tokens in rows.groups():
        for these, part in zip(indices.split(batch_size), tokens.split(batch_size), strict=True):
            with nullcontext() if around is None else around(these):
                logits[these] = _logits(model, part, read[these]).float().cpu()
    return logits


def _logits(model: LanguageModel, tokens: Tensor, read: Tensor) -> Float[Tensor, "row read n_vocab"]:
    rows, read = torch.arange(len(tokens), device=model.device)[:, None], read.to(model.device)
    norm = next((model.site(name).module for name in model.sites if name == "ln_final.hook_in"), None)
    if norm is not None and (norm._forward_hooks or norm._forward_pre_hooks):  # they expect all positions
        return model.forward(tokens)[rows, read]
    site = f"blocks.{model.n_layers - 1}.hook_resid_post"
    with watch(model, [site]) as seen, ending_after(model.blocks[-1]):
        model.final_states(tokens)
    return model.unembed(seen[site][rows, read])
