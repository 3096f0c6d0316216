"""The figures of a communities run show the planted values, and are left out where nothing was measured."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.text import Text

from probe import plots
from probe.analyses.communities import panels as communities_panels
from probe.analyses.communities.claims import Coupling, adjusted_p, pooled
from probe.analyses.communities.config import Config, Thresholds
from probe.analyses.communities.figures import control_table, figures
from probe.analyses.communities.interactive import TRACES, network
from probe.analyses.communities.panels.communities import (
    PERMUTED,
    drawn_links,
    gain_scale,
    node_gain,
)
from probe.analyses.communities.panels.partitions import AGREEMENTS, pooled_choices
from probe.analyses.communities.table import summarised
from probe.claims.evidence import Table
from probe.inference import fisher_mean
from probe.plots.networks import COMMUNITY_COLORS, REST, community_colors
from probe.plots.style import RED
from probe.report import Figure
from tests.plant.communities import CHOSEN, DOCUMENTS, WIDTH, dataset

LAYERS, FEW = 6, 8
NAMES = ["graphs", "coupling", "place-gain", "controls", "choices", "quality", "agreement", "flow", "amplification"]


@dataclass(frozen=True)
class Drawn:
    figure: Figure
    canvas: matplotlib.figure.Figure
    table: pd.DataFrame | None


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    made = dataset(layers=LAYERS, ablated=2, drawn=2)
    made["excess"][4] = 0.1
    made["community"][:, 2] = np.maximum(made["community"][:, 2] - 2, 0)  # communities of different sizes
    return made


@pytest.fixture(scope="module")
def summary(data: xr.Dataset) -> xr.Dataset:
    return summarised(data, Thresholds(), resamples=FEW)


@pytest.fixture(scope="module")
def drawn(data: xr.Dataset) -> dict[str, Drawn]:
    before = dict(matplotlib.rcParams)
    made = {}
    for figure in figures(data, Config(), resamples=FEW):
        with plots.page_style():
            canvas = figure.draw()
            canvas.draw_without_rendering()
        made[figure.name] = Drawn(figure, canvas, figure.table() if figure.table else None)
    assert dict(matplotlib.rcParams) == before, "drawing changed matplotlib's global settings"
    return made


@pytest.fixture(scope="module")
def controls(data: xr.Dataset) -> pd.DataFrame:
    return control_table(Table(data, Thresholds(), 0, FEW))


def curves(ax: Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()}


def marks(ax: Axes) -> dict[str, np.ndarray]:
    return {str(one.get_label()): np.asarray(one.get_offsets()) for one in ax.collections if one.get_label()}


def heat(ax: Axes) -> np.ndarray:
    return np.ma.filled(ax.images[0].get_array(), np.nan)


class TestSummary:
    def test_couplings_of_every_view(self, data: xr.Dataset, summary: xr.Dataset) -> None:
        every = np.ones(LAYERS, dtype=bool)
        for view in data["view"].values.tolist():
            expected = Coupling(data, view, every)(np.ones(data.sizes["query"]))
            np.testing.assert_allclose(summary["rho"].sel(view=view), expected)
        np.testing.assert_allclose(summary["adjusted_p"], adjusted_p(data))
        assert summary["stable"].values.tolist() == [True, True, True, True, False, True]
        low, high = summary["rho_bounds"].values
        assert (low < summary["rho"].sel(view="model")).all()
        assert (high > summary["rho"].sel(view="model")).all()

    def test_without_other_choices_none_agree(self, data: xr.Dataset) -> None:
        assert "agrees" not in summarised(data.drop_vars("grid_rho"), Thresholds(), resamples=FEW)


class TestGraph:
    def test_nodes_links_and_their_colours(self, data: xr.Dataset) -> None:
        ax = communities_panels.community_graph(data, 5)
        positive, negative, nodes = ax.collections
        links, weights = drawn_links(data, 5)
        assert len(links) == 2 * WIDTH  # without the padding
        assert (len(positive.get_segments()), len(negative.get_segments())) == (
            int((weights > 0).sum()),
            int((weights < 0).sum()),
        )
        place = data["place"].sel(drawn=5).values
        np.testing.assert_allclose(positive.get_segments()[0], place[links[weights > 0][0]])
        size = np.asarray(nodes.get_sizes())
        assert (np.diff(size) <= 0).all()  # the largest below the others
        order = np.argsort(-gain_scale(node_gain(data, 5)))
        np.testing.assert_allclose(nodes.get_offsets()[0], place[order[0]])
        assert matplotlib.colors.to_hex(negative.get_colors()[0]) == RED.lower()
        assert ax.get_title(loc="left") == "block 5: 8 communities"

    def test_the_gain_is_the_root_of_the_mean_square(self, data: xr.Dataset) -> None:
        square = data["square_gain"].sel(layer=1)
        np.testing.assert_allclose(node_gain(data, 1), np.sqrt(square.sel(view="model").mean("query")))
        first = square.sel(view="init-0").values[:, ::CHOSEN]
        np.testing.assert_allclose(node_gain(data, 1, "init-0"), np.sqrt(first.mean(axis=1)))

    def test_small_communities_and_lone_nodes_are_grey(self) -> None:
        colors = community_colors(np.array([0, 5, 6, -1, 0]))
        assert colors == [COMMUNITY_COLORS[0], COMMUNITY_COLORS[5], REST, REST, COMMUNITY_COLORS[0]]
        assert len(set(COMMUNITY_COLORS)) == len(COMMUNITY_COLORS)

    def test_a_scale_of_gains_that_outliers_do_not_stretch(self) -> None:
        gain = np.exp(np.linspace(0, 1, 101))
        gain[-1] = 1e6
        scale = gain_scale(gain)
        assert scale[50] == pytest.approx(0.5, abs=0.01)
        assert (scale.min(), scale.max()) == (0, 1)
        assert set(gain_scale(np.ones(5))) == {0.0}

    def test_scatter(self, data: xr.Dataset, summary: xr.Dataset) -> None:
        ax = communities_panels.place_against_gain(summary, 0)
        points = np.asarray(ax.collections[0].get_offsets())
        np.testing.assert_allclose(points[:, 0], data["participation"].sel(view="model", layer=0))
        np.testing.assert_allclose(points[:, 1], node_gain(data, 0))
        assert ax.get_yscale() == "log"
        rho = float(summary["rho"].sel(view="model", layer=0))
        low, high = np.quantile(data["permuted_rho"].sel(view="model", layer=0), [0.025, 0.975])
        assert ax.get_title(loc="left") == f"block 0: ρ = +{rho:.2f}\nnull −{-low:.2f} to +{high:.2f}"


class TestDepth:
    def test_coupling_and_its_controls(self, data: xr.Dataset, summary: xr.Dataset) -> None:
        ax = communities_panels.rho_by_depth(summary)
        shown = curves(ax)
        np.testing.assert_allclose(shown["the model"], summary["rho"].sel(view="model"))
        for label, kind in (("fresh initialisations", "init"), ("random bases", "basis")):
            names = [name for name in data["view"].values if name.startswith(kind)]
            np.testing.assert_allclose(shown[label], summary["rho"].sel(view=names).mean("view"))
        np.testing.assert_allclose(shown["K symmetrised"], summary["rho"].sel(view="symmetrised"))

    def test_bands(self, data: xr.Dataset, summary: xr.Dataset) -> None:
        ax = communities_panels.rho_by_depth(summary)
        bands = {str(one.get_label()): one for one in ax.collections}
        null = bands["permuted places, 95 %"].get_paths()[0].vertices[:, 1]
        expected = np.quantile(data["permuted_rho"].sel(view="model"), [0.025, 0.975], axis=1)
        assert (null.min(), null.max()) == pytest.approx((expected.min(), expected.max()))
        init = summary["rho"].sel(view=[f"init-{seed}" for seed in range(5)])
        reach = ax.collections[1].get_paths()[0].vertices[:, 1]
        assert (reach.min(), reach.max()) == pytest.approx((float(init.min()), float(init.max())))

    def test_marks(self, data: xr.Dataset, summary: xr.Dataset) -> None:
        found = marks(communities_panels.rho_by_depth(summary))
        ringed = found["significant (Benjamini–Hochberg)"]
        np.testing.assert_array_equal(ringed[:, 0], data["layer"].values[adjusted_p(data) < 0.05])
        crossed = found["no stable communities"]
        np.testing.assert_allclose(crossed, [[4, float(summary["rho"].sel(view="model", layer=4))]])

    def test_operator(self, data: xr.Dataset) -> None:
        shown = curves(communities_panels.operator_by_depth(data))
        for label, name in (("antisymmetric fraction", "antisymmetric_fraction"), ("rotation", "rotation_fraction")):
            values = next(values for shown_as, values in shown.items() if shown_as.startswith(label))
            np.testing.assert_allclose(values, data[name].median("query"))
        assert shown["antisymmetric, a random matrix"][0] == pytest.approx(0.5**0.5)


class TestPartitions:
    def test_agreement_within_layers(self, data: xr.Dataset) -> None:
        shown = curves(communities_panels.agreement_by_depth(data))
        for name in ("stability", "half_ami", "jacobian_ami"):
            np.testing.assert_allclose(shown[AGREEMENTS[name].label], data[name])
        np.testing.assert_allclose(shown[AGREEMENTS["null_stability"].label], data["null_stability"].mean("null_draw"))
        without = curves(communities_panels.agreement_by_depth(data.drop_vars("jacobian_ami").isel(resample=slice(0))))
        assert AGREEMENTS["jacobian_ami"].label not in without

    def test_agreement_between_layers(self, data: xr.Dataset) -> None:
        shown = heat(communities_panels.layer_agreement(data))
        expected = data["layer_ami"].values.copy()
        np.fill_diagonal(expected, np.nan)
        np.testing.assert_allclose(shown, expected)

    def test_blocks_keep_their_numbers(self, data: xr.Dataset) -> None:
        few = data.isel(layer=[0, 2, 5], other_layer=[0, 2, 5])
        ax = communities_panels.layer_agreement(few)
        assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "2", "5"]
        assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "2", "5"]

    def test_quality(self, data: xr.Dataset) -> None:
        ax = communities_panels.quality_by_depth(data)
        np.testing.assert_allclose(curves(ax)["the model"], data["run_quality"])
        np.testing.assert_allclose(curves(ax)["null graphs"], data["null_quality"].mean("null_draw"))
        assert len(ax.collections) == 2
        without = communities_panels.quality_by_depth(data.isel(resample=slice(0)))
        assert len(without.collections) == 1
        assert set(curves(without)) == {"the model", "null graphs"}

    def test_resolutions(self, data: xr.Dataset) -> None:
        single = data.assign(profile_communities=data["profile_communities"].copy())
        single["profile_communities"][1, 0] = 1
        single = single.assign(resolution=("layer", [0.0625, 1, 1, 1, 1, 8.0]))
        ax = communities_panels.resolution_profile(single)
        expected = (data["profile_stability"] - data["profile_null_stability"]).values.T.copy()
        expected[0, 1] = np.nan
        np.testing.assert_allclose(heat(ax), expected)
        np.testing.assert_array_equal(ax.collections[0].get_offsets()[:, 1], [0, 4, 4, 4, 4, 7])

    def test_flow_keeps_every_node(self, data: xr.Dataset) -> None:
        layers = [0, 2, 5]
        ax = communities_panels.community_flow(data, layers)
        labels = np.minimum(data["community"].sel(view="model", layer=layers).values, len(COMMUNITY_COLORS))
        bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
        bands = [patch for patch in ax.patches if isinstance(patch, PathPatch)]
        for place in range(len(layers)):
            heights = [bar.get_height() for bar in bars if abs(bar.get_x() + bar.get_width() / 2 - place) < 1e-9]
            np.testing.assert_array_equal(heights, np.bincount(labels[place])[np.bincount(labels[place]) > 0])
        widths = [band.get_path().vertices[8, 1] - band.get_path().vertices[0, 1] for band in bands]
        assert all(width == 0 for width in widths)  # closed
        heights = [band.get_path().vertices[7, 1] - band.get_path().vertices[0, 1] for band in bands]
        assert sum(heights) == pytest.approx(WIDTH * (len(layers) - 1))
        pairs = len(np.unique(labels[:2], axis=1).T) + len(np.unique(labels[1:], axis=1).T)
        assert len(bands) == pairs
        assert ax.get_ylim()[1] >= WIDTH

    def test_amplification(self, data: xr.Dataset) -> None:
        z = data["community_z"].sel(matrix="K", amplification="leak").transpose("largest", "layer")
        np.testing.assert_allclose(heat(communities_panels.amplification_map(data, "leak")), z[:8])
        state = communities_panels.amplification_map(data, "leak", "J")
        np.testing.assert_allclose(heat(state), data["community_z"].sel(matrix="J", amplification="leak").T[:8])

    def test_choices(self, data: xr.Dataset) -> None:
        changed = data.assign(grid_rho=data["grid_rho"].copy())
        at = {"half": "half_b", "edges": "partial", "neighbours": 60, "method": "spectral", "factor": 2.0}
        changed["grid_rho"].loc[at] = -changed["grid_rho"].loc[at]
        at |= {"method": "infomap"}
        changed["grid_rho"].loc[at] = np.nan
        ax = communities_panels.choice_map(summarised(changed, Thresholds(), resamples=FEW))
        crossed = {tuple(map(int, point)) for point in ax.collections[0].get_offsets()}
        assert crossed == {(8, 11), (11, 11)}
        shown = heat(ax)
        assert shown.shape == (12, 12)
        assert shown[11, 11] == 0
        first = changed["grid_rho"].isel(half=0, edges=1, neighbours=2, method=1, factor=0).values
        assert shown[5, 3] == pytest.approx(float(fisher_mean(first)))
        assert pooled_choices(changed).dims == ("half", "edges", "neighbours", "method", "factor")
        assert ax.get_yticklabels()[5].get_text() == "A, partial, 60"
        assert ax.get_xticklabels()[3].get_text() == "0.5γ"
        assert ax.get_ylim()[0] > ax.get_ylim()[1]


class TestControls:
    def test_a_row_for_every_control(self, data: xr.Dataset, controls: pd.DataFrame) -> None:
        table = Table(data, Thresholds(), 0, FEW)
        found = controls.set_index("view")
        rows = {
            "the model": ["model"],
            "fresh initialisations": [f"init-{seed}" for seed in range(5)],
            "K symmetrised": ["symmetrised"],
            "random orthogonal bases": ["basis-0", "basis-1"],
            "without outlier coordinates": ["no_outliers"],
        }
        assert set(found.index) == {*rows, PERMUTED}
        layers = np.arange(LAYERS) != 4
        for label, views in rows.items():
            expected = pooled(table, layers, views)
            assert found.loc[label, "number"] == len(views)
            for name in ("A", "√A", "mean ρ"):
                ends = found.loc[label, [name, f"{name}, low", f"{name}, high"]].tolist()
                assert ends == pytest.approx([expected[name].estimate, expected[name].low, expected[name].high])
        null = np.square(data["permuted_rho"].sel(view="model").values[layers]).mean(axis=0)
        assert found.loc[PERMUTED, "A"] == pytest.approx(np.quantile(null, 0.99) - null.mean())
        assert found.loc[PERMUTED, "√A"] == pytest.approx(found.loc[PERMUTED, "A"] ** 0.5)

    def test_the_picture_shows_them(self, controls: pd.DataFrame) -> None:
        ax = communities_panels.pooled_controls(controls)
        rows = controls[controls["view"] != PERMUTED].iloc[::-1]
        points = next(line for line in ax.get_lines() if line.get_marker() == "o")
        np.testing.assert_allclose(points.get_xdata(), rows["√A"])
        assert [label.get_text() for label in ax.get_yticklabels()] == rows["view"].tolist()
        null = next(line for line in ax.get_lines() if line.get_label() == PERMUTED)
        assert null.get_xdata()[0] == controls.set_index("view").loc[PERMUTED, "√A"]

    def test_controls_that_are_absent_have_no_row(self) -> None:
        table = Table(dataset(layers=LAYERS, nodes="mlp", seeds=0), Thresholds(), 0, FEW)
        assert control_table(table)["view"].tolist() == ["the model", PERMUTED, "without outlier coordinates"]


class TestInteractive:
    def test_every_drawn_layer_and_every_node(self, data: xr.Dataset, summary: xr.Dataset) -> None:
        chart = network(summary)
        assert len(chart.data) == TRACES * 2
        assert [trace.visible for trace in chart.data] == [True] * TRACES + [False] * TRACES
        steps = chart.layout.sliders[0].steps
        assert [step.label for step in steps] == ["0", "5"]
        assert steps[1].args[0]["visible"] == [False] * TRACES + [True] * TRACES
        rho = float(summary["rho"].sel(view="model", layer=5))
        assert steps[1].args[1]["title.text"] == f"block 5: 8 communities, coupling ρ = −{-rho:.2f}"
        nodes = chart.data[2 * TRACES - 1]
        np.testing.assert_allclose(np.column_stack([nodes.x, nodes.y]), data["place"].sel(drawn=5), atol=6e-4)
        assert list(nodes.marker.color) == community_colors(data["community"].sel(view="model", layer=5).values)

    def test_hovering_says_what_a_node_is_and_escapes_its_tokens(self, data: xr.Dataset, summary: xr.Dataset) -> None:
        labels = network(summary).data[TRACES - 1].customdata
        own = data.sel(view="model", layer=0)
        for node in (0, 7, WIDTH - 1):
            index, community, gain, participation, tokens = labels[node]
            assert (index, community) == (str(node), str(int(own["community"][node])))
            assert float(gain) == pytest.approx(node_gain(data, 0)[node], rel=5e-3)
            assert float(participation) == pytest.approx(float(own["participation"][node]), abs=5e-3)
            raw = dict.fromkeys(data["largest_token"].sel(drawn=0).values[node].tolist())
            escaped = {"<b>": "&lt;b&gt;", "&": "&amp;", "\n": "↵"}
            assert tokens == ", ".join(f"“{escaped.get(token, token)}”" for token in raw)
        everything = network(summary).to_json()
        assert "<b>\\u201d" not in everything

    def test_links_break_off_between_pairs(self, data: xr.Dataset, summary: xr.Dataset) -> None:
        links, weights = drawn_links(data, 0)
        for trace, chosen in zip(network(summary).data[:2], (weights > 0, weights < 0), strict=True):
            assert len(trace.x) == 3 * int(chosen.sum())
            assert set(trace.x[2::3]) == {None}
            np.testing.assert_allclose(trace.x[:2], data["place"].sel(drawn=0).values[links[chosen][0], 0], atol=6e-4)


class TestFigures:
    def test_all_are_there(self, drawn: dict[str, Drawn]) -> None:
        assert list(drawn) == NAMES
        assert [name for name, one in drawn.items() if one.figure.interactive] == ["graphs"]

    @pytest.mark.parametrize("name", NAMES)
    def test_text_is_legible_and_inside_the_page(self, drawn: dict[str, Drawn], name: str) -> None:
        canvas = drawn[name].canvas
        assert canvas.get_size_inches()[0] == 7
        texts = [text for text in canvas.findobj(Text) if text.get_text() and text.get_visible()]
        assert min(text.get_fontsize() for text in texts) >= 9
        for ax in canvas.axes:
            for title in (ax._left_title, ax.xaxis.label, ax.yaxis.label):
                extent = title.get_window_extent()
                assert not title.get_text() or not ax.axison or extent.x0 >= -1
                assert not title.get_text() or not ax.axison or extent.x1 <= canvas.bbox.x1 + 1

    @pytest.mark.parametrize("name", NAMES)
    def test_captions_say_what_was_measured_on_what(self, drawn: dict[str, Drawn], name: str) -> None:
        figure = drawn[name].figure
        parts = [f"planted-{LAYERS}x{WIDTH}", "planted text", f"{4 * WIDTH} tokens of {DOCUMENTS} documents", "null"]
        parts.append(f"{DOCUMENTS * CHOSEN} positions of {DOCUMENTS} others")
        for part in parts:
            assert part in figure.caption, part
        assert figure.alt

    def test_tables(self, data: xr.Dataset, drawn: dict[str, Drawn]) -> None:
        by_layer = drawn["coupling"].table
        assert by_layer is not None
        assert by_layer["block"].tolist() == list(range(LAYERS))
        assert by_layer["stable communities"].tolist() == ["yes"] * 4 + ["no", "yes"]
        assert by_layer["ρ"][0].startswith("0.7")
        choices = drawn["choices"].table
        assert choices is not None
        assert choices["choice"].tolist()[:3] == ["all choices", "half half_a", "half half_b"]
        assert set(choices["agrees with the default"]) == {"100%"}
        controls = drawn["controls"].table
        assert controls is not None
        assert controls.columns.tolist() == ["view", "number", "A", "√A", "mean ρ"]
        assert controls["mean ρ"][1] == "–"
        amplified = drawn["amplification"].table
        assert amplified is not None
        z = data["community_z"].sel(matrix="K", amplification="gain").values
        assert amplified["z > 2"][0] == f"{np.mean(z[np.isfinite(z)] > 2):.0%}"

    def test_a_measure_without_values_has_none_in_its_table(self, data: xr.Dataset) -> None:
        bare = data.copy(deep=True)
        bare["community_z"].loc[{"amplification": "gain"}] = np.nan
        table = next(
            figure.table for figure in figures(bare, Config(), resamples=FEW) if figure.name == "amplification"
        )
        assert table is not None
        assert table().set_index("of K").loc["gain", ["median z", "z > 2", "z < −2"]].tolist() == ["–", "–", "–"]

    def test_too_few_stable_layers_are_named(self, data: xr.Dataset) -> None:
        def caption(one: xr.Dataset) -> str:
            return next(figure.caption for figure in figures(one, Config()) if figure.name == "controls")

        assert "Over 5 layers with stable communities." in caption(data)
        few = data.assign(excess=data["excess"] - 1)
        assert "Over 6 layers: 0 of 6 layers have stable communities: 5 are needed" in caption(few)

    def test_neurons_without_other_choices_or_drawings(self) -> None:
        data = dataset(layers=3, nodes="mlp", seeds=0, ablated=0, drawn=0).drop_vars("jacobian_ami")
        data = data.isel(resample=slice(0))
        made = figures(data, Config(nodes="mlp"), resamples=FEW)
        left_out = ("graphs", "choices", "amplification")
        assert [figure.name for figure in made] == [name for name in NAMES if name not in left_out]
        assert f"graphs of {WIDTH} neurons" in made[0].caption
        with plots.page_style():
            for figure in made:
                figure.draw().draw_without_rendering()
                assert figure.table is None or len(figure.table())

    def test_one_layer(self) -> None:
        data = dataset(layers=1, ablated=1, drawn=1)
        made = figures(data, Config(), resamples=FEW)
        assert [figure.name for figure in made] == [name for name in NAMES if name != "flow"]
        with plots.page_style():
            for figure in made:
                figure.draw().draw_without_rendering()
