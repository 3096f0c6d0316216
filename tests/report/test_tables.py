"""Tables of a result: one row a value, its labels beside it, and nothing multiplied out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probe import InputError
from probe.report import Result
from tests.plant.runs import Planted, finished


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return Planted().read(finished(tmp_path_factory.mktemp("runs") / "run"))


class TestTable:
    def test_each_row_is_the_value_at_its_labels(self, result: Result):
        found = result.table("kl")
        labels = ["map", "layer", "query", "window", "position", "document", "title", "token"]
        assert list(found.columns) == [*labels, "kl"]
        for row in found.to_dict("records"):
            there = result.data.sel(map=row["map"], layer=row["layer"]).isel(query=row["query"])
            assert float(there["kl"]) == row["kl"]
            assert [there[name].item() for name in labels[3:]] == [row[name] for name in labels[3:]]

    def test_only_what_was_measured_has_a_row(self, result: Result):
        assert len(result.table("kl")) == int(result.data["kl"].notnull().sum()) == 144 - 16
        whole = result.table("kl", missing=True)
        assert len(whole) == 144
        assert int(whole["kl"].isna().sum()) == 16

    def test_variables_with_the_same_axes_are_columns(self, result: Result):
        found = result.table("kl", "loss_change")
        np.testing.assert_allclose(found["loss_change"], found["kl"] - 1)
        turned = Result(
            result.data.assign(kl=result.data["kl"].transpose("query", "map", "layer")), [], result.directory, "t"
        ).table("loss_change", "kl")
        np.testing.assert_allclose(turned["loss_change"], turned["kl"] - 1)

    def test_axes_of_its_own_alone(self, result: Result):
        assert result.table("entropy").shape == (24, 7)
        assert result.table("flat").to_dict("list") == {
            "map": ["linear"] * 3 + ["local"] * 3,
            "layer": [0, 1, 2] * 2,
            "flat": [True] * 6,
        }
        assert result.table("constant").to_dict("list") == {"constant": [2.5]}
        assert result.table("path")["axis"].tolist() == [0, 1] * 3  # without labels: numbers

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["kll"], "got 'kll': perhaps kl"),
            (["zzz"], r"table\(\) lists them"),
            (["document"], "'document': is a label"),
            (["kl", "entropy"], "kl has map 2 × layer 3 × query 24 and entropy has query 24: make a table of each"),
        ],
    )
    def test_what_makes_no_table_is_refused(self, result: Result, names: list[str], message: str):
        with pytest.raises(InputError, match=message):
            result.table(*names)

    def test_the_list_of_variables(self, result: Result):
        found = result.table().set_index("variable")
        assert found.loc["kl"].tolist() == ["map 2 × layer 3 × query 24", "nat", 128, "KL of the replaced output"]
        assert found.loc["constant", "axes"] == "none"
        assert set(found.index) == set(result.data.data_vars)


class TestClaims:
    def test_a_table_has_the_numbers_of_the_claims(self, result: Result):
        (claim,) = result.claims
        (row,) = result.claims_table().to_dict("records")
        assert (row["id"], row["estimate"], row["direction"], row["threshold"], row["verdict"]) == (
            *("planted.small", claim.estimate, "<", 0.5, "supported"),
        )
        assert math.isnan(row["null_estimate"])

    def test_pandas_reads_the_list_itself(self, result: Result):
        found = pd.DataFrame(result.claims)
        assert found["direction"].tolist() == ["<"]
        assert found["verdict"].tolist() == ["supported"]

    def test_no_claims_make_an_empty_table(self, result: Result, tmp_path: Path):
        assert Result(result.data, [], tmp_path, "t").claims_table().shape == (0, 14)


class TestRejudge:
    def test_the_rules_are_those_of_the_analysis(self, result: Result):
        same = result.rejudge()
        assert same.claims == result.claims
        other = result.rejudge(threshold_kl=0.01)
        assert [claim.verdict for claim in other.claims] == ["not supported"]
        assert other.claims[0].threshold == 0.01
        assert other.claims[0].estimate == result.claims[0].estimate
        assert result.rejudge({"threshold_kl": 0.01}).claims == other.claims
        assert other.config.thresholds.threshold_documents == 3

    def test_it_says_so_and_leaves_the_files_alone(self, result: Result, tmp_path: Path):
        other = result.rejudge(threshold_kl=0.01)
        assert other.notes[-1] == "Judged again with other thresholds: threshold_kl is 0.01, was 0.5."
        with pytest.raises(InputError, match=r"judged with other thresholds: pass write_report\(folder\)"):
            other.write_report()
        assert "Judged again" in other.write_report(tmp_path).read_text(encoding="utf-8")
        assert not (result.directory / "report.html").exists()
        assert Planted().read(result.directory).claims == result.claims

    @pytest.mark.parametrize(
        ("thresholds", "message"),
        [
            ({"threshold_k": 1}, "got 'threshold_k': perhaps threshold_kl"),
            ({"zzz": 1}, "they are threshold_kl, threshold_documents"),
            ({"threshold_kl": "high"}, "a finite number, got threshold_kl='high'"),
            ({"threshold_kl": math.nan}, "a finite number"),
            ({"threshold_kl": True}, "a finite number"),
        ],
    )
    def test_what_is_no_threshold_is_refused(self, result: Result, thresholds: dict[str, object], message: str):
        with pytest.raises(InputError, match=message):
            result.rejudge(thresholds)

    def test_an_analysis_without_thresholds_judges_nothing_again(self, result: Result, tmp_path: Path):
        with pytest.raises(InputError, match="has none"):
            Result(result.data, [], tmp_path, "t").rejudge()
