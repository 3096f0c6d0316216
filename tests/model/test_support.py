"""What rows state, against what short passes of tiny models show."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

from probe.model import HuggingFaceModel, load_model, support
from probe.model.architectures import ARCHITECTURES, Layout, SitePath
from probe.model.architectures.layout import separate
from tests.architectures import zoo
from tests.plant.tiny import tiny_model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_pass_bears_out_every_row(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_model(zoo.tiny(name))
    assert isinstance(model, HuggingFaceModel)
    assert support.unconfirmed(model) == ()


def wrong(**changes: object) -> Layout:
    """The row of GPT-2 with an error in its kind of block."""
    row = ARCHITECTURES["gpt2"]
    return replace(row, kinds=(replace(row.kinds[0], **changes),))  # type: ignore[arg-type]


GPT2 = ARCHITECTURES["gpt2"].kinds[0]


@pytest.mark.guards(
    "what is stated of an architecture holds in a pass",
    when="a model is loaded",
    gives="what the pass shows is used, and the difference named",
)
@pytest.mark.parametrize(
    ("row", "words"),
    [
        (replace(ARCHITECTURES["gpt2"], blocks="transformer.layers"), "blocks is transformer.h"),
        (replace(ARCHITECTURES["gpt2"], embedding="wte"), "embedding is transformer.wte, not wte"),
        (replace(ARCHITECTURES["gpt2"], final_norm="transformer.norm"), "final_norm is transformer.ln_f"),
        (replace(ARCHITECTURES["gpt2"], head="head"), "head is lm_head, not head"),
        (wrong(sites={**GPT2.sites, "hook_mlp_out": SitePath("ffn")}), "these blocks have no ffn"),
        (wrong(sites={**GPT2.sites, "hook_resid_mid": SitePath("ln_2")}), "hook_resid_mid is not the output of ln_2"),
        (wrong(form=replace(GPT2.form, mlp_norm="norm")), "these blocks have no norm"),  # type: ignore[type-var]
        (wrong(projections={**GPT2.projections, **separate(up="mlp.fc")}), "the matrix up is not at mlp.fc"),
        (
            wrong(projections={**GPT2.projections, **separate(down="mlp.c_fc")}),
            "does not write to a stream of width 32",
        ),
    ],
)
def test_an_error_in_a_row_is_named(row: Layout, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "ARCHITECTURES", {"gpt2": row})
    monkeypatch.setattr("probe.model.adapters.ARCHITECTURES", {"gpt2": row})
    found = support.unconfirmed(tiny_model("gpt2"))
    assert any(words in phrase for phrase in found), found
