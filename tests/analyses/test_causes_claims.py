"""Each claim on causes, on small Datasets in which the answer was planted; its figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from probe import plots
from probe.analyses.causes import panels as causes_panels
from probe.analyses.causes.cells import DECAYS, Cell, plain
from probe.analyses.causes.claims import ROWS, claims
from probe.analyses.causes.config import Config, Thresholds
from probe.analyses.causes.figures import contrasts, figures
from probe.analyses.causes.table import Grid
from probe.claims import Claim
from probe.training.names import ACTIVATIONS, RADIAL
from tests.plant.causes import FIRST, OTHER, K, dataset
from tests.plant.judging import at, by_name, claim_named, shown

CLAIMS = ("residual_coherence", "symmetry_breaking", "concentration", "v_nonlinearity")


def judged(data: xr.Dataset, row: str, **thresholds: float) -> Claim:
    return claim_named(Grid(data, replace(Thresholds(), **thresholds), 0), ROWS, row)


@pytest.fixture(scope="module")
def planted() -> dict[str, Claim]:
    return by_name(claims(dataset(), Config()))


class TestSupported:
    def test_every_row_is_there_once_in_order(self, planted: dict[str, Claim]):
        assert tuple(planted) == CLAIMS

    @pytest.mark.parametrize("row", CLAIMS)
    def test_supported(self, planted: dict[str, Claim], row: str):
        claim = planted[row]
        assert claim.verdict == "supported", claim.reason
        assert (claim.unit, claim.n_units) == ("seeds", 5)
        assert claim.ci_low <= claim.estimate <= claim.ci_high

    def test_estimates_are_the_planted_ones(self, planted: dict[str, Claim]):
        share = {kind: FIRST[kind] / (FIRST[kind] + (K - 1) * OTHER[kind]) for kind in FIRST}
        expected = {
            "residual_coherence": 0.78,
            "symmetry_breaking": 1.0,
            "concentration": share["gelu"] - share["identity"],
            "v_nonlinearity": 0.2,
        }
        for row, value in expected.items():
            assert planted[row].estimate == pytest.approx(value, abs=0.02), row
        also = next(c for c in planted["concentration"].controls if c["role"] == "also decides")
        assert also["estimate"] == pytest.approx(share["gelu"] - share["norm"], abs=0.02)

    def test_controls_and_nulls_are_shown(self, planted: dict[str, Claim]):
        assert planted["residual_coherence"].null["estimate"] == pytest.approx(0.02, abs=0.01)
        assert shown(planted["residual_coherence"], "tanh, branch form, step 0") == pytest.approx(0.78, abs=0.02)
        assert shown(planted["residual_coherence"], "partial ρ") == pytest.approx(0.5, abs=0.5)
        breaking = planted["symmetry_breaking"]
        assert breaking.null["estimate"] == 0.1
        assert shown(breaking, "GELU − radial_squash at matched loss") == pytest.approx(0.4, abs=0.02)
        assert shown(breaking, "share of cells at weight decay 0.01") == 1.0
        assert shown(breaking, "gelu, ΔW") == pytest.approx(0.6, abs=0.02)
        assert planted["concentration"].null["estimate"] == pytest.approx(0.06)
        v = planted["v_nonlinearity"]
        assert (shown(v, "v, full"), shown(v, "q, full")) == pytest.approx((0.1, 0.4), abs=0.01)
        assert shown(v, "held-out loss, bits/byte, full") == pytest.approx(2.0 / np.log(2), abs=0.02)


class TestResidualCoherence:
    def test_five_of_seven_are_needed(self):
        data = dataset()
        for lost, verdict in ((2, "supported"), (3, "not supported")):
            for name in ACTIVATIONS[:lost]:
                at(data, "gradient_coherence", cell=Cell(name).name)[:] = 0.05
            assert judged(data, "residual_coherence").verdict == verdict

    def test_both_the_start_and_the_mean_of_training_count(self):
        for steps in (slice(0, 1), slice(1, None)):
            data = dataset()
            for name in ACTIVATIONS:
                at(data, "gradient_coherence", cell=Cell(name).name)[steps] = 0.0
            assert judged(data, "residual_coherence").verdict == "not supported"

    def test_the_mean_is_over_steps_and_not_over_snapshots(self):
        data = dataset()
        values = at(data, "gradient_coherence", cell="stream-gelu")
        values[:] = (data["step"].values / 3000)[:, None, None]
        _, mean = Grid(data, Thresholds(), 0).coherence(Cell("gelu"))
        np.testing.assert_allclose(mean, 0.5)

    def test_coherent_without_a_residual_too(self):
        data = dataset()
        for name in ACTIVATIONS:
            at(data, "gradient_coherence", cell=plain(Cell(name)).name)[:] = 0.3
        claim = judged(data, "residual_coherence")
        assert claim.verdict == "mechanical", claim.reason
        assert "without a residual" in claim.reason

    def test_arms_that_did_not_learn_do_not_count(self):
        data = dataset()
        for name in ACTIVATIONS[:3]:
            at(data, "held_out_loss", cell=plain(Cell(name)).name)[:] = 0.95
        claim = judged(data, "residual_coherence")
        assert (claim.verdict, "only 4 of 7 activations learned" in claim.reason) == ("inconclusive", True)


class TestSymmetryBreaking:
    def plant(self, data: xr.Dataset, decays: tuple[float, ...], weights: str = "W") -> None:
        """Radial networks that are as continuous as GELU's, in part of the grid."""
        for decay in decays:
            for scale in (0.05, 0.2, 0.5, 1.0):
                own = at(data, "cosine", cell=Cell("gelu", decay=decay, scale=scale).name, weights=weights)
                for name in RADIAL:
                    at(data, "cosine", cell=Cell(name, decay=decay, scale=scale).name, weights=weights)[:] = own

    @pytest.mark.parametrize("weights", ["W", "ΔW"])
    def test_in_half_of_the_grid_it_is_refuted(self, weights: str):
        data = dataset()
        self.plant(data, DECAYS[2:], weights)
        claim = judged(data, "symmetry_breaking")
        assert (claim.verdict, claim.estimate) == ("not supported", 0.5)
        assert shown(claim, "share of cells at weight decay 0.1") == 0.0
        assert shown(claim, "share of cells at weight decay 0.01") == 1.0
        assert shown(claim, f"share of cells in {weights} alone") == 0.5

    def test_in_three_quarters_it_is_open(self):
        data = dataset()
        self.plant(data, DECAYS[3:])
        claim = judged(data, "symmetry_breaking")
        assert (claim.verdict, claim.estimate) == ("inconclusive", 0.75)
        assert "part of the cells" in claim.reason

    def test_cells_that_did_not_learn_are_left_out(self):
        data = dataset()
        self.plant(data, DECAYS[2:])
        for decay in DECAYS[2:]:
            for scale in (0.05, 0.2, 0.5, 1.0):
                at(data, "held_out_loss", cell=Cell("gelu", decay=decay, scale=scale).name)[:] = 1.0
        claim = judged(data, "symmetry_breaking")
        assert (claim.verdict, claim.estimate) == ("supported", 1.0)
        assert "16 pairs" in claim.statistic

    def test_without_a_difference_at_matched_loss_it_is_mechanical(self):
        data = dataset()
        own = at(data, "cosine", cell=Cell("gelu", teacher="linear").name, weights="ΔW")
        at(data, "cosine", cell=Cell("radial_gate", teacher="linear").name, weights="ΔW")[:] = own
        claim = judged(data, "symmetry_breaking")
        assert claim.verdict == "mechanical", claim.reason
        assert "radial_gate at matched loss" in claim.reason

    def test_radial_networks_above_the_haar_band_have_not_lost_it(self):
        data = dataset()
        at(data, "cosine", cell="stream-radial_gate", weights="W")[:] = 0.3
        claim = judged(data, "symmetry_breaking")
        assert claim.verdict == "inconclusive"
        assert "above the Haar band (0.17), so not lost: stream-radial_gate 0.3" in claim.reason

    def test_without_a_gap_there_is_no_direction(self):
        data = dataset()
        data["gap"].values[:] = 1.01
        assert "no leading direction" in judged(data, "symmetry_breaking").reason

    def test_what_is_missing_is_named(self):
        claim = judged(dataset(without="radial_gate-decay=0.1"), "symmetry_breaking")
        assert (claim.verdict, claim.unit) == ("inconclusive", "seeds")
        assert "radial_gate-decay=0.1" in claim.reason


class TestConcentration:
    def test_spread_as_widely_as_the_identity(self):
        data = dataset()
        at(data, "match", cell="stream-gelu")[:] = at(data, "match", cell="stream-identity") - 0.01 * np.eye(K)[0]
        assert judged(data, "concentration").verdict == "not supported"

    def test_a_norm_that_spreads_nothing(self):
        data = dataset()
        for norm in ("layer", "rms", "rms_bare"):
            at(data, "match", cell=Cell(norm=norm).name)[:] = at(data, "match", cell="stream-gelu") + np.eye(K)[0]
        claim = judged(data, "concentration")
        assert claim.verdict == "not supported"
        assert "three norms" in claim.reason

    def test_with_nothing_that_carries_on_there_is_no_share(self):
        data = dataset()
        at(data, "match", cell="stream-identity")[:] = 0.06 + 0.005
        claim = judged(data, "concentration")
        assert claim.verdict == "inconclusive"
        assert "stream-identity (0.04)" in claim.reason

    def test_an_arm_that_did_not_learn(self):
        data = dataset()
        at(data, "held_out_loss", cell="stream-identity-norm=rms")[:] = 2.0
        assert judged(data, "concentration").verdict == "supported"  # it does not enter
        at(data, "held_out_loss", cell="stream-gelu-norm=rms")[:] = 2.0
        claim = judged(data, "concentration")
        assert "did not learn: stream-gelu-norm=rms (loss 2)" in claim.reason


class TestVNonlinearity:
    def test_lower_with_the_nonlinearity(self):
        data = dataset()
        at(data, "arm_cosine", arm="v_nonlinearity", projection="v")[:] = 0.05
        assert judged(data, "v_nonlinearity").verdict == "not supported"

    def test_only_the_last_fifth_of_training_counts(self):
        data = dataset()
        at(data, "arm_cosine", arm="v_nonlinearity", projection="v")[:3] = 0.0
        assert judged(data, "v_nonlinearity").verdict == "supported"

    def test_an_arm_that_knows_no_more_than_frequencies(self):
        data = dataset()
        at(data, "arm_held_out_loss", arm="full")[:] = 3.2
        assert "did not learn: full" in judged(data, "v_nonlinearity").reason

    def test_a_run_without_transformers(self):
        claim = judged(dataset(arms=False), "v_nonlinearity")
        assert (claim.verdict, "give --text FILE" in claim.reason) == ("inconclusive", True)


@pytest.mark.parametrize("row", CLAIMS)
def test_four_seeds_decide_nothing(row: str):
    claim = judged(dataset(seeds=4), row)
    assert (claim.verdict, "only 4 seeds: 5 are needed" in claim.reason) == ("inconclusive", True)


def test_intervals_are_paired_over_seeds():
    data = dataset(noise=0.0)
    shift = np.array([0.0, 1.0, 2.0, 3.0, 4.0]) / 100
    for arm in ("full", "v_nonlinearity"):  # the same shift in both arms leaves the difference
        at(data, "arm_cosine", arm=arm, projection="v")[:] += 5 * shift[None, :, None, None, None]
    at(data, "arm_cosine", arm="v_nonlinearity", projection="v")[:] += shift[None, :, None, None, None]
    claim = judged(data, "v_nonlinearity")
    expected = stats.t.interval(0.95, 4, loc=0.22, scale=stats.sem(shift))
    assert (claim.ci_low, claim.ci_high) == pytest.approx(expected)


@pytest.fixture
def page() -> Iterator[None]:
    with plots.page_style():
        yield


@pytest.mark.usefixtures("page")
class TestFigures:
    def test_all_are_drawn_and_say_what_on(self):
        data = dataset()
        made = {figure.name: figure for figure in figures(data, Config())}
        expected = ["continuity", "coherence", "cells", "grid", "concentration", "learning", "rotation"]
        assert list(made) == [*expected, "arms", "arm-learning"]
        for figure in made.values():
            drawn = figure.draw()
            drawn.draw_without_rendering()
            assert all(ax.has_data() for ax in drawn.axes if ax.axison), figure.name
            assert "5 seeds" in figure.caption

    def test_a_run_of_few_cells_leaves_out_what_it_lacks(self):
        data = dataset(arms=False)
        data = data.isel(cell=np.flatnonzero(np.char.startswith(data["cell"].values.astype(str), "plain")))
        made = figures(data, Config())
        assert [figure.name for figure in made] == ["continuity", "coherence", "cells", "learning"]
        for figure in made:
            figure.draw()

    def test_the_line_is_the_mean_and_the_band_its_interval(self):
        data = dataset()
        style = causes_panels.ACTIVATION_STYLES["gelu"]
        ax = causes_panels.through_training(data, "cosine", {"stream-gelu": style}, weights="ΔW")
        values = data["cosine"].sel(cell="stream-gelu", weights="ΔW", space="input").mean("pair").values[1:]
        np.testing.assert_allclose(ax.lines[0].get_ydata(), values.mean(axis=1))
        assert ax.lines[0].get_xdata().tolist() == data["step"].values.tolist()[1:]

    def test_the_heat_map_holds_the_ends_in_their_places(self):
        data = dataset()
        at(data, "cosine", cell=Cell("gelu", decay=0.1, scale=0.05).name, weights="W")[:] = 0.77
        at(data, "held_out_loss", cell=Cell("gelu", decay=1.0, scale=1.0).name)[:] = 0.95
        ax = causes_panels.decay_against_start(data, "gelu")
        table = ax.images[0].get_array()
        assert table.shape == (4, 4)
        assert float(table[2, 0]) == pytest.approx(0.77)
        assert [text.get_text() for text in ax.texts if "(" in text.get_text()] == ["(0.50)"]

    def test_contrasts_are_paired_t_tests(self):
        data = dataset()
        table = contrasts(data)
        row = table[(table["contrast"] == "stream-gelu − stream-identity") & (table["of"] == "W")].iloc[0]
        grid = Grid(data, Thresholds(), 0)
        test = stats.ttest_rel(grid.continuity(Cell("gelu")), grid.continuity(Cell("identity")))
        assert row["t"] == f"{test.statistic:.2g}"
        assert float(row["p, adjusted"]) >= float(f"{test.pvalue:.2g}")
        assert row["difference"].startswith("0.4")
        assert len(table) == 2 * (6 + 7 + 3)
