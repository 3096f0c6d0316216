"""Pieces: arrays that are cut and put together by label, and read in part."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from probe.errors import InputError
from probe.runs import Piece, Run, Schema, Task, Variable
from probe.runs import pieces as module
from probe.runs.pieces import Labels, PieceFile, combined, encode, joined, labelled

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
AXES = ("variant", "layer", "query")


def bits(tensor: Tensor) -> bytes:
    flat = tensor.flatten().clone(memory_format=torch.contiguous_format)  # of one number, the stride may be any
    return flat.view(torch.uint8).numpy().tobytes()


def same(found: Tensor, expected: Tensor) -> bool:
    return (found.dtype, found.shape, bits(found)) == (expected.dtype, expected.shape, bits(expected))


def written(pieces: Sequence[Piece], schema: Schema, folder: str | Path) -> list[PieceFile]:
    """The pieces as files, in this order."""
    files = []
    for number, piece in enumerate(pieces):
        path = Path(folder, f"{number}.safetensors")
        path.write_bytes(encode(labelled(piece, {}, schema), None))
        files.append(PieceFile.open(path))
    return files


@dataclass(frozen=True)
class Cut:
    """An array with its labels, and how each axis is cut."""

    array: Tensor
    labels: Mapping[str, Sequence[Any]]
    groups: Mapping[str, Sequence[Labels]]

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(self.labels)

    @property
    def schema(self) -> Schema:
        return Schema({"a": Variable(" ".join(self.axes), "nat", "an array", fill=-1)})

    def pieces(self) -> list[Piece]:
        return [
            Piece({"a": self.at(labels)}, labels)
            for chosen in itertools.product(*self.groups.values())
            for labels in [dict(zip(self.axes, chosen, strict=True))]
        ]

    def at(self, labels: Mapping[str, Labels]) -> Tensor:
        """What stands at labels: a single one leaves no axis."""
        found = self.array
        for place, (axis, every) in reversed(list(enumerate(self.labels.items()))):
            own = labels[axis]
            many = list(own) if isinstance(own, list | range) else [own]
            found = found.index_select(place, torch.tensor([list(every).index(label) for label in many]))
            if not isinstance(own, list | range):
                found = found.squeeze(place)
        return found


@st.composite
def cuts(draw: st.DrawFn, *, several: bool = False) -> Cut:
    """Arrays of random bits, along one to three axes of ranges, numbers or words, cut at random places."""
    axes = draw(st.lists(st.sampled_from(AXES), min_size=1 + several, max_size=3, unique=True))
    labels: dict[str, Sequence[Any]] = {}
    groups: dict[str, Sequence[Labels]] = {}
    for axis in axes:
        size = draw(st.integers(2 if several else 1, 5))
        start = draw(st.integers(0, 3))
        words = [f"init-{number}" for number in range(size)]
        numbers = draw(st.lists(st.integers(-9, 99), min_size=size, max_size=size, unique=True))
        labels[axis] = every = draw(st.sampled_from([range(start, start + size), numbers, words]))
        places = st.sets(st.integers(1, size - 1), min_size=int(several)) if size > 1 else st.just(set[int]())
        ends = [0, *sorted(draw(places)), size]
        parts: list[Labels] = [every[first:last] for first, last in itertools.pairwise(ends)]
        if not isinstance(every, range):
            parts = [part[0] if len(part) == 1 and draw(st.booleans()) else part for part in parts]  # type: ignore
        groups[axis] = parts
    dtype = draw(st.sampled_from(DTYPES))
    shape = [len(every) for every in labels.values()]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if dtype == torch.bool:
        return Cut(torch.rand(shape, generator=generator) < 0.5, labels, groups)
    content = torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return Cut(content.view(dtype).view(shape), labels, groups)


@given(cut=cuts(), data=st.data())
def test_pieces_in_any_order_are_the_array_again(cut: Cut, data: st.DataObject) -> None:
    pieces = data.draw(st.permutations(cut.pieces()))
    with tempfile.TemporaryDirectory() as folder:
        files = written(pieces, cut.schema, folder)
        piece = joined([file.read() for file in files])
        whole = combined(files, cut.schema, dict(cut.labels))
    assert same(piece["a"], cut.at(piece.labels)), "bit for bit, at the labels that it names"
    assert {axis: sorted(module._many(own)) for axis, own in piece.labels.items()} == {
        axis: sorted(own) for axis, own in cut.labels.items()
    }
    assert whole["a"].dims == cut.axes
    assert (whole["a"].attrs, whole["a"].values.dtype) == (
        {"units": "nat", "long_name": "an array"},
        module._numpy(cut.array).dtype,
    )
    if cut.array.dtype == torch.bfloat16:  # which numpy does not have
        np.testing.assert_array_equal(whole["a"].values, cut.array.float())
    else:
        assert whole["a"].values.tobytes() == cut.array.numpy().tobytes()


@given(cut=cuts(), data=st.data())
def test_a_label_is_read_as_it_stands_there(cut: Cut, data: st.DataObject) -> None:
    """One label along each of some axes, as `Run.piece` reads it: from the files that have it, in part."""
    chosen = {
        axis: data.draw(st.sampled_from(list(every))) for axis, every in cut.labels.items() if data.draw(st.booleans())
    }
    with tempfile.TemporaryDirectory() as folder:
        files = written(cut.pieces(), cut.schema, folder)
        piece = joined([file.read(["a"], **chosen) for file in files if file.has(**chosen)])
    assert same(piece["a"], cut.at({**cut.labels, **chosen} | {axis: piece.labels[axis] for axis in cut.labels}))
    assert {axis: piece.labels[axis] for axis in chosen} == chosen


@given(cut=cuts(several=True), data=st.data())
def test_what_no_piece_holds_is_open(cut: Cut, data: st.DataObject) -> None:
    pieces = cut.pieces()
    lost = pieces.pop(data.draw(st.integers(0, len(pieces) - 1)))
    with tempfile.TemporaryDirectory() as folder:
        files = written(pieces, cut.schema, folder)
        with pytest.raises(ValueError, match=f"must fill all of it, but leave {math.prod(lost['a'].shape)} places"):
            joined([file.read() for file in files])
        filled = combined(files, cut.schema, dict(cut.labels))["a"].values
        open_ = combined(files, Schema({"a": Variable(" ".join(cut.axes))}), dict(cut.labels))["a"].values
    index = np.ix_(*[
        [list(every).index(label) for label in module._many(lost.labels[axis])] for axis, every in cut.labels.items()
    ])
    missing = np.zeros(filled.shape, dtype=bool)
    missing[index] = True
    whole = module._numpy(cut.array)
    np.testing.assert_array_equal(filled[~missing], whole[~missing])
    np.testing.assert_array_equal(open_[~missing], whole[~missing])
    assert filled.dtype == whole.dtype
    assert (filled[missing] == np.array(-1).astype(whole.dtype)).all()
    assert open_.dtype == (whole.dtype if whole.dtype.kind == "f" else np.float64)
    assert np.isnan(open_[missing]).all()


SCHEMA = Schema({
    "kl": Variable("map layer query", "nat", "divergence"),
    "flat": Variable("layer"),
    "state": Variable("layer query coordinate", kept=False),
    "left": Variable("layer out", kept=False),
    "total": Variable(""),
})


@pytest.mark.parametrize(
    ("arrays", "labels", "message"),
    [
        ({"ratio": torch.ones(2)}, {}, "variables that its schema declares, got 'ratio': declare it"),
        ({"kl": torch.ones(2, 3)}, {}, r"kl .*\(map, layer, query\), got the shape \(2, 3\)"),
        (
            {"kl": torch.ones(2, 3)},
            {"layer": 0, "query": range(2)},
            r"kl .*\(map, query: 2\), got the shape \(2, 3\)",
        ),
        ({"kl": torch.ones(2, 3)}, {"map": ["a", "b", "c"], "layer": 0}, "as long as their labels"),
        ({"kl": torch.ones(2, 3, 1)}, {"map": "linear", "layer": 0}, r"must have the axes .*\(query\)"),
        ({"flat": torch.ones(1)}, {"layer": 0}, r"flat must have the axes .*\(none\)"),
        ({"total": torch.ones(1)}, {}, r"total must have the axes .*\(none\)"),
    ],
)
def test_arrays_must_be_as_they_are_declared(
    arrays: Mapping[str, Tensor], labels: Mapping[str, Labels], message: str, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    with pytest.raises(ValueError, match=message):
        run.save(Task("s"), Piece(arrays, labels), SCHEMA)
    assert not run.has(Task("s"))


def test_a_suffix_tells_of_what_an_array_is(tmp_path: Path) -> None:
    """Arrays of one variable may have widths of their own, for example those of projections."""
    run = Run(tmp_path)
    for layer in (0, 1):
        arrays = {"left.q": torch.full((2,), layer), "left.up": torch.full((4,), -layer)}
        run.save(Task("s", {"layer": layer}), arrays, SCHEMA)
    assert run.piece("s", ["left.up"])["left.up"].tolist() == [[0] * 4, [-1] * 4]
    assert run.piece("s", layer=1)["left.q"].tolist() == [1, 1]
    assert not run.combine(SCHEMA, {}).data_vars, "what only passes from stage to stage"


def test_arrays_of_one_stage_may_have_their_own_axes(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for start in (0, 2):
        labels: dict[str, Labels] = {"map": ["linear", "local"], "layer": 3, "query": range(start, start + 2)}
        arrays = {"kl": torch.ones(2, 2), "state": torch.full((2, 5), start)}
        run.save(Task("s", {"start": start}, {"stop": start + 2}), Piece(arrays, labels), SCHEMA)
    run.save(Task("t"), {"total": 0.1}, SCHEMA)
    assert run.piece("s")["state"].tolist() == [[0] * 5] * 2 + [[2] * 5] * 2
    assert run.piece("s", ["kl"], map="local").labels == {
        "map": "local",
        "layer": 3,
        "query": range(4),
        "start": [0, 2],
    }
    data = run.combine(SCHEMA, {"map": ["local", "mlp", "linear"], "layer": [0, 3]})
    assert list(data.data_vars) == ["kl", "total"]
    assert data["kl"].sizes == {"map": 3, "layer": 2, "query": 4}
    assert int(data["kl"].notnull().sum()) == 8
    assert data["kl"].sel(map=["linear", "local"], layer=3).notnull().all()
    assert data["total"].item() == 0.1


def test_ranges_with_a_hole_between_them_are_labels_one_by_one(tmp_path: Path) -> None:
    run, schema = Run(tmp_path), Schema({"a": Variable("query")})
    for start in (0, 4):
        run.save(Task("s", {"start": start}), Piece({"a": [start, -start]}, {"query": range(start, start + 2)}), schema)
    piece = run.piece("s")
    assert (piece.labels["query"], piece["a"].tolist()) == ([0, 1, 4, 5], [0, 0, 4, -4])
    np.testing.assert_array_equal(run.combine(schema, {"query": range(6)})["a"], [0, 0, np.nan, np.nan, 4, -4])


def test_pieces_of_several_number_formats_get_one_that_holds_all(tmp_path: Path) -> None:
    run, schema = Run(tmp_path), Schema({"a": Variable("layer")})
    for layer, value in enumerate((np.float32(1), 0.1, np.float32(3))):
        run.save(Task("s", {"layer": layer}), {"a": value}, schema)
    assert run.piece("s")["a"].tolist() == [1, 0.1, 3]
    assert run.piece("s", layer=0)["a"].dtype == torch.float32


def test_an_axis_that_the_coordinates_leave_out_gets_the_labels_of_the_pieces(tmp_path: Path) -> None:
    run, schema = Run(tmp_path), Schema({"a": Variable("layer draw")})
    for layer in (5, 3):
        run.save(Task("s", {"layer": layer}), Piece({"a": torch.zeros(2)}, {"draw": range(2)}), schema)
    data = run.combine(schema, {})
    assert data["layer"].values.tolist() == [3, 5], "in the order of the tasks' names"
    assert "draw" not in data.coords, "a range says no more than its length"


@pytest.mark.parametrize("given", [3, 2.1, True, [1, 2], np.float32(0.1), np.arange(6)[::-2], np.ones((2, 2)).T])
def test_numbers_lists_and_numpy_are_saved_as_numpy_has_them(given: Any, tmp_path: Path) -> None:
    run = Run(tmp_path)
    schema = Schema({"a": Variable(" ".join("ijk"[: np.ndim(given)]))})
    run.save(Task("s"), {"a": given}, schema)
    found = run.piece("s").numpy("a")
    assert found.dtype == np.asarray(given).dtype
    np.testing.assert_array_equal(found, given)


def test_views_and_shared_storage_are_saved(tmp_path: Path) -> None:
    run, base = Run(tmp_path), torch.arange(12.0)
    schema = Schema({name: Variable("i") for name in ("whole", "again", "part", "conjugate", "empty")})
    arrays = {"whole": base, "again": base, "part": base[3:5], "empty": base[:0]}
    run.save(Task("s"), arrays | {"conjugate": torch.complex(base, base).conj()}, schema)
    found = run.piece("s")
    assert {name: found[name].tolist() for name in arrays} == {name: array.tolist() for name, array in arrays.items()}
    assert found["conjugate"][1] == 1 - 1j


class TestReading:
    @pytest.fixture
    def read(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
        """What is read from files, one after another: (array, what of it)."""
        seen: list[tuple[str, object]] = []
        original = module.safe_open

        class Slice:
            def __init__(self, name: str, part: Any) -> None:
                self.name, self.part = name, part

            def __getitem__(self, places: object) -> Tensor:
                seen.append((self.name, places))
                found: Tensor = self.part[places]
                return found

        class Opened:
            def __init__(self, path: Path, framework: str) -> None:
                self.file = original(path, framework=framework)

            def __enter__(self) -> Opened:
                self.opened = self.file.__enter__()
                return self

            def __exit__(self, *ended: Any) -> None:
                self.file.__exit__(*ended)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.opened, name)

            def get_tensor(self, name: str) -> Tensor:
                seen.append((name, "all"))
                found: Tensor = self.opened.get_tensor(name)
                return found

            def get_slice(self, name: str) -> Slice:
                return Slice(name, self.opened.get_slice(name))

        monkeypatch.setattr(module, "safe_open", Opened)
        return seen

    @pytest.fixture
    def run(self, tmp_path: Path) -> Run:
        run = Run(tmp_path)
        for start in (0, 2):
            rows = range(start, start + 2)
            arrays = {"kl": torch.arange(12).view(2, 3, 2) + start, "state": torch.ones(3, 2, 4)}
            piece = Piece(arrays, {"map": ["a", "b"], "layer": [0, 4, 8], "query": rows})
            run.save(Task("s", {"start": start}), piece, SCHEMA)
        return run

    def test_only_the_arrays_asked_for(self, run: Run, read: list[tuple[str, object]]) -> None:
        assert list(run.piece("s", ["kl", "flat"])) == ["kl"]
        assert read == [("kl", "all")] * 2

    def test_only_the_labels_asked_for(self, run: Run, read: list[tuple[str, object]]) -> None:
        piece = run.piece("s", ["kl", "state"], layer=4)
        every = slice(None)
        assert read == [("kl", (every, 1, every)), ("state", (1, every, every))] * 2
        assert piece["kl"].tolist() == [[2, 3, 4, 5], [8, 9, 10, 11]]
        assert piece.inside("kl") == ("map", "query")

    def test_only_the_files_that_have_them(self, run: Run, read: list[tuple[str, object]]) -> None:
        assert run.piece("s", ["kl"], query=3, map="b")["kl"].tolist() == [9, 11, 13]
        assert read == [("kl", (1, slice(None), 1))]
        read.clear()
        assert run.piece("s", ["state"], start=2).labels["query"] == range(2, 4)
        assert read == [("state", "all")]

    def test_nothing_for_the_labels_alone(self, run: Run, read: list[tuple[str, object]]) -> None:
        assert [file.labels["query"] for file in run.files("s")] == [range(2), range(2, 4)]
        assert run.piece("s", []).labels["layer"] == [0, 4, 8]
        assert read == []

    def test_what_is_not_there_is_named(self, run: Run) -> None:
        with pytest.raises(InputError, match="s has none at layer 5, map a: its tasks are start-00000; start-00002"):
            run.piece("s", layer=5, map="a")
        with pytest.raises(InputError, match="holds nothing of later: run"):
            run.piece("later")

    def test_a_damaged_file_is_named(self, run: Run) -> None:
        path = run.directory / "units" / "s" / "start-00002.safetensors"
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(InputError, match=r"start-00002.* is not \(.*delete it and run again"):
            run.piece("s")
        gone = PieceFile.open(path.with_name("start-00000.safetensors"))
        gone.path.unlink()
        with pytest.raises(InputError, match="must be there when it is read"):
            gone.read()


VIEWS: dict[str, Any] = {
    "conjugate": lambda z: z.conj(),
    "negative imaginary part": lambda z: z.conj().imag,
    "transposed conjugate": lambda z: z.mH,
    "part of a conjugate": lambda z: z.conj()[1:, ::2],
    "expanded": lambda z: z.conj()[:1].expand(3, -1),
}


@pytest.mark.guards(
    "an array is a view: conjugate, negative, transposed, expanded",
    when="a run is saved",
    gives="what it shows",
)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_kept_as_what_it_shows(view: str, tmp_path: Path) -> None:
    z = torch.complex(torch.arange(12.0).reshape(3, 4), torch.arange(12.0).reshape(3, 4) + 1)
    shown = VIEWS[view](z)
    path = tmp_path / "piece.safetensors"
    path.write_bytes(encode(Piece({"z": shown, "whole": z}), None))
    kept = PieceFile.open(path).read()
    assert torch.equal(kept["z"], shown.resolve_conj().resolve_neg())
    assert torch.equal(kept["whole"], z)


@pytest.mark.guards(
    "an array has a dtype that the file has",
    when="a run is saved",
    says="a task's complex arrays must be complex64, and … is …: return its real and imaginary parts as two arrays",
)
def test_a_complex_dtype_that_no_file_holds_is_refused() -> None:
    with pytest.raises(InputError, match="must be complex64, and z is complex") as caught:
        encode(Piece({"z": torch.ones(2, dtype=torch.complex128)}), None)
    assert "\n" not in str(caught.value)
