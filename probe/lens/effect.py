"""What an intervention along lens directions does to logits: what the lens predicts beside what a run measures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Unpack

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes

from probe import display
from probe.boundary import public
from probe.inference import Interval, Ranking, bootstrap, spearman
from probe.plots import Page, Picture
from probe.plots.pages import drawing
from probe.plots.style import BLUE, GREY

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class LensEffect(display.Shown):
    """The change of chosen logits under an intervention, as a lens predicts it and as a run measures it.

    Attributes:
        data: `predicted` and `measured`, changes of logits over (layer, prompt, position[, direction], token), and
            `size`, the norm of the change of the state over that of the state. `position` numbers the positions of
            each prompt; `at`, (prompt, position), says where they are.
        name: Name of the model.
        action: "steer", "ablate" or "swap".
        lens: What predicts: the kind of lens, or "logit" or "own".
        along: Where the directions come from: "lens", "logit", "random" or "given".
    """

    data: xr.Dataset
    name: str
    action: str
    lens: str
    along: str

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"action": self.action, "model": self.name, "lens": self.lens, "along": self.along}
        facts |= {f"{name}s": size for name, size in self.data.sizes.items()}
        rho = float(np.asarray(self._rho(np.ones(len(self._prompts)))))
        return facts | {"spearman": rho}

    @cached_property
    def _sides(self) -> tuple[Float[np.ndarray, "prompt entry"], Float[np.ndarray, "prompt entry"]]:
        """Predicted and measured, one row a prompt."""
        first, second = (
            self.data[name].transpose("prompt", ...).values.reshape(self.data.sizes["prompt"], -1).astype(np.float64)
            for name in ("predicted", "measured")
        )
        return first, second

    @property
    def _prompts(self) -> np.ndarray:
        found: np.ndarray = self.data["document"].values
        return found

    @cached_property
    def _ranked(self) -> tuple[Ranking, Ranking]:
        first, second = (Ranking(side.ravel()) for side in self._sides)
        return first, second

    def _rho(self, times: Float[np.ndarray, " prompt"]) -> float:
        """ρ over all entries, those of each prompt counted so many times."""
        weights = np.repeat(times, self._sides[0].shape[1])
        return float(spearman(*self._ranked, weights=weights))

    def by_document(self) -> xr.DataArray:
        """Correlate inside each document: Spearman's ρ of predicted and measured over its own entries.

        Returns:
            ρ over `document`; NaN where it has fewer than three entries or all are equal.
        """
        names = list(dict.fromkeys(self._prompts.tolist()))
        rho = [float(spearman(*(side[self._prompts == name].ravel() for side in self._sides))) for name in names]
        said = {"long_name": "Spearman's ρ of predicted and measured changes, inside a document", "units": "1"}
        return xr.DataArray(rho, dims="document", coords={"document": names}, attrs=said)

    @public
    def spearman(self, *, inside: bool = False, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Interval:
        """Estimate Spearman's ρ of the predicted and measured changes, with an interval that resamples prompts.

        Windows of one document are resampled together.

        Args:
            inside: False: over all entries, of all prompts together. True: the mean over documents of ρ inside each.
            level: Nominal coverage.
            resamples: Number of resamples.
            seed: Seed of the resamples.

        Returns:
            The interval; its ends are NaN for one document.
        """
        options = {"resamples": resamples, "seed": seed}
        if inside:
            rho = self.by_document().values
            known = rho[np.isfinite(rho)]
            if not len(known):
                return Interval(np.nan, np.nan, np.nan, 0, "no document has three entries that differ", level)
            return bootstrap(lambda rows: float(known[rows].mean()), np.arange(len(known)), level=level, **options)
        count = len(self._prompts)

        def over_all(rows: np.ndarray) -> float:
            return self._rho(np.bincount(rows, minlength=count).astype(np.float64))

        return bootstrap(over_all, self._prompts, level=level, **options)

    def to_dataset(self) -> xr.Dataset:
        """Return the Dataset."""
        return self.data

    def table(self) -> pd.DataFrame:
        """Tabulate: one row for each layer, prompt, position (and direction) and token."""
        return self.data.to_dataframe().reset_index()

    @public
    def plot(self, *, title: str | None = None, ax: Axes | None = None, **page: Unpack[Page]) -> Picture:
        """Draw the measured changes against the predicted ones, with the line on which they are equal.

        Args:
            title: Title of the panel; by default the action and ρ.
            ax: Where to draw; by default on a new figure.
            **page: Width, height, font and its size of the new figure, see `probe.plots.Page`.

        Returns:
            The picture.
        """
        first, second = (side.ravel() for side in self._sides)
        ends = np.array([np.nanmin([first, second]), np.nanmax([first, second])])
        rho = self._rho(np.ones(len(self._prompts)))
        with drawing(ax, page, width=3.6, height=3.2) as picture:
            panel = picture.ax
            panel.plot(ends, ends, color=GREY, ls=":", lw=1)
            panel.plot(first, second, ls="", marker="o", ms=2.5, color=BLUE, alpha=0.5)
            panel.set(xlabel="change of the logit, predicted", ylabel="measured")
            panel.set_title(f"{self.action}: ρ = {rho:.2f}" if title is None else title, loc="left")
        return picture
