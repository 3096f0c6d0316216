"""The public face of the plots: it loads on use, so that an author's file with figures in it stays quick."""

from __future__ import annotations

import subprocess
import sys

import pytest

from probe import plots


def test_importing_the_plots_draws_nothing_in():
    code = "import sys, probe.plots; sys.exit(bool({'matplotlib', 'xarray', 'plotly', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_loads_and_an_old_one_warns():
    assert all(callable(getattr(plots, name)) for name in plots.__all__)
    with pytest.warns(DeprecationWarning, match=r"use probe\.plots\.canvas\.NOTEBOOK_DPI$"):
        assert plots.NOTEBOOK_DPI == plots.canvas.NOTEBOOK_DPI
