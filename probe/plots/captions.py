"""What the captions of several analyses say in the same words."""

from __future__ import annotations

import numpy as np
import xarray as xr


def model(data: xr.Dataset) -> str:
    """The model, as every caption names it.

    Args:
        data: A run's Dataset with the attributes `model` and `description`.

    Returns:
        For example "pythia-70m (6 blocks, trained on the Pile)".
    """
    described = data.attrs.get("description")
    return f"{data.attrs.get('model', 'model')}" + (f" ({described})" if described else "")


def model_on_text(data: xr.Dataset) -> str:
    """The model and what it read.

    Args:
        data: A run's Dataset with the attributes `model`, `description` and `text`.

    Returns:
        "MODEL on TEXT".
    """
    return f"{model(data)} on {data.attrs.get('text', 'text')}"


def documents(data: xr.Dataset) -> int:
    """From how many documents the scored tokens come.

    Args:
        data: A run's Dataset with the coordinate `document` over `query`.

    Returns:
        Their number.
    """
    return len(np.unique(data["document"].values))
