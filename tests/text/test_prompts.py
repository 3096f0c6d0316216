"""Prompts as rows of tokens, and positions by name, against the tokenizer's own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from probe.model import LanguageModel, load_model
from probe.text import Prompts, Substring, as_rows, load_prompts, load_windows
from tests.plant.refusing import refused
from tests.plant.tiny import tiny_module, tiny_tokenizer


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model(tiny_module("llama"), tokenizer=tiny_tokenizer())


def words(model: LanguageModel, prompts: Prompts, which: Any) -> list[str]:
    rows, positions = prompts.chosen(which)
    return [
        model.tokenizer.decode([int(prompts.ids[row][position])])
        for row, position in zip(rows.tolist(), positions.tolist(), strict=True)
    ]


def test_strings_keep_their_lengths(model: LanguageModel) -> None:
    texts = ["one two", "three", "one six"]
    prompts = load_prompts(model, texts)
    first = [] if model.bos_id is None else [model.bos_id]
    assert [row.tolist() for row in prompts.ids] == [first + model.encode(text) for text in texts]
    assert prompts.texts == tuple(texts)
    assert prompts.document.tolist() == [0, 1, 2]
    assert [rows.tolist() for rows, _ in prompts.groups()] == [[0, 2], [1]]
    assert all(torch.equal(tokens[0], prompts.ids[rows[0]]) for rows, tokens in prompts.groups())
    refused(lambda: prompts.tokens, "one length", "groups()")


@pytest.mark.parametrize(
    "given",
    [
        [5, 6, 7],
        [[5, 6, 7]],
        torch.tensor([5, 6, 7]),
        torch.tensor([[5, 6, 7]], dtype=torch.int32),
        np.array([[5, 6, 7]]),
        [torch.tensor([5, 6, 7])],
        [np.array([5, 6, 7])],
    ],
    ids=lambda given: type(given).__name__,
)
def test_tokens_come_in_any_form(model: LanguageModel, given: Any) -> None:
    prompts = as_rows(model, given)
    assert [row.tolist() for row in prompts.ids] == [[5, 6, 7]]
    assert prompts.ids[0].dtype is torch.int64


def test_substrings_are_found_by_their_characters(model: LanguageModel) -> None:
    prompts = load_prompts(model, ["The Eiffel Tower is in", "Where is the Eiffel Tower?"])
    text = "Eiffel Tower"
    whole = "".join(words(model, prompts, Substring(text, take="all")))
    assert whole == 2 * text
    assert words(model, prompts, Substring(text)) == ["r", "r"]
    assert words(model, prompts, Substring(text, take="first")) == ["E", "E"]
    assert prompts.positions("last").tolist() == [[len(row) - 1] for row in prompts.ids]
    assert prompts.positions([-1, 0]).tolist() == [[len(row) - 1, 0] for row in prompts.ids]


def test_a_substring_that_stands_twice_must_be_chosen(model: LanguageModel) -> None:
    prompts = load_prompts(model, "in and in")
    refused(lambda: prompts.positions(Substring("in")), "stands 2 times", "occurrence=0")
    one, two = (int(prompts.positions(Substring("in", occurrence=index))) for index in (0, 1))
    assert two - one == len("in and ")
    refused(lambda: prompts.positions(Substring("in", occurrence=2)), "below 2")
    refused(lambda: prompts.positions(Substring("out")), "not in the text of prompt 0")
    refused(lambda: prompts.positions("out"), 'Substring("out")'.replace('"', "'"))


def test_a_part_of_a_character_is_found_in_the_token_before() -> None:
    """Spans of no characters are dropped; where nothing overlaps, the last token that begins before has it."""
    spans = [(0, 0), (0, 1), (1, 2), (2, 2), (4, 6)]
    assert Substring("c", take="all").tokens("abcdef", spans, 0) == [2]
    assert Substring("ab", take="all").tokens("abcdef", spans, 0) == [1, 2]
    assert Substring("e").tokens("abcdef", spans, 0) == [4]


def test_counted_positions_are_those_of_windows(model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" = A = \n" + "some words " * 40, encoding="utf-8")
    windows = load_windows(model, text=tmp_path / "text.txt", windows=3, window_length=16)
    rows, positions = windows.chosen("counted")
    assert torch.equal(torch.stack([rows, positions], 1), windows.counted().nonzero())
    refused(lambda: windows.positions(Substring("some")), "windows of text.txt", "load_prompts")


def test_a_chat_is_framed_once_by_its_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model = load_model(tiny_module("llama"), tokenizer=tokenizer)
    chat = [{"role": "user", "content": "Where is it?"}]
    prompts = load_prompts(model, [chat, [*chat, {"role": "assistant", "content": "Here."}]])
    assert prompts.texts == ("[user]Where is it?[assistant]", "[user]Where is it?[assistant]Here.")
    assert prompts.ids[0].tolist() == model.encode(str(prompts.texts[0]))
    assert load_prompts(model, chat, reply=False).texts == ("[user]Where is it?",)
    plain = load_model(tiny_module("llama"), tokenizer=tiny_tokenizer())
    refused(lambda: load_prompts(plain, chat), "template", "as a string")


def test_a_continuation_is_the_most_probable_at_each_step(model: LanguageModel) -> None:
    prompts = load_prompts(model, ["one two", "three"], generate=4)
    starts = load_prompts(model, ["one two", "three"]).ids
    for start, row, count in zip(starts, prompts.ids, prompts.generated, strict=True):
        ids = start.clone()
        with torch.no_grad():
            for _ in range(int(count)):
                ids = torch.cat([ids, model.module(ids[None]).logits[0, -1].argmax()[None]])
        assert torch.equal(ids, row)
    assert all(
        spans is not None and len(spans) == len(ids) for spans, ids in zip(prompts.spans, prompts.ids, strict=True)
    )


def test_files_hold_strings_prompts_and_chats(model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = ["plain", {"prompt": "by key"}, {"text": "text", "other": 3}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert load_prompts(model, path).texts == ("plain", "by key", "text")
    assert load_prompts(model, str(path)).texts == load_prompts(model, path).texts
    refused(lambda: load_prompts(model, path, column="question"), "'question'", "line 2", "column=")
    path.write_text("{", encoding="utf-8")
    refused(lambda: load_prompts(model, path), "line 1", "JSON")
    refused(lambda: load_prompts(model, tmp_path / "none.jsonl"), "readable")


@pytest.mark.guards("prompts are of the model", when="tokens enter", says="at least one prompt, got none")
def test_what_is_no_prompt_is_refused(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of types
    refused(lambda: load_prompts(model, []), "at least one prompt")
    refused(lambda: load_prompts(model, [[]]), "prompt 0", "at least one token")
    refused(lambda: load_prompts(model, [5.5, 6.5]), "got")
    refused(lambda: load_prompts(model, torch.tensor([0.5, 1.5])), "integers", "float32")
    refused(lambda: load_prompts(model, [[5, 600_000]]), "token ids must lie")
    refused(lambda: load_prompts(model, torch.zeros(1, 1, 3, dtype=torch.int64)), "(1, 1, 3)")
    refused(lambda: load_prompts(model, "a " * 80), "64 positions")
    refused(lambda: load_prompts(model, 3), "int")  # type: ignore[arg-type]
    refused(lambda: load_prompts(load_model(tiny_module("llama")), "text"), "tokenizer")
    refused(lambda: load_prompts(model, "a").positions([5]), "[0, ")
    refused(lambda: load_prompts(model, "a").positions([0.5]), "integers")
    refused(lambda: load_prompts(model, ["in", "in in"]).positions(Substring("in", take="all")), "prompt 1")
