"""What the figures show of a communities run that its Dataset does not hold yet: couplings, and which layers count."""

from __future__ import annotations

import numpy as np
import xarray as xr
from jaxtyping import Int

from probe.analyses.communities.table import Coupling, adjusted_p, agreement, stable_layers
from probe.analyses.communities.thresholds import Thresholds
from probe.inference import bootstrap
from probe.plots import style


def summarised(data: xr.Dataset, thresholds: Thresholds) -> xr.Dataset:
    """The Dataset with the coupling of every view and layer, and what the claims make of it.

    Args:
        data: the Dataset of the analysis.
        thresholds: of the claims.

    Returns:
        The Dataset with `rho` (view, layer); `rho_bounds` (bound, layer) of the model, documents resampled;
        `adjusted_p` and `stable` (layer,); and, of a run with other choices, `agrees` over them.

    Cost: seconds for 30 layers of 576 units.
    """
    every = np.ones(data.sizes["layer"], dtype=bool)
    ones = np.ones(data.sizes["query"])
    views = data["view"].values.tolist()
    rho = np.stack([Coupling(data, view, every)(ones) for view in views])
    own = Coupling(data, "model", every)

    def resampled(index: Int[np.ndarray, " row"]) -> style.Floats:
        return own(np.bincount(index, minlength=len(ones)).astype(np.float64))

    interval = bootstrap(resampled, np.asarray(data["document"].values), resamples=style.RESAMPLES, seed=0)
    found = data.assign(
        rho=(("view", "layer"), rho),
        rho_bounds=(("bound", "layer"), np.stack([np.asarray(interval.low), np.asarray(interval.high)])),
        adjusted_p=("layer", adjusted_p(data)),
        stable=("layer", stable_layers(data, thresholds.threshold_excess)),
    )
    return found.assign(agrees=agreement(data)) if "grid_rho" in data else found
