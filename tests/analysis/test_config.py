"""Options from Python: what fits, what is refused when it is given, and what each field says of itself."""

from __future__ import annotations

import pydoc
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import jaxtyping
import numpy as np
import pytest
import torch

from probe import analyses
from probe.analyses import causes, communities, continuity, dynamics, tokenwise
from probe.analysis import Config, ModelConfig, TextConfig
from probe.analysis import fields as own_fields
from probe.analysis.fields import Among
from tests.plant.refusing import refused


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users have no checks of types but the configuration's own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layers": [0, 1]}, {"layers": "0,1"}),
        ({"layers": range(2, 5)}, {"layers": "2,3,4"}),
        ({"layers": 7}, {"layers": "7"}),
        ({"layers": np.array([3, 1])}, {"layers": "3,1"}),
        ({"layers": torch.tensor([3, 1])}, {"layers": "3,1"}),
        ({"layers": [np.int64(2)]}, {"layers": "2"}),
        ({"layers": "3, 1"}, {"layers": "3, 1"}),
        ({"text": "a.txt"}, {"text": Path("a.txt"), "dataset": None, "split": "test"}),
        ({"windows": np.int32(3)}, {"windows": 3}),
        ({"device": torch.device("cuda", 1), "dtype": torch.bfloat16}, {"device": "cuda:1", "dtype": "bfloat16"}),
        ({}, {"dataset": "wikitext-2", "split": "test", "column": None}),
        ({"dataset": "sample"}, {"split": "test"}),
        ({"dataset": "NeelNanda/pile-10k", "column": "text"}, {"split": None, "column": "text"}),
        ({"dataset": "Salesforce/wikitext:wikitext-103-raw-v1"}, {"dataset": "wikitext-103", "split": "test"}),
    ],
)
def test_what_fits_takes_the_type_of_its_field(options: dict[str, Any], expected: dict[str, Any]) -> None:
    made = TextConfig(**options)
    found = {name: getattr(made, name) for name in expected}
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


def test_lists_and_arrays_become_tuples_and_whole_numbers_floats() -> None:
    assert tokenwise.Config(sweep_ranks=[2, 4], classes=np.array(["linear"]), replaced=["linear"]) == tokenwise.Config(  # type: ignore[arg-type]
        sweep_ranks=(2, 4), classes=("linear",), replaced=("linear",)
    )
    assert type(continuity.Config(outlier_share=0).outlier_share) is float
    assert type(communities.Config(resolution=np.float32(2)).resolution) is float  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tokenwise.Config(classes=("linera",)), ("classes=", "got 'linera'", "did you mean linear?")),
        (lambda: tokenwise.Config(classes="linear"), ("must be a list, got 'linear'", "pass classes=['linear']")),
        (lambda: tokenwise.Config(classes=()), ("classes= must name at least one",)),
        (lambda: tokenwise.Config(replaced=("alone",), classes=("mean",)), ("'alone' is in replaced= but not in",)),
        (lambda: tokenwise.Config(sweep=1), ("sweep= must be true or false, got 1",)),
        (lambda: tokenwise.Config(replacement="all"), ("one of none, one, both, got 'all': choose one",)),
        (lambda: tokenwise.Config(sweep_ranks=(1, 2.5)), ("sweep_ranks= must be a whole number, got 2.5",)),
        (lambda: tokenwise.Config(thresholds={}), ("thresholds= must be a Thresholds, got {}",)),
        (
            lambda: tokenwise.Config(thresholds=tokenwise.config.Thresholds(threshold_documents="12")),
            ("thresholds= must be a whole number, got '12'",),
        ),
        (lambda: dynamics.Config(windows="24"), ("windows= must be a whole number, got '24'",)),
        (lambda: dynamics.Config(windows=True), ("windows= must be a whole number, got True",)),
        (lambda: dynamics.Config(kreiss_layers=-1), ("kreiss_layers= must be at least 0, got -1",)),
        (lambda: dynamics.Config(symmetrised_ov=True, interventions=False), ("symmetrised_ov= is an intervention",)),
        (lambda: communities.Config(edges="sparse"), ("edges= must be one of signed, absolute, partial",)),
        (lambda: communities.Config(resolution=float("nan")), ("resolution= must be a number, got nan",)),
        (lambda: communities.Config(resolution=0.0), ("resolution= must be positive, got 0.0",)),
        (lambda: communities.Config(method="louvain", objective="modularity"), ("Louvain cannot do",)),
        (lambda: communities.Config(dynamics=3), ("dynamics= must be a path, got 3",)),
        (lambda: continuity.Config(subspaces=(0, 1)), ("subspaces=", "got (0, 1)")),
        (lambda: continuity.Config(outlier_share=1.0), ("outlier_share=", "got 1.0")),
        (lambda: causes.Config(arms=("fulll",)), ("arms=", "got 'fulll'", "did you mean full?")),
        (lambda: causes.Config(dataset="pile"), ("dataset= must be wikitext-2, wikitext-103, sample", "got 'pile'")),
        (lambda: Config(dtype="int8"), ("dtype= must be one of float32", "got 'int8': choose one")),
        (lambda: Config(device="cude"), ("device= must be cpu, cuda, cuda:1, mps", "got 'cude'")),
        (lambda: Config(device=0), ("device= must be text, got 0",)),
        (lambda: Config(seed=None), ("seed= must be a whole number, got None",)),
        (lambda: ModelConfig(layers="0-3"), ("all or numbers like 0,5,10, got '0-3'",)),
        (lambda: ModelConfig(layers=[0.5]), ("layers=", "got [0.5]", "pass layers=[0, 5, 10]")),
        (lambda: ModelConfig(layers=True), ("layers=", "got True")),
        (lambda: ModelConfig(layers=[]), ("layers=", "got []")),
        (lambda: ModelConfig(random_init=0, shuffled_weights=0), ("only one control",)),
        (lambda: TextConfig(window_length=1), ("window_length= must be at least 2, got 1",)),
        (lambda: TextConfig(split="dev"), ("split= of wikitext-2 must be one of train, validation, test, got 'dev'",)),
        (lambda: TextConfig(dataset="wikitxt-2"), ("got 'wikitxt-2': did you mean wikitext-2?",)),
        (lambda: TextConfig(text="a.txt", dataset="sample"), ("got data set sample and file a.txt",)),
        (lambda: TextConfig(text="a.txt", column="text"), ("column=", "'text' and a.txt: leave it out")),
        (lambda: TextConfig(column="text"), ("column=", "'text' and wikitext-2")),
    ],
)
def test_what_is_wrong_is_refused_when_it_is_given(make: Callable[[], object], words: tuple[str, ...]) -> None:
    refused(make, *words)


def test_a_value_that_is_long_is_shortened() -> None:
    message = refused(lambda: Config(seed=torch.zeros(100, 100)), "seed= must be a whole number, got tensor([[0., 0.")
    assert len(message) < 150


@pytest.mark.parametrize("name", sorted(analyses._ANALYSES))
def test_help_explains_every_field(name: str) -> None:
    kind = analyses.config_of(name)
    shown = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    section = shown[shown.index("Attributes:") :]
    for field in fields(kind):
        assert re.search(rf"^ \|      {field.name}: \S+ \S+", section, re.MULTILINE), field.name
    assert shown.index(" |  Attributes:") > shown.index((kind.__doc__ or "").splitlines()[0])


def test_fields_of_one_s_own_are_explained_and_inherited_ones_too() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Options(Config):
        """Count.

        More of it.

        Raises:
            InputError: If it is wrong.
        """

        numbers: Annotated[tuple[str, ...], Among(("one", "two"))] = ("one",)
        """Which numbers."""
        bare: int = 0
        seed: int = 3
        """Another seed."""

    text = Options.__doc__
    assert text is not None
    lines = text.splitlines()
    assert lines[:4] == ["Count.", "", "More of it.", ""]
    assert lines[4:9] == [
        "Attributes:",
        "    device: Where it is computed: cpu, cuda, cuda:1, mps.",
        "    dtype: Number format of the weights and of the states.",
        "    seed: Another seed.",
        "    numbers: Which numbers.",
    ]
    assert lines[-2:] == ["Raises:", "    InputError: If it is wrong."]
    refused(lambda: Options(numbers=("three",)), "must be among one, two, got 'three': leave it out")


def test_where_there_is_no_source_the_docstring_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(kind: type) -> str:
        raise OSError

    monkeypatch.setattr(own_fields.inspect, "getsource", nowhere)

    class Options(Config):
        """Typed at a prompt."""

        number: int = 0
        """A number."""

    assert Options.__doc__ == "Typed at a prompt."
