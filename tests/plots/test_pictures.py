"""Pictures of the library's own objects: what is drawn is what the numbers say."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from probe import graphs, plots, spectra, weights
from probe.errors import InputError
from probe.graphs import NullComparison
from probe.inference import Interval, bootstrap
from probe.jacobian import MeanJacobian
from probe.maps import LinearMap
from probe.plots.canvas import Picture
from probe.plots.networks import COMMUNITY_COLORS, REST
from probe.plots.style import BLUE, RED, RESAMPLES
from probe.plots.values import UNDRAWABLE, array_of, drawable
from probe.spectra.resolvent import Pseudospectrum
from tests.plant.tiny import tiny_model

GENERATOR = torch.Generator().manual_seed(0)
MATRICES = torch.randn(3, 8, 8, generator=GENERATOR, dtype=torch.float64)


def offsets(picture: Picture, number: int = 0) -> np.ndarray:
    return np.asarray(picture.ax.collections[number].get_offsets())


def settled(picture: Picture) -> Picture:
    """Drawn: no warning, and nothing reaches beyond the figure."""
    picture.figure.draw_without_rendering()
    box, (width, height) = picture.figure.get_tightbbox(), picture.figure.get_size_inches()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.03, (box, width, height)  # inches
    return picture


def test_eigenvalues_lie_in_the_plane_beside_the_unit_circle() -> None:
    spectrum = spectra.decompose(MATRICES)
    picture = settled(spectrum.plot(title="J"))
    known = np.linalg.eigvals(MATRICES.numpy()).ravel()
    drawn = offsets(picture)
    np.testing.assert_allclose(np.sort_complex(drawn[:, 0] + 1j * drawn[:, 1]), np.sort_complex(known), atol=1e-9)
    (circle,) = picture.ax.patches
    assert (circle.center, circle.radius) == ((0, 0), 1)
    assert spectrum.update.plot().ax.patches[0].center == (-1, 0)
    assert picture.ax.get_aspect() == 1
    assert not plots.eigenvalues(spectrum, circle=None).ax.patches


def test_matrices_of_a_batch_have_colours_by_number() -> None:
    values = np.array([[0.1, 0.2], [3, 4j], [5, 6]])
    picture = settled(plots.eigenvalues(values, by=[0, 5, 10], by_label="depth"))
    colors = [one.get_facecolor()[0] for one in picture.ax.collections]
    viridis = [to_hex(color) for color in ("#440154", "#21918c", "#fde725")]
    assert [to_hex(color) for color in colors] == viridis
    assert picture.figure.axes[1].get_ylabel() == "depth"
    np.testing.assert_array_equal(offsets(picture, 1), [[3, 0], [0, 4]])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: plots.cosine_maps(xr.Dataset(), side="left"), "got 'left'"),
        (lambda: plots.eigenvalues(MATRICES), r"pass probe\.spectra\.decompose"),
        (lambda: plots.eigenvalues("words"), "of= must be .*got 'words'"),
        (lambda: plots.eigenvalues([[1.0], [2.0]], by=[1.0]), "a number for each of 2 rows of eigenvalues, got 1"),
        (lambda: plots.singular_values([1j]), "must be real"),
        (lambda: spectra.decompose(MATRICES).plot("pseudospectrum"), "of one matrix, got 3"),
        (lambda: spectra.decompose(MATRICES).plot("poles"), "got 'poles'"),
        (
            lambda: plots.pseudospectrum(spectra.pseudospectrum(MATRICES, torch.zeros(2, 2))),
            "complex|sigma_min of shape",
        ),
        (lambda: plots.heat_map(MATRICES), r"must have 2 axes, got .*\(3, 8, 8\)"),
        (lambda: plots.heat_map(MATRICES[0] + 1j), "must be real"),
        (lambda: plots.heat_map([[np.nan]]), "finite entries, got none"),
        (lambda: plots.heat_map(MATRICES[0], clip=0), "clip must lie in"),
        (lambda: plots.heat_map(MATRICES[0], rows=["a"]), "label each of 8, got 1"),
        (lambda: plots.jacobian(MATRICES[0, :4]), "square, got shape"),
        (lambda: plots.token_layer_map(MATRICES[0], text=[["a"] * 8]), "for each of 8 layers, got 1"),
        (lambda: plots.by_depth({}), "empty dictionary"),
        (lambda: plots.by_depth([1.0, 2.0], documents=[0, 1]), "documents belong to samples"),
        (lambda: plots.by_depth(MATRICES[0], documents=[0, 1]), "for each of 8 samples"),
        (lambda: plots.by_depth([1.0, 2.0], layers=[0]), "layers must name each of 2, got 1"),
        (lambda: plots.continuity(xr.Dataset({"kl": 0})), "pass that of probe.weights.continuity"),
        (lambda: LinearMap().plot(), "must be fitted"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(wrong, said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of types
    with pytest.raises(InputError, match=said) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_singular_values_by_rank() -> None:
    picture = settled(spectra.decompose(MATRICES).plot("singular_values"))
    known = np.linalg.svd(MATRICES.numpy(), compute_uv=False)
    curves = [np.asarray(line.get_ydata()) for line in picture.ax.get_lines()]
    np.testing.assert_allclose(curves[:3], known)
    np.testing.assert_allclose(curves[3], np.median(known, axis=0))
    assert list(curves[4]) == [1, 1]
    assert picture.ax.get_yscale() == "log"
    one = plots.singular_values([3.0, 2.0, 0.0])
    np.testing.assert_array_equal(one.ax.get_lines()[0].get_ydata(), [3, 2, np.nan])


def test_cumulative_spectra_are_coloured_by_depth() -> None:
    found = spectra.cumulative_spectra(torch.diag(torch.tensor([2.0, 1.0])).expand(2, 4, 2, 2))
    picture = settled(found.plot())
    drawn = [np.asarray(line.get_ydata()) for line in picture.ax.get_lines()[:4]]
    np.testing.assert_allclose(drawn, [[1, 0.5], [1, 0.25], [1, 0.125], [1, 0.0625]])
    assert len({to_hex(line.get_color()) for line in picture.ax.get_lines()[:4]}) == 4


def test_level_lines_of_a_normal_matrix_are_circles() -> None:
    grid = np.linspace(-2, 2, 81)[None] + 1j * np.linspace(0, 2, 41)[:, None]
    sigma = np.abs(grid)  # of the zero matrix
    found = Pseudospectrum(torch.from_numpy(grid), torch.from_numpy(sigma), torch.zeros(sigma.shape))
    picture = settled(found.plot(eigenvalues=[0.0]))
    contour = next(one for one in picture.ax.collections if hasattr(one, "levels"))
    for level, path in zip(contour.levels, contour.get_paths(), strict=True):
        if len(path.vertices) and 0.2 < level < 1.9:
            np.testing.assert_allclose(np.hypot(*path.vertices.T), level, atol=0.02)
            assert path.vertices[:, 1].min() == pytest.approx(-path.vertices[:, 1].max(), abs=0.05)
    drawn = spectra.decompose(MATRICES[0]).plot("pseudospectrum")
    assert len(drawn.ax.collections[1].get_offsets()) == 8


def test_a_heat_map_is_symmetric_where_there_are_both_signs() -> None:
    both = settled(plots.heat_map([[1.0, -3.0], [np.nan, 0.0]], rows=["a", "b"], label="w"))
    (image,) = both.ax.get_images()
    assert image.get_clim() == (-3, 3)
    assert image.get_cmap().name == "RdBu_r"
    assert image.get_array().mask.tolist() == [[False, False], [True, False]]
    assert [tick.get_text() for tick in both.ax.get_yticklabels()] == ["a", "b"]
    assert both.ax.get_ylim()[0] > both.ax.get_ylim()[1]  # the first row on top
    (positive,) = plots.heat_map([[1, 2], [3, 4]]).ax.get_images()
    assert (positive.get_clim(), positive.get_cmap().name) == ((1, 4), "viridis")
    assert plots.heat_map([[1, 2]], symmetric=True).ax.get_images()[0].get_clim() == (-2, 2)
    constant = settled(plots.heat_map(np.zeros((2, 2))))
    assert constant.ax.get_images()[0].get_clim() == (0, 1)


def test_outliers_are_cut_and_the_scale_says_so() -> None:
    values = np.linspace(-1, 1, 1000).reshape(20, 50)
    values[0, 0] = 1000
    picture = settled(plots.heat_map(values, clip=0.99))
    assert picture.ax.get_images()[0].get_clim()[1] == pytest.approx(0.99, abs=0.02)
    assert picture.ax.get_images()[0].colorbar.extend == "both"
    assert plots.heat_map(values).ax.get_images()[0].colorbar.extend == "neither"


def test_a_jacobian_shows_its_update_and_the_norms_of_its_coordinates() -> None:
    J = torch.eye(6) + torch.diag(torch.arange(6.0), 0)
    J[0, 5] = 12
    picture = settled(plots.jacobian(J))
    K = (J - torch.eye(6)).numpy()
    np.testing.assert_allclose(picture.ax.get_images()[0].get_array(), K)
    columns, rows = (np.asarray(line.get_ydata()) for line in picture.axes[1].get_lines())
    np.testing.assert_allclose(columns, [13, 4, 3, 2, 1, 0])
    np.testing.assert_allclose(rows, [12, 5, 4, 3, 2, 1])
    whole = plots.jacobian(J, of="state")
    np.testing.assert_allclose(whole.ax.get_images()[0].get_array(), J.numpy())


def test_tokens_are_drawn_as_they_are(recwarn: pytest.WarningsRecorder) -> None:
    tokens = [" the", "$x^2$", "a\nb", "\u200b", "中", "<b>"]
    values = np.arange(12.0).reshape(2, 6)
    text = [[f"t{number}" for number in range(6)], ["a very long token", *"$%&_^"]]
    picture = settled(plots.token_layer_map(values, tokens=tokens, layers=["embed", 1], text=text, label="KL"))
    shown = [tick.get_text() for tick in picture.ax.get_xticklabels()]
    assert shown == ["␣the", "$x^2$", "a↵b", "\\u200b", UNDRAWABLE, "<b>"]
    assert [tick.get_text() for tick in picture.ax.get_yticklabels()] == ["embed", "1"]
    assert picture.ax.get_ylim() == (-0.5, 1.5)  # the first layer at the bottom
    cells = {text.get_text(): text for text in picture.ax.texts}
    assert len(picture.ax.texts) == 12
    assert "a very lo…" in cells
    assert cells["$"].get_position() == (1, 1)
    assert not any(text.get_parse_math() for text in picture.ax.texts)
    assert (cells["t0"].get_color(), cells["^"].get_color()) == ("white", "black")  # on dark, on light
    assert not recwarn


def test_cells_texts_fit_their_cells() -> None:
    text = [["neighbours"] * 12] * 4
    sizes = []
    for width in (8, 11, 20):
        picture = plots.token_layer_map(np.ones((4, 12)), text=text, width=width)
        picture.figure.draw_without_rendering()
        cell = picture.ax.get_window_extent().width / 12
        assert picture.ax.texts[0].get_window_extent().width < cell
        sizes.append(picture.ax.texts[0].get_fontsize())
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == 8


def test_more_tokens_than_there_is_room_for_are_numbered_in_steps() -> None:
    picture = settled(plots.token_layer_map(np.ones((3, 300)), tokens=[f"t{n}" for n in range(300)]))
    shown = [tick.get_text() for tick in picture.ax.get_xticklabels()]
    assert 10 < len(shown) < 100
    assert shown[0] == "t0"
    assert shown[1] == f"t{int(picture.ax.get_xticks()[1])}"


def test_curves_along_depth_are_medians_in_their_bands() -> None:
    samples = np.random.default_rng(0).normal(size=(40, 5)) + np.arange(5)
    samples[0, 0] = np.nan
    picture = settled(plots.by_depth({"a": samples, "b": np.arange(5.0)}, layers=[2, 4, 6, 8, 10], null=0.5, label="y"))
    first, second, null = picture.ax.get_lines()
    np.testing.assert_allclose(first.get_ydata(), np.nanmedian(samples, axis=0))
    assert list(first.get_xdata()) == [2, 4, 6, 8, 10]
    assert (first.get_color(), second.get_color()) != (second.get_color(), first.get_color())
    assert list(null.get_ydata()) == [0.5, 0.5]
    corners = picture.ax.collections[0].get_paths()[0].vertices
    low, high = np.nanquantile(samples, [0.25, 0.75], axis=0)
    for x, bottom, top in zip([2, 4, 6, 8, 10], low, high, strict=True):
        at = corners[corners[:, 0] == x][:, 1]
        assert (at.min(), at.max()) == (pytest.approx(bottom), pytest.approx(top))
    assert [text.get_text() for text in picture.figure.legends[0].get_texts()] == ["a", "b", "null"]


def test_documents_give_the_interval_of_the_median() -> None:
    samples = np.random.default_rng(0).normal(size=(48, 3))
    documents = np.repeat(np.arange(12), 4)
    known = bootstrap(lambda rows: np.median(samples[rows], axis=0), documents, resamples=RESAMPLES, seed=0)
    picture = settled(plots.by_depth(torch.from_numpy(samples), documents=documents))
    corners = picture.ax.collections[1].get_paths()[0].vertices
    for x, low, high in zip(range(3), np.asarray(known.low), np.asarray(known.high), strict=True):
        at = corners[corners[:, 0] == x][:, 1]
        assert (at.min(), at.max()) == (pytest.approx(low), pytest.approx(high))
    interval = Interval(np.ones(2), np.zeros(2), np.full(2, 3.0), 5, "planted")
    ends = plots.by_depth(interval).ax.collections[0].get_paths()[0].vertices
    assert (ends[:, 1].min(), ends[:, 1].max()) == (0, 3)


@pytest.fixture(scope="module")
def graph() -> graphs.Graph:
    """Two cliques of four, one negative link between them, and a node alone."""
    matrix = np.zeros((9, 9))
    matrix[:4, :4] = matrix[4:8, 4:8] = 1
    matrix[0, 4] = matrix[4, 0] = -0.1
    return graphs.from_matrix(matrix)


def test_a_graph_is_coloured_by_community_and_its_links_by_sign(graph: graphs.Graph) -> None:
    found = graphs.communities(graph)
    picture = settled(graph.plot(found, size=np.arange(9), names=list("abcdefgh$")))
    lines = [one for one in picture.ax.collections if isinstance(one, LineCollection)]
    assert [len(one.get_segments()) for one in lines] == [12, 1]
    assert to_hex(lines[1].get_color()[0]) == RED.lower()
    nodes = picture.ax.collections[2]
    place = graph.layout(found.labels)
    order = np.argsort(-np.arange(9))
    np.testing.assert_allclose(nodes.get_offsets(), place[order])
    expected = [(*COMMUNITY_COLORS, REST)[label] for label in found.labels[order]]
    assert [to_hex(color) for color in nodes.get_facecolors()] == [color.lower() for color in expected]
    assert (np.diff(nodes.get_sizes()) < 0).all()
    assert [text.get_text() for text in picture.ax.texts] == list("abcdefgh$")
    assert picture.ax.get_title(loc="left") == "9 nodes, 13 links, 2 communities"


def test_a_graph_without_communities_and_with_few_links(graph: graphs.Graph) -> None:
    places = np.stack([np.arange(9.0), np.zeros(9)], 1)
    picture = settled(plots.graph(graph, positions=torch.from_numpy(places), links=2))
    assert [len(one.get_segments()) for one in picture.ax.collections[:2]] == [2, 0]
    assert {to_hex(color) for color in picture.ax.collections[2].get_facecolors()} == {BLUE.lower()}
    for options, said in (({"positions": places[:3]}, r"must be \(9, 2\)"), ({"size": [1]}, "each of 9 nodes")):
        with pytest.raises(InputError, match=said):
            graph.plot(**options)
    with pytest.raises(InputError, match="communities must have a number for each of 9 nodes"):
        graph.plot([0, 1])


def test_communities_beside_their_null() -> None:
    found = NullComparison(0.9, np.linspace(0, 0.5, 19), 1.0, np.zeros(19))
    picture = settled(found.plot())
    assert sum(bar.get_height() for bar in picture.ax.patches) == 19
    edge, own = (float(line.get_xdata()[0]) for line in picture.ax.get_lines())
    assert (edge, own) == (pytest.approx(0.475), 0.9)
    assert picture.ax.get_title(loc="left") == "p = 0.05"


def test_the_continuity_of_a_models_weights_is_drawn() -> None:
    data = weights.continuity(tiny_model("llama"))
    names = ["q", "down"]
    picture = settled(plots.continuity(data, names))
    for name, ax in zip(names, picture.axes, strict=True):
        drawn = {str(line.get_label()): np.asarray(line.get_ydata()) for line in ax.get_lines()}
        for side, label in (("input", "v₁"), ("output", "u₁")):
            one = data.sel(projection=name)
            assert set(drawn[f"random, {label}"]) == {float(one[f"{side}_haar"])}
        solid = [np.asarray(line.get_ydata()) for line in ax.get_lines() if line.get_linestyle() == "-"]
        np.testing.assert_allclose(solid, [one["input_continuity"], one["output_continuity"]])
    maps = settled(plots.cosine_maps(data, names, side="output"))
    np.testing.assert_allclose(
        maps.axes[1].get_images()[0].get_array(), data["output_cosine"].sel(projection="down").values
    )
    assert [ax.get_title(loc="left") for ax in maps.axes] == ["q, u₁", "down, u₁"]
    with pytest.raises(InputError, match="got 'Q'"):
        plots.continuity(data, ["Q"])


def test_maps_and_means_draw_themselves() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    fitted = LinearMap(ridge=0.0).fit(x, x * torch.tensor([1.0, 2, 3, 4]))
    np.testing.assert_allclose(fitted.plot().ax.get_images()[0].get_array(), np.diag([1, 2, 3, 4]), atol=1e-6)
    mean = MeanJacobian((3, 5), torch.eye(2).expand(2, 2, 2) * 2, torch.stack([torch.zeros(2, 2), torch.eye(2)]), 9)
    curve = settled(mean.plot()).ax.get_lines()[0]
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([3, 5], [0, 0.5])
    np.testing.assert_allclose(mean.plot(5).ax.get_images()[0].get_array(), np.eye(2))
    with pytest.raises(InputError, match=r"one of those averaged \(3, 5\), got 4"):
        mean.plot(4)


def test_numbers_of_any_library_become_arrays() -> None:
    half = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    for values in (half, [1, 1], np.ones(2, dtype=np.float16), xr.DataArray([1, 1])):
        np.testing.assert_array_equal(array_of(values, "x"), np.ones(2))
    assert array_of(torch.tensor([1j]).conj(), "x").tolist() == [-1j]
    for wrong in (None, [[1], [1, 2]], np.array(["a"]), []):
        with pytest.raises(InputError, match="x must be numbers"):
            array_of(wrong, "x")
    assert drawable("  a ") == "␣␣a␣"
    assert drawable("   ") == "␣␣␣"
