"""Results as netCDF: text of any kind is held, what it has no form for is refused by name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from probe import InputError
from probe.runs import Schema, Variable, require_encodable
from probe.runs.results import encoded


def read(data: bytes) -> xr.Dataset:
    return xr.load_dataset(io.BytesIO(data), engine="h5netcdf")


@given(st.text(st.characters(codec=None), max_size=8))
def test_any_text_comes_back_in_a_printable_form(text: str) -> None:
    words = np.array([text, "b"], dtype=object)  # a fixed width would cut NUL at the end
    labels = (
        {} if any(0xD800 <= ord(each) < 0xE000 for each in text) else {"word": words}
    )  # pandas has no index of them
    data = xr.Dataset({"words": ("word", words)}, labels, {"text": text})
    data["words"].attrs["long_name"] = text
    back = read(encoded(data))
    expected = text.replace("\0", "␀").encode("utf-8", "backslashreplace").decode()
    assert [back.attrs["text"], back["words"].attrs["long_name"]] == [expected, expected]
    assert all(back[name].values.tolist() == [expected, "b"] for name in ("words", *labels))


def test_truth_values_and_paths_have_a_plain_form() -> None:
    back = read(encoded(xr.Dataset(attrs={"yes": True, "no": np.bool_(False), "from": Path("a"), "all": ["a", "b"]})))
    assert (back.attrs["yes"], back.attrs["no"], back.attrs["from"], back.attrs["all"]) == (1, 0, "a", ["a", "b"])


@pytest.mark.guards(
    "names, attributes and labels are what netCDF holds",
    when="a run is saved",
    says="results must be of what netCDF can hold (text, …), got …: change it",
)
@pytest.mark.parametrize(
    ("data", "named"),
    [
        (xr.Dataset(attrs={"good": 1, "bad": None}), r"the attribute 'bad' = None"),
        (xr.Dataset(attrs={"bad": {"a": 1}}), r"the attribute 'bad' = \{'a': 1\}"),
        (xr.Dataset(attrs={"bad": 1j}), "the attribute 'bad' = 1j"),
        (xr.Dataset(attrs={"bad": np.datetime64("2026-01-01")}), r"the attribute 'bad' = np\.datetime64.*"),
        (xr.Dataset({"x": ("k", [1j])}), r"'x' = \[1j\]"),
        (xr.Dataset({"x": ((), 1.0, {"units": None})}), r"the attribute 'units' = None of 'x'"),
        (xr.Dataset({"a/b": ((), 1.0)}), r"the name 'a/b'"),
        (xr.Dataset({"a\0b": ((), 1.0)}), r"the name 'a\\x00b'"),
        (xr.Dataset(coords={"x": np.array(["a", None], dtype=object)}), r"'x' = \['a', (None|nan)\]"),
        (xr.Dataset(coords={"x": np.array([1, "a"], dtype=object)}), r"'x' = \[1, 'a'\]"),
    ],
)
def test_what_netcdf_has_no_form_for_is_named(data: xr.Dataset, named: str) -> None:
    with pytest.raises(InputError, match=rf"netCDF can hold .* got {named}: change it") as caught:
        encoded(data)
    assert "\n" not in str(caught.value)


@pytest.mark.guards(
    "names and labels of an analysis are what netCDF holds",
    when="a run begins",
    says="results must be of what netCDF can hold (text, …), got …: change it",
)
@pytest.mark.parametrize(
    ("variables", "coordinates", "named"),
    [
        ({"a/b": Variable("layer")}, {"layer": [0, 1]}, r"names that netCDF takes, got 'a/b'"),
        ({"x": Variable("layer")}, {"layer": np.array([0, None], dtype=object)}, r"'layer' = \[0, None\]"),
        ({"x": Variable("layer")}, {"layer": np.array(["\ud800"], dtype=object)}, "'utf-8' codec can't encode"),
    ],
)
def test_what_could_not_be_written_is_refused_before_anything_runs(
    variables: dict[str, Variable], coordinates: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        require_encodable(Schema(variables), coordinates)
    require_encodable(Schema({"x": Variable("layer token"), "y": Variable("layer")}), {"layer": [0, 1]})
