from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.text import Text
from scipy.stats import spearmanr

from probe import plots, spectra
from probe.analyses.causes import panels as causes_panels
from probe.analyses.dynamics import panels as dynamics_panels
from probe.analyses.dynamics.interactive import clouds
from probe.analyses.dynamics.panels.spectral import random_matrix
from probe.analyses.tokenwise import panels as tokenwise_panels
from probe.analyses.tokenwise.claims import Thresholds
from probe.analyses.tokenwise.config import Config
from probe.analyses.tokenwise.figures import MAX_POINTS, figures
from probe.analyses.tokenwise.interactive import scatter, scatter_fits, scatter_queries
from probe.analyses.tokenwise.panels.styles import FIT_STYLES, fits_present
from probe.plots.charts import block_slider, one_shown, rounded
from probe.plots.pages import new_grid
from probe.plots.style import (
    Style,
    geometric_mean,
    median_over_documents,
    middle_of,
    of_kind,
    positive_median,
    range_of,
    tick_text,
)
from probe.report import Figure
from tests.plant import causes, dynamics
from tests.plant.tokenwise import REPLACED, dataset

NEEDED = {
    "error": "relative_error",
    "alignment": "cos_update_fit",
    "projection": "share",
    "error-kl": "kl",
    "rho": "kl",
    "ratio": "kl_control",
    "output": "kl",
    "modes": "kl",
    "sweep": "sweep_error",
    "residual": "residual_attention_cosine",
    "regimes": "regime",
}


@dataclass(frozen=True)
class Drawn:
    figure: Figure
    canvas: matplotlib.figure.Figure


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probe.plots.style.RESAMPLES", 20)
        yield


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return dataset(n_layers=3, queries=90, documents=12)


@pytest.fixture(scope="module")
def drawn(data: xr.Dataset) -> list[Drawn]:
    before = dict(matplotlib.rcParams)
    made = []
    for figure in figures(data, Config()):
        with plots.page_style():
            canvas = figure.draw()
            canvas.draw_without_rendering()
        made.append(Drawn(figure, canvas))
    assert dict(matplotlib.rcParams) == before, "drawing changed matplotlib's global settings"
    return made


def curves(ax: Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()}


def by_hand(data: xr.Dataset, fit: str, against: np.ndarray | None = None) -> np.ndarray:
    """Spearman's ρ of error and KL (or another effect) by layer, by SciPy."""
    error = data["relative_error"].sel(map=fit, target="update").values
    effect = data["kl"].sel(map=fit).values if against is None else against
    return np.asarray([spearmanr(e, k).statistic for e, k in zip(error, effect, strict=True)])


def test_relative_error_draws_the_medians_on_a_log_axis(data: xr.Dataset) -> None:
    ax = tokenwise_panels.relative_error(data)
    shown = curves(ax)
    for fit in ("local", "linear", "mean"):
        expected = np.median(data["relative_error"].sel(map=fit, target="update").values, axis=-1)
        np.testing.assert_allclose(shown[FIT_STYLES[fit].label], expected)
    np.testing.assert_array_equal(shown[FIT_STYLES["zero"].label], 1.0)
    floor = next(values for label, values in shown.items() if label.startswith("floor"))
    np.testing.assert_allclose(floor, np.median(data["floor"].sel(map="local").values, axis=-1))
    assert ax.get_yscale() == "log"
    assert "‖r‖ / ‖u‖" in ax.get_ylabel()


def test_relative_error_to_the_next_state_is_another_quantity(data: xr.Dataset) -> None:
    ax = tokenwise_panels.relative_error(data, ["local"], target="state")
    expected = np.median(data["relative_error"].sel(map="local", target="state").values, axis=-1)
    np.testing.assert_allclose(curves(ax)["local low-rank"], expected)
    assert "‖u‖" not in ax.get_ylabel()


def test_intervals_hold_the_estimate_and_shrink_with_documents() -> None:
    few, many = (dataset(n_layers=2, queries=400, documents=n, seed=1) for n in (12, 200))
    widths = []
    for data in (few, many):
        found = median_over_documents(data, data["relative_error"].sel(map="local", target="update"))
        assert np.all(found.low <= found.estimate)
        assert np.all(found.estimate <= found.high)
        widths.append(np.mean(np.asarray(found.high) - np.asarray(found.low)))
    assert widths[1] < 0.7 * widths[0]


def test_rows_without_a_value_do_not_enter_the_median(data: xr.Dataset) -> None:
    values = data["kl_later"].sel(map="local")
    found = median_over_documents(data, values)
    np.testing.assert_allclose(found.estimate, np.nanmedian(values.values, axis=-1))


def test_alignment_draws_what_the_error_fixes(data: xr.Dataset) -> None:
    lines = tokenwise_panels.alignment(data).get_lines()
    error = data["relative_error"].sel(map="local", target="update").clip(max=1).values
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in lines]
    for expected in (np.sqrt(1 - error**2), error, np.zeros_like(error)):
        assert any(np.allclose(values, np.median(expected, axis=-1)) for values in drawn)
    angle = curves(tokenwise_panels.alignment(data, angle=True))["(u, û)"]
    cosine = data["cos_update_fit"].sel(map="local", target="update").values
    np.testing.assert_allclose(angle, np.median(np.degrees(np.arccos(cosine)), axis=-1))


@pytest.mark.parametrize("k", [1, 4, 8])
def test_projection_draws_the_random_line(data: xr.Dataset, k: int) -> None:
    shown = curves(tokenwise_panels.projection(data, k))
    np.testing.assert_array_equal(shown["random subspace, k/d"], k / 64)
    residual = data["share"].sel(map="local", centring="no_outliers", vector="residual", k=k).values
    np.testing.assert_allclose(shown["residual r"], np.median(residual, axis=-1))


def test_projection_without_a_width_has_no_random_line(data: xr.Dataset) -> None:
    bare = data.copy()
    del bare.attrs["d_model"]
    assert "random subspace, k/d" not in curves(tokenwise_panels.projection(bare))


def test_rho_is_spearmans_in_each_layer(data: xr.Dataset) -> None:
    shown = curves(tokenwise_panels.rho_by_layer(data, threshold=0.65))
    for fit in REPLACED:
        np.testing.assert_allclose(shown[FIT_STYLES[fit].label], by_hand(data, fit), atol=1e-12)
    np.testing.assert_array_equal(shown["threshold 0.65"], 0.65)
    assert FIT_STYLES["zero"].label not in shown


def test_controls_average_the_rho_of_their_draws_not_their_kl(data: xr.Dataset) -> None:
    shown = curves(tokenwise_panels.rho_controls(data))
    draws = data["kl_control"].sel(control="random").transpose("draw", "layer", "query").values
    each = np.mean([by_hand(data, "local", draw) for draw in draws], axis=0)
    np.testing.assert_allclose(shown["r′ in a random direction"], each, atol=1e-12)
    averaged = by_hand(data, "local", draws.mean(axis=0))
    assert np.all(averaged > each), "the planted noise must make the two ways differ"


def test_kl_ratio_recovers_a_planted_ratio(data: xr.Dataset) -> None:
    planted = data.copy()
    kl = data["kl"].sel(map="local", drop=True)
    planted["kl_control"] = (kl / 3).expand_dims(control=data["control"].values, draw=4)
    ax = tokenwise_panels.kl_ratio(planted)
    shown = curves(ax)
    np.testing.assert_allclose(shown["r′ from the residuals' covariance"], 3.0)
    np.testing.assert_array_equal(shown["no more than its size"], 1.0)
    assert ax.get_yscale() == "log"


def test_the_scatter_holds_every_token_and_says_its_rho(data: xr.Dataset) -> None:
    ax = tokenwise_panels.error_against_kl(data, layer=2)
    points = np.asarray(ax.collections[0].get_offsets())
    place = {"map": "local", "layer": 2}
    error = data["relative_error"].sel(place).sel(target="update").values
    np.testing.assert_allclose(points, np.stack([error, data["kl"].sel(place).values], axis=1))
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert f"ρ = {by_hand(data, 'local')[2]:.2f} [" in ax.get_title(loc="left")


def test_sweep_shows_held_out_and_in_sample(data: xr.Dataset) -> None:
    lines = tokenwise_panels.sweep(data, "rank").get_lines()
    solid, dashed = lines[0], lines[1]
    held_out = np.median(data["sweep_error"].sel(neighbours=32).values, axis=-1).mean(axis=-1)
    np.testing.assert_allclose(np.asarray(solid.get_ydata(), dtype=float), held_out)
    in_sample = data["sweep_error_in_sample"].sel(neighbours=32).values.mean(axis=-1)
    np.testing.assert_allclose(np.asarray(dashed.get_ydata(), dtype=float), in_sample)
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")


def test_regime_table_equals_a_count_by_hand(data: xr.Dataset) -> None:
    table = tokenwise_panels.regime_table(data, "regime", ["local"]).set_index(["regime", "measure"])
    error = data["relative_error"].sel(map="local", target="update").values
    kl, regime = data["kl"].sel(map="local").values, data["regime"].values
    for number, name in enumerate(("low", "middle", "high")):
        inside = regime == number
        assert table.loc[(name, "relative_error"), "estimate"] == pytest.approx(np.median(error[inside]))
        assert table.loc[(name, "kl"), "estimate"] == pytest.approx(np.median(kl[inside]))
        rho = [spearmanr(e[m], k[m]).statistic for e, k, m in zip(error, kl, inside, strict=True)]
        assert table.loc[(name, "rho"), "estimate"] == pytest.approx(np.tanh(np.mean(np.arctanh(rho))))
    assert (table["low"] <= table["estimate"]).all()
    assert (table["estimate"] <= table["high"]).all()


def test_regimes_by_layer_take_whole_layers(data: xr.Dataset) -> None:
    table = tokenwise_panels.regime_table(data, "regime_layer", ["local"]).set_index(["regime", "measure"])
    high = np.flatnonzero(data["regime_layer"].values == 2)
    error = data["relative_error"].sel(map="local", target="update").values[high]
    assert table.loc[("high", "relative_error"), "estimate"] == pytest.approx(np.median(error))
    expected = np.tanh(np.mean(np.arctanh(by_hand(data, "local")[high])))
    assert table.loc[("high", "rho"), "estimate"] == pytest.approx(expected)


def test_a_class_counts_as_present_only_where_it_has_values(data: xr.Dataset) -> None:
    assert set(fits_present(data, "kl")) == set(REPLACED)
    assert fits_present(data, "kl", ["local", "zero"]) == ["local"]
    assert fits_present(data, "absent") == []


def test_panels_fill_rows_and_the_last_may_end_early() -> None:
    figure, places = new_grid(5, 3, height=1.5)
    assert figure.axes == places
    assert len(places) == 5
    assert figure.get_size_inches().tolist() == [7, 3]
    assert len(new_grid(2, 3, height=1.5)[1]) == 2


def test_labels_stay_at_the_edge_of_the_page() -> None:
    def panel(ax: Axes) -> Axes:
        ax.set(xlabel="x", ylabel="y")
        return ax

    figure = plots.outer_labels(plots.panel_rows([plots.titled(str(place), panel) for place in range(5)], 3))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["0", "1", "2", "3", "4"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["y", "", "", "y", ""]
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "", "x", "x", "x"], "nothing lies below the third"


def test_one_legend_names_each_label_once(data: xr.Dataset) -> None:
    panels = [lambda ax: tokenwise_panels.kl_by_layer(data, ["local"], ax=ax)] * 2
    (legend,) = plots.panel_rows(panels, 2, legend=3).legends
    assert [text.get_text() for text in legend.get_texts()] == ["local low-rank"]
    assert not plots.panel_rows(panels, 2).legends


def test_intervals_of_draws() -> None:
    draws = np.arange(41.0)[:, None] * [1.0, 2.0]
    middle, reach = middle_of(draws), range_of(draws)
    np.testing.assert_allclose([middle.low, middle.estimate, middle.high], [[1, 2], [20, 40], [39, 78]])
    np.testing.assert_allclose([reach.low, reach.estimate, reach.high], [[0, 0], [20, 40], [40, 80]])
    assert middle.n_units == reach.n_units == 41


def test_geometric_means_and_medians_of_positive_values() -> None:
    values = xr.DataArray([[1.0, 4.0, 16.0], [1.0, np.nan, 4.0]], dims=("layer", "query"))
    np.testing.assert_allclose(geometric_mean(values, "query"), [4, 2])
    data = xr.Dataset(coords={"document": ("query", [0, 1, 2])})
    found = positive_median(data, values)
    np.testing.assert_allclose(found.estimate, [4, 2])
    assert np.all(np.asarray(found.low) > 0)


def test_the_null_of_a_score_is_what_a_random_matrix_has() -> None:
    width = 100
    drawn = torch.randn(20, width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for score in ("complex_fraction", "antisymmetric_fraction", "henrici_departure"):
        mean = float(getattr(spectra, score)(drawn).mean())
        assert random_matrix(score, width) == pytest.approx(mean, abs=0.02), score
    assert random_matrix("frobenius_norm", width) is None


def test_names_of_a_kind() -> None:
    names = xr.DataArray(["model", "init-0", "init-1", "initial", "basis-0"])
    assert of_kind(names, "init") == ["init-0", "init-1"]
    assert of_kind(names, "model") == ["model"]
    assert of_kind(names, "shuffled") == []


def test_a_panels_own_legend_names_its_dotted_lines() -> None:
    def named(ax: Axes) -> list[str]:
        legend = ax.get_legend()
        assert legend is not None
        return [text.get_text() for text in legend.get_texts()]

    assert "10 %" in named(dynamics_panels.perturbation(dynamics.dataset(seeds=1, documents=3)))
    trained = causes.dataset(seeds=2)
    cell = {str(trained["cell"].values[0]): Style("a cell", "#000000")}
    learned = causes_panels.learning(trained, cell)
    assert named(learned) == ["a cell", "a constant guess"]
    coherence = causes_panels.through_training(trained, "gradient_coherence", cell, space="output")
    assert named(coherence) == ["a cell", "unrelated gradients"]
    assert coherence.get_ylabel() == "gradient coherence"


def test_numbers_of_charts_break_off_where_there_is_no_value() -> None:
    assert rounded(np.array([1.23456, np.nan, -0.000123456, np.inf])) == [1.235, None, -0.0001235, None]


def test_a_slider_shows_one_of_the_blocks() -> None:
    (slider,) = block_slider([3, 7], [(one_shown(place, 2, 2), {"title.text": f"block {place}"}) for place in range(2)])
    assert [step["label"] for step in slider["steps"]] == ["3", "7"]
    assert slider["steps"][1]["args"] == [{"visible": [False, False, True, True]}, {"title.text": "block 1"}]


def test_each_block_of_the_eigenvalues_chart_has_a_range_of_its_own() -> None:
    data = dynamics.dataset(seeds=1, documents=3)
    far = xr.where(data["layer"] == data["layer"][0], 10.0, 1.0)
    data = data.assign({name: data[name] * far for name in ("eigenvalue_real", "eigenvalue_imaginary")})
    spec = clouds(data).to_plotly_json()["layout"]
    changes = [step["args"][1] for step in spec["sliders"][0]["steps"]]
    for layer, change in zip(data["layer"].values, changes, strict=True):
        parts = [data[f"eigenvalue_{part}"].sel(layer=layer).values for part in ("real", "imaginary")]
        assert np.mean(np.abs(parts) <= change["xaxis.range"][1]) >= 0.99
        assert change["xaxis.range"] == change["yaxis.range"]
        assert change["xaxis.range"][1] < 1.1 * np.abs(parts).max()
    assert changes[0]["xaxis.range"][1] > 3 * changes[1]["xaxis.range"][1]
    assert list(spec["xaxis"]["range"]) == changes[0]["xaxis.range"]


def test_a_panel_draws_on_the_axes_it_is_given(data: xr.Dataset) -> None:
    figure, axes = plots.new_figure(1, 2)
    assert tokenwise_panels.kl_by_layer(data, ax=axes[0, 1]) is axes[0, 1]
    assert not axes[0, 0].get_lines()
    assert axes[0, 1].get_legend() is None
    assert tokenwise_panels.kl_by_layer(data).get_legend() is not None
    assert figure.get_size_inches()[0] == 7


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.5"), (20.0, "20"), (0.001, "0.001"), (2e-5, "2·10⁻⁵")])
def test_ticks_are_plain_numbers(value: float, text: str) -> None:
    assert tick_text(value) == text


def test_no_two_classes_look_alike() -> None:
    looks = {(style.color, style.marker, style.line) for style in FIT_STYLES.values()}
    assert len(looks) == len(FIT_STYLES)
    assert len({(style.marker, style.line) for style in FIT_STYLES.values()}) == len(FIT_STYLES), "without colour too"


def test_all_figures_are_there(drawn: list[Drawn]) -> None:
    assert [one.figure.name for one in drawn] == list(NEEDED)


def test_text_is_legible_and_inside_the_page(drawn: list[Drawn]) -> None:
    for one in drawn:
        box = one.canvas.bbox
        assert one.canvas.get_size_inches()[0] == 7
        for text in one.canvas.findobj(Text):
            if not (text.get_text() and text.get_visible()):
                continue
            assert text.get_fontsize() >= 9, (one.figure.name, text)
        for ax in one.canvas.axes:
            for title in (ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label):
                extent = title.get_window_extent()
                if title.get_text() and ax.axison:
                    assert extent.x0 >= box.x0 - 1, (one.figure.name, title)
                    assert extent.x1 <= box.x1 + 1, (one.figure.name, title)


def test_panels_name_their_axes(drawn: list[Drawn]) -> None:
    for one in drawn:
        visible = [ax for ax in one.canvas.axes if ax.axison]
        assert any(ax.get_ylabel() for ax in visible), one.figure.name
        assert all(ax.get_ylabel() or ax.get_title(loc="left") or one.figure.name == "regimes" for ax in visible)


def test_captions_say_what_was_measured_on_what(data: xr.Dataset, drawn: list[Drawn]) -> None:
    for one in drawn:
        caption = one.figure.caption
        for part in ("planted-6x64", "planted text", "12 documents", "90 tokens", "6,000 tokens", "null"):
            assert part in caption or (part == "null" and "random direction" in caption), (one.figure.name, part)
        assert one.figure.alt


def test_the_caption_names_maps_that_had_not_settled(drawn: list[Drawn]) -> None:
    caption = next(one.figure.caption for one in drawn if one.figure.name == "error")
    assert "MLP, random start at blocks 1" in caption


@pytest.mark.parametrize("variable", sorted({*NEEDED.values(), "cos_permuted", "floor", "d_model", "instability"}))
def test_figures_without_their_variable_are_left_out(data: xr.Dataset, variable: str) -> None:
    part = data.drop_vars(variable, errors="ignore")
    names = {figure.name for figure in figures(part, Config())}
    gone = {name for name, needed in NEEDED.items() if needed == variable}
    gone |= {"ratio"} if variable == "kl" else set()
    gone |= {"alignment", "error-kl", "rho", "regimes"} if variable == "relative_error" else set()
    gone -= {"regimes"} if variable == "regime" else set()  # blocks remain
    assert names == set(NEEDED) - gone


def test_what_remains_can_be_drawn_without_the_optional_variables() -> None:
    optional = (
        *("floor", "cos_permuted", "share_of_update", "kl_control", "top1", "kl_later", "instability", "mlp_flat"),
        *("sweep_error_in_sample", "residual_offposition_cosine", "residual_offposition_share", "explained_variance"),
        *("regime", "frequency"),
    )
    data = dataset(n_layers=1, queries=60, documents=12, fits=("linear", "local"), drop=optional)
    with plots.page_style():
        for figure in figures(data, Config()):
            figure.draw().draw_without_rendering()


def test_the_threshold_line_follows_the_configuration(data: xr.Dataset) -> None:
    config = Config(thresholds=Thresholds(threshold_error_predicts_output=0.55))
    rho = next(figure for figure in figures(data, config) if figure.name == "rho")
    labels = [line.get_label() for ax in rho.draw().axes for line in ax.get_lines()]
    assert labels.count("threshold 0.55") == 2


def test_the_interactive_chart_holds_all_layers_and_escaped_tokens() -> None:
    data = dataset(n_layers=3, queries=40, tokens=["<b>", "&", "\n"], titles=["<i>"])
    chart = scatter(data, MAX_POINTS)
    assert [trace.name for trace in chart.data] == [FIT_STYLES[fit].label for fit in scatter_fits(data)]
    assert [step.label for step in chart.layout.sliders[0].steps] == ["0", "1", "2"]
    local = [trace.name for trace in chart.data].index("local low-rank")
    step = chart.layout.sliders[0].steps[2].args[0]
    expected = data["relative_error"].sel(map="local", layer=2, target="update").values
    np.testing.assert_allclose(step["x"][local], expected, rtol=1e-3)
    assert [label[0] for label in chart.data[local].customdata[:3]] == ["&lt;b&gt;", "&amp;", "↵"]
    assert {label[2] for label in chart.data[local].customdata} == {"&lt;i&gt;"}


def test_a_large_run_is_thinned_and_the_caption_says_so() -> None:
    data = dataset(n_layers=30, queries=2048, documents=62, fits=("zero", "mean", "linear", "local", "mlp_random"))
    rows = scatter_queries(data, 60_000)
    assert len(rows) == 60_000 // (30 * 3)
    assert len(set(rows.tolist())) == len(rows)
    assert len(scatter(data, MAX_POINTS).to_json()) < 4.5e6
    assert len(scatter_queries(data, MAX_POINTS)) == 2048


def test_a_thinned_chart_is_named_in_its_caption(data: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probe.analyses.tokenwise.figures.MAX_POINTS", 90)
    caption = next(figure.caption for figure in figures(data, Config()) if figure.name == "error-kl")
    assert "10 of the 90 tokens" in caption
