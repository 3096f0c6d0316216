"""What type checkers see of the public names, which load on use; `mypy` reads this file, and no test runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    import probe
    from probe.analyses.tokenwise.config import Config
    from probe.graphs import Communities, Graph, NullComparison
    from probe.plots import Picture
    from probe.report import Result
    from probe.spectra.decomposition import Spectrum

    def sees(states: Tensor, model: probe.LanguageModel, graph: Graph) -> None:
        """Hold what is seen."""
        spectrum = assert_type(probe.spectra.decompose(states), Spectrum)
        assert_type(spectrum.plot(), Picture)
        assert_type(probe.plots.heat_map(states, width=3.3), Picture)
        assert_type(probe.graphs.compare_with_null(graph, probe.graphs.communities(graph)), NullComparison)
        assert_type(probe.graphs.communities(states), Communities)
        assert_type(probe.weights.continuity(model), xr.Dataset)
        assert_type(probe.maps.LinearMap().fit(states, states), probe.maps.LinearMap)
        assert_type(probe.jacobian.mean_jacobian(model, states, None, [0]), probe.jacobian.MeanJacobian)
        assert_type(probe.inference.seed_interval(states.numpy()), probe.inference.Interval)
        assert_type(probe.training.Shape, type[probe.training.Shape])
        assert_type(probe.analyses.tokenwise.run(Config(model="bundled/transformer")), Result)
        assert_type(probe.analyses.dynamics.analysis.name, str)
        probe.spectr  # type: ignore[attr-defined]  # noqa: B018  (a slip is one to type checkers, too)
