"""What the output of prompts does when tensors inside their passes are replaced."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from probe import display, replay
from probe.boundary import at_least, public
from probe.errors import InputError
from probe.inference import Interval, bootstrap
from probe.model import LanguageModel, undisturbed
from probe.patching.edits import Edit, Edits, edits_of
from probe.patching.effects import measured, token_ids, token_texts
from probe.patching.intervening import intervened, is_intervened, logits_at
from probe.text import Given, TokenRows, Which, as_rows

if TYPE_CHECKING:
    import pandas as pd

_NAMES = {
    "kl": ("KL divergence of the output after from that before", "nat"),
    "top1": ("the most probable token is the same", "1"),
    "loss": ("−log p of the token", "nat"),
    "rank": ("tokens with a larger logit than the token", "tokens"),
    "logit_difference": ("logit of the first token minus that of the second", "1"),
}


@dataclass(frozen=True, eq=False, repr=False)
class Patched:
    """The outputs of prompts before and after an intervention, and measures of the change.

    Attributes:
        name: Name of the model.
        sites: The sites that were replaced.
        prompts: A text for each prompt.
        read: The positions that were read, (prompt, read).
        before: The logits there without the intervention, float32.
        after: The logits with it, float32.
        tokens: The tokens that measures compare: those that were named, or the token behind each read position, −1
            where there is none; (prompt, read, n).
        predicted: The texts of the most probable tokens before and after, for each prompt and read position.
    """

    name: str
    sites: tuple[str, ...]
    prompts: tuple[str, ...]
    read: Int[Tensor, "prompt read"]
    before: Float[Tensor, "prompt read n_vocab"]
    after: Float[Tensor, "prompt read n_vocab"]
    tokens: Int[Tensor, "prompt read n"]
    predicted: tuple[tuple[tuple[str, str], ...], ...]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(self.sites)}; prompts={len(self.prompts)}, "
            f"kl={float(self['kl'].mean()):.3g})"
        )

    def _repr_html_(self) -> str:
        shown = {"sites": ", ".join(self.sites), "prompts": len(self.prompts)}
        means = {name: f"{float(np.nanmean(values)):.4g}" for name, values in self._measures.items()}
        caption = f"Patched {self.name}: means over prompts and positions read"
        return display.table(caption, shown | means)

    @cached_property
    def _measures(self) -> dict[str, Float[np.ndarray, "prompt read"]]:
        found = {name: measured(name, self.after, reference=self.before) for name in ("kl", "top1")}
        named = ["loss", "rank"] if bool((self.tokens >= 0).any()) else []
        named += ["logit_difference"] if self.tokens.shape[-1] == 2 else []
        for name in named:
            before, after = (measured(name, logits, tokens=self.tokens) for logits in (self.before, self.after))
            found |= {f"{name}_before": before, f"{name}_after": after, f"{name}_change": after - before}
        return {name: values.double().numpy() for name, values in found.items()}

    @public
    def __getitem__(self, measure: str) -> Float[np.ndarray, "prompt read"]:
        """Return a measure at each position read of each prompt.

        Args:
            measure: "kl" (before from after, in nats); "top1"; and of "loss", "rank" and "logit_difference" the values
                "…_before", "…_after" and "…_change".

        Returns:
            The values, float64; NaN where a position has no next token.

        Raises:
            InputError: If there is no such measure, or it needs tokens that were not named.
        """
        if measure not in self._measures:
            raise InputError(
                f"a measure must be one of {', '.join(self._measures)}, got {measure!r}: choose one; loss, rank and "
                "logit_difference need tokens=, or a position with a next token"
            )
        return self._measures[measure]

    @public
    def interval(self, measure: str, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Interval:
        """Estimate the mean of a measure over prompts, with an interval that resamples prompts.

        Args:
            measure: As in `patched[measure]`.
            level: Nominal coverage.
            resamples: Number of resamples.
            seed: Seed of the resamples.

        Returns:
            The interval; its ends are NaN for one prompt.
        """
        values, prompts = self[measure].ravel(), np.repeat(np.arange(len(self.prompts)), self.read.shape[1])
        values, prompts = values[~np.isnan(values)], prompts[~np.isnan(values)]
        return bootstrap(lambda rows: float(values[rows].mean()), prompts, resamples=resamples, seed=seed, level=level)

    def to_dataset(self) -> xr.Dataset:
        """Convert the measures to a Dataset over (prompt, read).

        Returns:
            The Dataset, with the text of each prompt, the positions read and the predicted tokens as coordinates.
        """
        axes = ("prompt", "read")
        data = xr.Dataset({name: (axes, values) for name, values in self._measures.items()})
        for name in self._measures:
            base, _, side = name.rpartition("_") if name not in _NAMES else (name, "", "")
            what, unit = _NAMES[base]
            data[name].attrs = {"long_name": f"{what}{f', {side}' if side else ''}", "units": unit}
        before, after = ([[pair[side] for pair in row] for row in self.predicted] for side in (0, 1))
        return data.assign_coords(
            text=("prompt", list(self.prompts)),
            position=(axes, self.read.numpy()),
            predicted_before=(axes, before),
            predicted_after=(axes, after),
        )

    def table(self) -> pd.DataFrame:
        """Tabulate the measures: one row for each prompt and position read."""
        table: pd.DataFrame = self.to_dataset().to_dataframe().reset_index()
        return table


@public(batch_size=at_least(1))
@undisturbed()
@torch.no_grad()
def patch(
    model: LanguageModel,
    prompts: Given,
    edits: Edits,
    *,
    positions: Which | None = (-1,),
    read: Which = "last",
    tokens: Any = None,
    batch_size: int = 8,
) -> Patched:
    """Replace tensors at some positions of prompts, and compare the output with that of the plain pass.

    The values are those of `probe.intervene`; arrays have a row for each prompt, or one for all. An edit of the
    residual stream in the second half of a prompt runs by `probe.replay`: only the blocks behind it, on the positions
    from the first edited one on.

    Args:
        model: The model.
        prompts: What `probe.load_prompts` takes or gives; lengths may differ.
        edits: The value of each site, or of each (site, head) or (site, (head, …)).
        positions: Where: indices, negative ones from the end of each prompt, "last", a `probe.Substring`, or None for
            all positions; equally many in each prompt.
        read: The positions whose outputs are compared, named likewise.
        tokens: One or two tokens that measures are about, as strings or ids, for all prompts or a list with a group
            for each: `loss` and `rank` of the first, `logit_difference` of the first over the second. By default `loss`
            and `rank` are those of the token behind each read position.
        batch_size: Prompts in a pass.

    Returns:
        The outputs and the measures.

    Raises:
        InputError: If there is no such site, position or token, a site can only be read, or a value does not broadcast.
    """
    rows = as_rows(model, prompts)
    count = len(rows.ids)
    where = None if positions is None else rows.positions(positions)
    reading = rows.positions(read, argument="read")
    found = edits_of(model, edits, where, count)
    named = _next_tokens(rows, reading) if tokens is None else token_ids(model, tokens, count)[:, None]

    def around(these: Tensor) -> Any:
        return intervened(model, {site: [edit.at(these) for edit in own] for site, own in found.items()})

    short = _suffix_edit(model, rows, found, where)
    if short is None:
        before = logits_at(model, rows, reading, batch_size=batch_size)
        after = logits_at(model, rows, reading, around, batch_size=batch_size)
    else:
        before, after = (torch.empty(*reading.shape, model.n_vocab) for _ in range(2))
        for indices, group in rows.groups():
            for these, part in zip(indices.split(batch_size), group.split(batch_size), strict=True):
                before[these], after[these] = _replayed(model, part, reading[these], short.at(these))
    predicted = [token_texts(model, logits.argmax(-1).flatten().tolist()) for logits in (before, after)]
    pairs = list(zip(*predicted, strict=True))
    width = reading.shape[1]
    return Patched(
        model.name,
        tuple(found),
        tuple("".join(token_texts(model, row)) for row in rows.ids),
        reading,
        before,
        after,
        named.expand(*reading.shape, -1),
        tuple(tuple(pairs[start : start + width]) for start in range(0, len(pairs), width)),
    )


def _next_tokens(rows: TokenRows, read: Tensor) -> Int[Tensor, "prompt read 1"]:
    following = [torch.cat([ids.cpu()[1:], torch.tensor([-1])]) for ids in rows.ids]
    return torch.stack([ids[at] for ids, at in zip(following, read, strict=True)])[..., None]


def _suffix_edit(
    model: LanguageModel, rows: TokenRows, edits: dict[str, list[Edit]], where: Tensor | None
) -> Edit | None:
    """The one edit of the stream, if it leaves the first half of each prompt as it is and nothing else is under way."""
    parts = [edit for own in edits.values() for edit in own]
    if len(parts) > 1 or where is None or is_intervened():
        return None
    if not parts[0].site.name.endswith(("hook_resid_pre", "hook_resid_post")):
        return None
    late = bool((2 * where.amin(1) >= rows.lengths).all())
    return parts[0] if late and replay.is_chained(model) else None


def _replayed(model: LanguageModel, tokens: Tensor, read: Tensor, edit: Edit) -> tuple[Tensor, Tensor]:
    """Logits before and after an edit of the stream, by a recorded pass and a run of what lies behind the edit."""
    assert edit.site.layer is not None
    assert edit.positions is not None
    depth = edit.site.layer + edit.site.name.endswith("hook_resid_post")
    last, start = model.n_layers, int(edit.positions.min())
    windows = torch.arange(len(tokens), device=model.device)
    context = replay.record(model, tokens, read, layers=range(min(depth, last - 1), last))
    after = context.states[last].clone()
    after[:, start:] = context.run_suffix(depth, start, edit(context.states[depth])[:, start:], windows)
    states = torch.stack([context.states[last], after])[:, windows[:, None], context.positions]
    before, changed = model.unembed(states).float().cpu()
    return before, changed
