"""Phrases that the captions of several analyses share."""

from __future__ import annotations

import numpy as np
import xarray as xr


def model(data: xr.Dataset) -> str:
    """Name the model in a caption.

    Args:
        data: A run's Dataset with the attributes `model` and `description`.

    Returns:
        For example "pythia-70m (6 blocks, trained on the Pile)".
    """
    described = data.attrs.get("description")
    return f"{data.attrs.get('model', 'model')}" + (f" ({described})" if described else "")


def model_on_text(data: xr.Dataset) -> str:
    """Name the model and its text in a caption.

    Args:
        data: A run's Dataset with the attributes `model`, `description` and `text`.

    Returns:
        "MODEL on TEXT".
    """
    return f"{model(data)} on {data.attrs.get('text', 'text')}"


def documents(data: xr.Dataset) -> int:
    """Count the documents of the scored tokens.

    Args:
        data: A run's Dataset with the coordinate `document` over `query`.

    Returns:
        Their number.
    """
    return len(np.unique(data["document"].values))
