"""Activation patching: states of one prompt put into the run of another, each layer and position by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from probe import display
from probe.boundary import at_least, public
from probe.errors import InputError
from probe.inference import bootstrap
from probe.model import LanguageModel, require_layer, site_name, undisturbed
from probe.patching.effects import measured, token_ids, token_texts
from probe.patching.ladder import Crossing, crossed
from probe.text import Given, TokenRows, Which, as_rows

if TYPE_CHECKING:
    import pandas as pd

Measure = Literal["logit_difference", "kl", "loss", "rank"]
VariableName = Literal["normalised", "effect"]
Direction = Literal["denoising", "noising"]

_LONG_NAMES = {
    "logit_difference": ("logit of the first token minus that of the second", "1"),
    "kl": ("KL divergence from the clean output", "nat"),
    "loss": ("−log p of the token", "nat"),
    "rank": ("tokens with a larger logit than the token", "tokens"),
}


@dataclass(frozen=True, eq=False, repr=False)
class ActivationPatching:
    """The effect of each state of one prompt on the output of another.

    Attributes:
        data: `effect` and `normalised` over (pair, layer, position[, head]), the baselines `clean` and `corrupted` over
            pair; labels of the tokens are a coordinate. Normalised, 0 is the corrupted and 1 the clean output.
        name: Name of the model.
        site: The site.
        measure: The measure.
        direction: "denoising" or "noising".
    """

    data: xr.Dataset
    name: str
    site: str
    measure: str
    direction: str

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={size}" for name, size in self.data.sizes.items())
        return f"{type(self).__name__}({self.site}, {self.measure}, {self.direction}; {sizes})"

    def _repr_html_(self) -> str:
        rows = {"measure": self.measure, **{str(name): str(size) for name, size in self.data.sizes.items()}}
        rows |= {side: ", ".join(f"{value:.4g}" for value in self.data[side].values[:4]) for side in _SIDES}
        restored = self.normalised.mean("pair")
        moved = restored if self.direction == "denoising" else 1 - restored
        if bool(moved.notnull().any()):
            most = moved.isel(moved.argmax(...))
            where = ", ".join(f"{name} {most[name].item()}" for name in moved.dims)
            rows["largest effect"] = f"{float(most):.3f} of the difference, at {where}"
        return display.table(f"Activation patching of {self.site} in {self.name}, {self.direction}", rows)

    @property
    def effect(self) -> xr.DataArray:
        """The measure of each patched run, (pair, layer, position[, head])."""
        return self.data["effect"]

    @property
    def normalised(self) -> xr.DataArray:
        """(patched − corrupted) / (clean − corrupted), of the same axes: 0 is the corrupted and 1 the clean output."""
        return self.data["normalised"]

    @property
    def tokens(self) -> list[str]:
        """Labels of the patched positions: the clean token, and the corrupted one behind a slash if it is another.

        Of pairs whose tokens differ, they are numbers.
        """
        labels = self.data["token"].values
        same = bool((labels == labels[:1]).all())
        return [str(label) for label in (labels[0] if same else self.data["position"].values)]

    @public
    def intervals(
        self,
        variable: VariableName = "normalised",
        *,
        level: float = 0.95,
        resamples: int = 1000,
        seed: int = 0,
    ) -> xr.Dataset:
        """Estimate the mean over pairs at each place, with intervals that resample pairs.

        Args:
            variable: "normalised" or "effect".
            level: Nominal coverage.
            resamples: Number of resamples.
            seed: Seed of the resamples.

        Returns:
            `mean`, `low` and `high` over (layer, position[, head]); the ends are NaN for one pair.
        """
        array = self.data[variable]
        values = array.values
        found = bootstrap(
            lambda rows: values[rows].mean(0), np.arange(len(values)), level=level, resamples=resamples, seed=seed
        )
        like = array.isel(pair=0, drop=True)
        ends = {"mean": found.estimate, "low": found.low, "high": found.high}
        return xr.Dataset({name: like.copy(data=np.asarray(end)) for name, end in ends.items()})

    def to_dataset(self) -> xr.Dataset:
        """Return the Dataset."""
        return self.data

    def table(self) -> pd.DataFrame:
        """Tabulate effects: one row for each pair, layer and position (and head), with the token's label."""
        table: pd.DataFrame = self.data[["effect", "normalised"]].to_dataframe().reset_index()
        return table

    @public
    def plot(self, variable: VariableName = "normalised", *, head: int | None = None, **options: Any) -> Any:
        """Draw a heat map over tokens and layers, of the mean over pairs.

        Args:
            variable: "normalised" or "effect".
            head: The head to draw, of a site with heads.
            **options: Further arguments of `probe.plots.token_layer_map`.

        Returns:
            The figure.

        Raises:
            InputError: If the site has heads and none is named: effects of heads do not add up.
        """
        from probe.plots import token_layer_map

        values = self.data[variable].mean("pair")
        if "head" in values.dims:
            heads = values.sizes["head"]
            if head is None or not 0 <= head < heads:
                raise InputError(
                    f"head= must be one of 0 … {heads - 1}, got {head}: effects of heads do not add up, draw one"
                )
            values = values.isel(head=head)
        named = {"label": self.data[variable].attrs["long_name"], **options}
        return token_layer_map(values.values, tokens=self.tokens, layers=self.data["layer"].values.tolist(), **named)


_SIDES = ("clean", "corrupted")


@public(rows_at_once=at_least(1))
@undisturbed()
@torch.no_grad()
def activation_patching(
    model: LanguageModel,
    clean: Given,
    corrupted: Given,
    *,
    site: str = "resid_pre",
    tokens: Any = None,
    measure: Measure = "logit_difference",
    positions: Which | None = None,
    layers: Sequence[int] | None = None,
    read: Which = "last",
    direction: Direction = "denoising",
    rows_at_once: int = 2048,
    quiet: bool = True,
) -> ActivationPatching:
    """Put the states of one prompt into the run of another, one layer and position at a time, and measure the output.

    Denoising puts the clean prompt's states into the corrupted run: what restores the clean output? Noising puts the
    corrupted ones into the clean run: what breaks it? Each effect is the measure at the position read,

        normalised = (patched − corrupted) / (clean − corrupted).

    A change at (layer l, position t) reaches only blocks from l and positions from t on: these alone run, over keys and
    values of the recorded run, and one run of a block serves all patches that entered before it. States that are equal
    in both runs, as those before the first token that differs, need no run. Where the site's tensor acts on other
    positions of its own block, or blocks are given more than the stream, whole passes run.

    Args:
        model: The model.
        clean: A prompt, or a list of prompts: what `probe.load_prompts` takes or gives.
        corrupted: As many prompts, each with as many tokens as its clean one.
        site: The site inside each block: "resid_pre", "resid_post", "attn_out", "mlp_out", "attn.hook_z" (head by
            head), or another that a capture knows and that can be written.
        tokens: For "logit_difference" the right and the wrong token, such as `(" Paris", " Rome")`, as strings or ids,
            or a list with a group for each pair; for "loss" and "rank" the token, by default the one behind the clean
            prompt's position read.
        measure: "logit_difference"; "kl" from the clean output, in nats; "loss", −log p in nats; or "rank".
        positions: The positions to patch, equally many in each pair: indices, negative ones from the end, a
            `probe.Substring` of the clean prompts; None: all.
        layers: The layers to patch; None: all.
        read: The position whose output is measured, one in each pair.
        direction: "denoising" or "noising".
        rows_at_once: Positions that pass through a block at a time; memory is about that many times the widest layer.
        quiet: Show no progress bar.

    Returns:
        The effects.

    Raises:
        InputError: If prompts of a pair differ in length, pairs without named positions do, there is no such site,
            layer, measure, direction or position, or the measure needs tokens.
    """
    for name, value, known in (("measure", measure, Measure), ("direction", direction, Direction)):
        if value not in get_args(known):
            raise InputError(f"{name}= must be one of {', '.join(get_args(known))}, got {value!r}: choose one")
    pair = as_rows(model, clean, argument="clean"), as_rows(model, corrupted, argument="corrupted")
    _require_pairs(model, *pair)
    where = _positions(pair[0], positions)
    reading = pair[0].positions(read, argument="read")
    if reading.shape[1] != 1:
        raise InputError(f"read= must name one position in each prompt, got {reading.shape[1]}: pass an index")
    listed = list(range(model.n_layers)) if layers is None else [int(layer) for layer in layers]
    if not listed:
        raise InputError("layers= must name at least one layer, got none: leave it out for all")
    for layer in listed:
        require_layer(model, layer)
    short = site_name(model, f"blocks.{listed[0]}.{site}").split(".", 2)[2]
    targets = _targets(model, pair[0], reading[:, 0], measure, tokens)
    parts = []
    with tqdm(total=where.numel(), desc=f"patching of {short}", unit="position", disable=quiet) as bar:
        for row in range(len(pair[0].ids)):
            ids = torch.stack([side.ids[row] for side in pair])[:, : int(reading[row, 0]) + 1]
            crossing = Crossing(model, ids, short, listed, where[row], direction == "denoising", rows_at_once)
            states = crossed(crossing, bar.update)
            reference = model.unembed(states.sides[0]).float()
            of = None if targets is None else targets[row].to(reference.device)
            values = [_scores(model, measure, side, reference, of) for side in (*states.sides, states.patched)]
            unmoved = (states.patched == states.sides[crossing.base]).all(-1).cpu().numpy()
            values[2] = np.where(unmoved, values[crossing.base], values[2])  # not another rounding of the same
            parts.append(values)
    data = _dataset(model, pair, where, listed, parts, measure)
    return ActivationPatching(data, model.name, short, measure, direction)


def _require_pairs(model: LanguageModel, clean: TokenRows, corrupted: TokenRows) -> None:
    if len(clean.ids) != len(corrupted.ids):
        counts = [
            f"{len(rows.ids)} from {''.join(token_texts(model, rows.ids[0]))!r} on" for rows in (clean, corrupted)
        ]
        raise InputError(f"each clean prompt needs a corrupted one, got {' and '.join(counts)}: pass as many")
    for row, (one, other) in enumerate(zip(clean.ids, corrupted.ids, strict=True)):
        if len(one) != len(other):
            texts = [token_texts(model, ids) for ids in (one, other)]
            cut = [f"{len(text)} of {''.join(text)!r} ({'|'.join(text)})" for text in texts]
            raise InputError(
                f"clean and corrupted prompts must have equally many tokens, and those of pair {row} have "
                f"{cut[0]} and {cut[1]}: choose words of as many tokens"
            )


def _positions(rows: TokenRows, positions: Which | None) -> Int[Tensor, "pair position"]:
    if positions is not None:
        return rows.positions(positions)
    if len(set(rows.lengths.tolist())) > 1:
        raise InputError(
            f"pairs share positions if they are of one length, and these have {int(rows.lengths.min())} to "
            f"{int(rows.lengths.max())} tokens: name positions=, negative ones from the end or a Substring"
        )
    return torch.arange(int(rows.lengths[0])).expand(len(rows.ids), -1)


def _targets(
    model: LanguageModel, clean: TokenRows, read: Tensor, measure: str, tokens: Any
) -> Int[Tensor, "pair n"] | None:
    """The tokens that the measure is about."""
    if measure == "kl":
        return None
    if tokens is not None:
        found = token_ids(model, tokens, len(read))
        if found.shape[1] == 2 or measure != "logit_difference":
            return found
        raise InputError(
            f'measure="logit_difference" compares two tokens, got {found.shape[1]}: pass tokens=(right, wrong)'
        )
    behind = [ids[at + 1 : at + 2] for ids, at in zip(clean.ids, read.tolist(), strict=True)]
    if measure == "logit_difference" or not all(map(len, behind)):
        need = "two tokens" if measure == "logit_difference" else "a token, or a position with a next one"
        raise InputError(f'measure="{measure}" needs {need}, got none: pass tokens=, or measure="kl"')
    return torch.stack(behind)


def _scores(
    model: LanguageModel, measure: str, states: Tensor, reference: Tensor, tokens: Tensor | None
) -> Float[np.ndarray, "*place"]:
    """The measure of streams that enter the final norm, some at a time because a row of logits is large."""
    parts = [
        measured(measure, model.unembed(part).float(), reference=reference, tokens=tokens)
        for part in states.reshape(-1, states.shape[-1]).split(256)
    ]
    scores: np.ndarray = torch.cat(parts).reshape(states.shape[:-1]).double().cpu().numpy()
    return scores


def _dataset(
    model: LanguageModel,
    pair: tuple[TokenRows, TokenRows],
    where: Int[Tensor, "pair position"],
    layers: list[int],
    parts: list[list[np.ndarray]],
    measure: str,
) -> xr.Dataset:
    clean, corrupted, effect = (np.stack([values[index] for values in parts]) for index in range(3))
    axes = ("pair", "layer", "position", "head")[: effect.ndim]
    spread = (slice(None), *(None,) * (effect.ndim - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        normalised = (effect - corrupted[spread]) / (clean - corrupted)[spread]
    texts = [[token_texts(model, ids[at]) for ids, at in zip(side.ids, where, strict=True)] for side in pair]
    labels = [
        [one if one == other else f"{one}/{other}" for one, other in zip(*row, strict=True)]
        for row in zip(*texts, strict=True)
    ]
    same = len({tuple(row) for row in where.tolist()}) == 1
    data = xr.Dataset(
        {
            "effect": (axes, effect),
            "normalised": (axes, normalised),
            "clean": ("pair", clean),
            "corrupted": ("pair", corrupted),
        },
        {
            "layer": layers,
            "position": where[0].numpy() if same else np.arange(where.shape[1]),
            "token": (("pair", "position"), labels),
        },
    )
    long_name, unit = _LONG_NAMES[measure]
    for name in ("effect", "clean", "corrupted"):
        data[name].attrs = {"long_name": long_name, "units": unit}
    data["normalised"].attrs = {"long_name": "(patched − corrupted) / (clean − corrupted)", "units": "1"}
    return data
