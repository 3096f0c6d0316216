"""Each claim on continuity, on small Datasets in which the answer was planted."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import spearmanr

from probe.analyses.continuity.claims import ROWS, claims
from probe.analyses.continuity.config import Config, Thresholds
from probe.analyses.continuity.table import CLAIMED, Pairs
from probe.claims import Claim
from probe.weights import haar_cosine
from tests.plant.continuity import ANGLE, BLOCKS, INNER, NAMES, STREAM, dataset, plant, put, rotating
from tests.plant.judging import by_name, claim_named, shown

CLAIMS = ("trained", "projections", "adjacency")
CONTINUOUS = [name for name in NAMES if name in CLAIMED]


def judged(data: xr.Dataset, row: str, **thresholds: float) -> Claim:
    return claim_named(Pairs(data, replace(Thresholds(), **thresholds), 0, 60, 199, 3), ROWS, row)


@pytest.fixture(scope="module")
def planted() -> dict[str, Claim]:
    return by_name(claims(dataset(), Config(permutations=199), resamples=100))


def test_every_row_is_there_once_in_order(planted: dict[str, Claim]) -> None:
    assert tuple(planted) == CLAIMS


@pytest.mark.parametrize("row", CLAIMS)
def test_planted_paths_are_supported(planted: dict[str, Claim], row: str) -> None:
    claim = planted[row]
    assert claim.verdict == "supported", claim.reason
    assert claim.ci_low <= claim.estimate <= claim.ci_high
    assert (claim.unit, claim.n_units) == ("blocks", (BLOCKS - 1) // 3)
    assert "one model" in claim.statistic


def test_estimates_are_the_planted_ones(planted: dict[str, Claim]) -> None:
    assert planted["trained"].estimate == pytest.approx(math.cos(ANGLE), abs=1e-6)
    assert planted["trained"].ci_low == pytest.approx(math.cos(ANGLE), abs=1e-6)
    assert shown(planted["trained"], "fresh initialisation") == pytest.approx(haar_cosine(STREAM), abs=0.01)
    assert shown(planted["trained"], "o in u₁") == pytest.approx(math.cos(ANGLE), abs=1e-6)
    v = shown(planted["projections"], "v in v₁")
    assert v == pytest.approx(haar_cosine(STREAM), abs=0.05)
    assert planted["projections"].estimate == pytest.approx(math.cos(ANGLE) - v, abs=1e-6)
    curve = np.abs(np.cos(ANGLE * np.arange(1, BLOCKS)))
    assert planted["adjacency"].estimate == pytest.approx(float(spearmanr(np.arange(1, BLOCKS), curve).statistic))
    assert shown(planted["adjacency"], "|cos| at lag 1") == pytest.approx(curve[0], abs=1e-6)


def test_the_threshold_is_the_null_of_the_mean(planted: dict[str, Claim]) -> None:
    claim = planted["trained"]
    n = len(CONTINUOUS) * (BLOCKS - 1)
    deviation = math.sqrt((1 / STREAM - haar_cosine(STREAM) ** 2) / n)
    assert claim.threshold == pytest.approx(haar_cosine(STREAM) + 2.326 * deviation, abs=0.1 * deviation)
    assert claim.null["estimate"] == claim.threshold


def test_a_claim_that_is_not_computed_counts_the_blocks_of_pairs_all_the_same() -> None:
    assert judged(dataset(seeds=0), "trained").n_units == (BLOCKS - 1) // 3


class TestTrained:
    def test_random_directions_are_not_supported(self) -> None:
        data = dataset()
        for name in CONTINUOUS:
            plant(data, name, CLAIMED[name], None, seed=ord(name[0]))
        assert judged(data, "trained").verdict in {"not supported", "inconclusive"}

    def test_one_shared_direction_is_mechanical(self) -> None:
        """All blocks near one direction: neighbours are alike, and so are all others."""
        data, generator = dataset(), torch.Generator().manual_seed(1)
        for name in CONTINUOUS:
            noise = torch.randn(BLOCKS, STREAM, generator=generator, dtype=torch.float64)
            put(data, name, CLAIMED[name], torch.nn.functional.normalize(noise + 12 * torch.eye(STREAM)[3], dim=1))
        claim = judged(data, "trained")
        assert claim.verdict == "mechanical"
        assert "permuted orders" in claim.reason
        assert judged(data, "adjacency").verdict != "supported"

    def test_continuity_of_outlier_coordinates_alone_is_mechanical(self) -> None:
        data = dataset()
        for name in CONTINUOUS:
            plant(data, name, CLAIMED[name], None, "trimmed", seed=ord(name[0]))
        claim = judged(data, "trained")
        assert claim.verdict == "mechanical"
        assert "outlier coordinates" in claim.reason

    def test_a_continuous_initialisation_is_no_learning(self) -> None:
        data = dataset()
        for seed in range(5):
            for name in CONTINUOUS:
                plant(data, name, CLAIMED[name], ANGLE, f"init-{seed}")
        claim = judged(data, "trained")
        assert claim.verdict == "mechanical"
        assert "fresh initialisation" in claim.reason

    def test_an_initialisation_outside_the_band_leaves_it_open(self) -> None:
        data = dataset()
        for seed in range(5):
            plant(data, "q", "input", 1.2, f"init-{seed}")
        claim = judged(data, "trained")
        assert claim.verdict == "inconclusive"
        assert "outside the band" in claim.reason

    def test_few_seeds_few_blocks_and_no_gap_decide_nothing(self) -> None:
        assert "fresh initialisations" in judged(dataset(seeds=4), "trained").reason
        few = judged(dataset(blocks=9), "trained")
        assert (few.verdict, few.n_units) == ("inconclusive", 2)
        assert "only 2 blocks of adjacent layers" in few.reason
        for row in CLAIMS:
            claim = judged(dataset(gap=1.03), row)
            assert claim.verdict == "inconclusive"
            assert "median gap" in claim.reason
        absent = judged(dataset(seeds=0), "trained")
        assert absent.verdict == "inconclusive"
        assert "--init-seeds" in absent.reason

    def test_pairs_without_a_gap_are_shown_apart(self) -> None:
        data = dataset()
        data["gap"].loc[{"variant": "model", "layer": [3, 4]}] = 1.01
        data["input_continuity"].loc[{"variant": "model", "layer": [3, 4]}] = 0.0
        data["output_continuity"].loc[{"variant": "model", "layer": [3, 4]}] = 0.0
        claim = judged(data, "trained")
        assert claim.estimate == pytest.approx(math.cos(ANGLE) * 16 / 18, abs=1e-6)
        assert shown(claim, "pairs with σ₁/σ₂ ≥ 1.05 alone, 89%") == pytest.approx(math.cos(ANGLE), abs=1e-6)


class TestProjections:
    def test_a_continuous_v_is_not_supported(self) -> None:
        data = dataset()
        plant(data, "v", "input", ANGLE)
        assert judged(data, "projections").verdict == "not supported"

    def test_v_counts_in_its_output_space_too(self) -> None:
        data = dataset()
        plant(data, "v", "output", ANGLE)
        claim = judged(data, "projections")
        assert claim.verdict == "not supported"
        assert "writer" in claim.reason

    def test_the_weakest_reader_decides(self) -> None:
        data = dataset()
        plant(data, "up", "input", None)
        claim = judged(data, "projections")
        assert claim.verdict != "supported"
        assert claim.estimate < 0.1

    def test_v_above_half_of_the_readers(self) -> None:
        data = dataset()
        plant(data, "v", "input", math.acos(0.7))
        claim = judged(data, "projections")
        assert claim.verdict == "not supported"
        assert "half the readers" in claim.reason
        assert claim.estimate == pytest.approx(math.cos(ANGLE) - 0.7, abs=1e-6)

    def test_continuous_wrong_sides_are_mechanical(self) -> None:
        data = dataset()
        plant(data, "gate", "output", 0.3)
        claim = judged(data, "projections")
        assert claim.verdict == "mechanical"
        assert "wrong sides" in claim.reason
        assert shown(claim, "gate in u₁, the wrong side") == pytest.approx(math.cos(0.3), abs=1e-6)
        assert shown(claim, "down in v₁, the wrong side") == pytest.approx(haar_cosine(INNER), abs=0.06)

    def test_without_v_there_is_nothing_to_compare(self) -> None:
        data = dataset()
        names = [name for name in NAMES if name != "v"]
        claim = judged(data.sel(projection=names), "projections")
        assert claim.verdict == "inconclusive"
        assert "projection v" in claim.reason


class TestAdjacency:
    def test_a_full_turn_comes_back_and_is_not_monotonic(self) -> None:
        data = dataset()
        for name in CONTINUOUS:
            plant(data, name, CLAIMED[name], math.pi / (BLOCKS - 1))
        claim = judged(data, "adjacency")
        assert claim.verdict != "supported"
        assert abs(claim.estimate) < 0.3

    def test_one_jump_in_the_middle_still_falls_with_lag(self) -> None:
        """Two halves, each one direction: |cos| falls with lag, as fewer pairs lie within a half."""
        data = dataset()
        halves = torch.eye(STREAM, dtype=torch.float64)[[0] * 9 + [1] * 10]
        for name in CONTINUOUS:
            put(data, name, CLAIMED[name], halves)
        assert judged(data, "adjacency").estimate < -0.9

    def test_each_projection_is_shown(self, planted: dict[str, Claim]) -> None:
        for name in CONTINUOUS:
            assert shown(planted["adjacency"], f"ρ of {name}") == pytest.approx(-1)

    def test_three_blocks_have_no_lag_curve(self) -> None:
        assert "four blocks" in judged(dataset(blocks=3), "adjacency").reason


def test_a_rotation_of_the_stream_and_signs_change_no_verdict(planted: dict[str, Claim]) -> None:
    """The planted frames of another seed are another rotation."""
    data = dataset()
    for name in CONTINUOUS:
        vectors = rotating(ANGLE, STREAM, BLOCKS, torch.Generator().manual_seed(99))[..., 0]
        put(data, name, CLAIMED[name], vectors)
    assert judged(data, "trained").estimate == pytest.approx(planted["trained"].estimate)
