from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probe import replay
from probe.errors import InputError
from probe.jacobian import block_jacobian, iter_block_jacobians, operator, site_jacobian
from probe.model import HuggingFaceModel, LanguageModel, load_model, require_tokens, require_windows
from probe.stream import capture
from tests.plant.tiny import VOCABULARY, tiny_model, tiny_module, tiny_tokenizer, tiny_tokens

PAD = 258
ENTRIES: dict[str, Callable[[LanguageModel, Any], Any]] = {
    "forward": lambda model, tokens: model.forward(tokens),
    "final_states": lambda model, tokens: model.final_states(tokens),
    "embed": lambda model, tokens: model.embed(tokens),
    "capture": lambda model, tokens: capture(model, tokens),
    "record": lambda model, tokens: replay.record(model, tokens, torch.zeros((2, 1), dtype=torch.int64)),
    "block_jacobian": lambda model, tokens: block_jacobian(model, tokens, 0, [0]),
    "iter_block_jacobians": lambda model, tokens: list(iter_block_jacobians(model, tokens, [0], [0])),
    "site_jacobian": lambda model, tokens: site_jacobian(
        model, tokens, "blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", [0]
    ),
    "operator": lambda model, tokens: operator(model, tokens, 0, 0),
}
WRONG: dict[str, tuple[Any, str]] = {
    "an id too large": (torch.tensor([[1, 2], [3, VOCABULARY]]), f"must lie in 0 … {VOCABULARY - 1} for"),
    "a negative id": (torch.tensor([[1, 2], [-1, 3]]), "got -1"),
    "floats": (torch.ones(2, 4), "integers.* float32"),
    "bool": (torch.ones(2, 4, dtype=torch.bool), "integers.* bool"),
    "three axes": (tiny_tokens()[None], "two axes|2 axes"),
    "no windows": (tiny_tokens()[:0], "at least one"),
    "no positions": (tiny_tokens()[:, :0], "at least one"),
}
WINDOWS_ONLY: dict[str, tuple[Any, str]] = {
    "one window without its axis": (tiny_tokens()[0], r"pass tokens\[None\]"),
}
"""What the passes of a model refuse, and all else takes."""


@pytest.fixture(scope="module")
def llama() -> HuggingFaceModel:
    return tiny_model("llama")


@pytest.fixture
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users have no checks of types."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.guards(
    "tokens are (windows, positions) of integers in the vocabulary, wherever they enter",
    when="tokens enter",
    says="token ids must lie in 0 … … for …, got …: encode the text with this model's own tokenizer",
)
@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_not_windows_of_ids_is_refused_wherever_it_enters(
    llama: HuggingFaceModel, entry: str, wrong: str
) -> None:
    tokens, words = WRONG[wrong]
    with pytest.raises(InputError, match=words) as caught:
        ENTRIES[entry](llama, tokens)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize("given", WINDOWS_ONLY)
@pytest.mark.parametrize("entry", ENTRIES)
def test_passes_take_windows_and_all_else_what_can_be_made_windows(
    llama: HuggingFaceModel, entry: str, given: str
) -> None:
    tokens, words = WINDOWS_ONLY[given]
    if entry in ("forward", "final_states", "embed"):
        with pytest.raises(InputError, match=words):
            ENTRIES[entry](llama, tokens)
    elif entry == "record":
        rows = torch.atleast_2d(torch.as_tensor(tokens))
        assert torch.equal(replay.record(llama, tokens, [0]).tokens, rows)
    else:
        ENTRIES[entry](llama, tokens)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([torch.int64, torch.int32, torch.int16, torch.int8]))
def test_ids_of_the_vocabulary_pass_and_no_others(llama: HuggingFaceModel, data: st.DataObject, dtype: Any) -> None:
    last = min(torch.iinfo(dtype).max, VOCABULARY + 40)
    ids = data.draw(st.lists(st.integers(-40, last), min_size=4, max_size=4))
    tokens = torch.tensor(ids, dtype=dtype).reshape(2, 2)
    if all(0 <= index < VOCABULARY for index in ids):
        found = require_tokens(llama, tokens)
        assert found.dtype is torch.int64
        assert found.flatten().tolist() == ids
    else:
        with pytest.raises(InputError, match="token ids must lie in"):
            require_tokens(llama, tokens)


@pytest.mark.guards("tokens are integers of any width", when="tokens enter", gives="the states of int64")
def test_any_integers_give_the_states_of_int64(llama: HuggingFaceModel) -> None:
    tokens = tiny_tokens(2, 4) // 2
    expected = llama.forward(tokens)
    for dtype in (torch.int32, torch.int16, torch.int8):
        assert torch.equal(llama.forward(tokens.to(dtype)), expected)


@pytest.mark.guards(
    "the embedding has a row for each id, whatever the head has",
    when="tokens enter",
    says="token ids must lie in 0 … … for …, got …",
)
def test_the_embedding_says_which_ids_there_are() -> None:
    """An id is looked up in the embedding; a head that was cut or filled up has another number of rows."""
    module: Any = tiny_module("llama", tie_word_embeddings=False)
    module.lm_head = torch.nn.Linear(32, VOCABULARY - 8, bias=False)
    model = load_model(module)
    last = torch.full((1, 3), VOCABULARY - 1)
    assert torch.isfinite(model.forward(last)).all()
    with pytest.raises(InputError, match=f"got {VOCABULARY}"):
        model.forward(last + 1)


# Padding


def padded(windows: list[int]) -> Tensor:
    """Windows that begin with so many pad tokens."""
    tokens = tiny_tokens(len(windows), 6)
    for window, count in enumerate(windows):
        tokens[window, :count] = PAD
    return tokens


BEGINNINGS = [name for name in ENTRIES if name not in ("forward", "final_states", "embed")]


@pytest.mark.guards(
    "no window begins with padding",
    when="tokens enter",
    says=(
        "a window must not begin with padding, and window … begins with … of the pad token …: pass "
        "windows of one length without padding, or each text by itself"
    ),
)
@pytest.mark.parametrize("entry", BEGINNINGS)
def test_a_window_that_begins_with_padding_is_refused(entry: str) -> None:
    model = tiny_model("llama", with_tokenizer=True)
    with pytest.raises(InputError, match="window 1 begins with 2 of the pad token 258") as caught:
        ENTRIES[entry](model, padded([0, 2]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("counts", [[1], [0, 6], [3, 3], [0, 0, 5]])
def test_padding_is_told_from_the_tokenizer_or_the_configuration(counts: list[int]) -> None:
    tokens = padded(counts)
    first = next(window for window, count in enumerate(counts) if count)
    for model in (tiny_model("llama", with_tokenizer=True), tiny_model("opt"), tiny_model("llama", pad_token_id=PAD)):
        with pytest.raises(InputError, match=f"window {first} begins with {counts[first]} of the pad token"):
            require_windows(model, tokens)


@pytest.mark.guards(
    "a pad token that ends or begins texts, too, is no padding",
    when="tokens enter",
    gives="the windows as they are",
)
def test_a_pad_token_that_is_something_else_too_is_no_padding() -> None:
    """GPT-2 and Pythia begin texts with the token that fills them up; a byte is text wherever it stands."""
    ends, text = tiny_tokenizer(), tiny_tokenizer()
    ends.pad_token = ends.eos_token
    for model, pad in {
        load_model(tiny_module("gpt2"), tokenizer=ends): 257,
        tiny_model("gpt2", pad_token_id=257): 257,
        tiny_model("gpt2", pad_token_id=256): 256,
        tiny_model("gpt2", pad_token_id=None): PAD,
        tiny_model("gpt2", pad_token_id=PAD, eos_token_id=[257, PAD]): PAD,
    }.items():
        tokens = tiny_tokens(2, 6)
        tokens[:, 0] = pad
        assert torch.equal(require_windows(model, tokens), tokens)
    ordinary = load_model(tiny_module("gpt2", pad_token_id=7), tokenizer=text)  # the tokenizer says what 7 is
    assert torch.equal(require_windows(ordinary, torch.full((1, 3), 7)), torch.full((1, 3), 7))


@pytest.mark.guards("padding stands behind a text", when="tokens enter", gives="the states before it unchanged")
def test_padding_behind_a_text_changes_nothing_before_it() -> None:
    model = tiny_model("llama", with_tokenizer=True)
    tokens = tiny_tokens(2, 8)
    filled = tokens.clone()
    filled[:, 5:] = PAD
    site = "blocks.3.hook_resid_post"
    one, other = (capture(model, each, sites=[site])[site][:, :5] for each in (tokens, filled))
    torch.testing.assert_close(one, other)


def test_one_token_inputs_may_be_of_any_token() -> None:
    """A context "alone" has windows of one token, whichever it is; `alone` without tokens runs on id 0."""
    model = tiny_model("opt", pad_token_id=0)
    tokens = tiny_tokens(2, 6) + 1
    tokens[0, 3] = 0
    recorded = replay.record(model, tokens, torch.tensor([[3], [4]])).alone()
    assert recorded.tokens.flatten().tolist() == [0, int(tokens[1, 4])]
    assert replay.alone(model, 1, recorded.states[1][:, 0]).shape == (2, model.d_model)
