"""The oracles give closed forms, and what is wrong is seen as wrong."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import probe
from probe import InputError
from tests.architectures import zoo
from tests.architectures.case import CHECKS, Case, Finding, in_double, measure
from tests.architectures.matrices import explained
from tests.architectures.oracle import NotADecoderError, Oracle, find_layers, in_float64
from tests.architectures.survey import Result, counted, examine, judge, read, restored, survey

WIDTH = 6


class Layer(nn.Module):
    """h + W h + the mean of the states so far, squared entry by entry: J(t) = I + W + diag(2 mean) / (t + 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        length = torch.arange(1, hidden_states.shape[1] + 1, dtype=hidden_states.dtype)[:, None]
        mean = hidden_states.cumsum(1) / length
        return hidden_states + hidden_states @ self.weight.T + mean**2, None


class Decoder(nn.Module):
    """Layers over an embedding, run in a given order."""

    def __init__(self, order: tuple[int, ...] = (0, 1)) -> None:
        super().__init__()
        self.embedding, self.layers, self.order = nn.Embedding(96, WIDTH), nn.ModuleList([Layer(), Layer()]), order

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        state = self.embedding(input_ids)
        for index in self.order:
            state, _ = self.layers[index](state)
        return SimpleNamespace(logits=state)


def test_the_oracle_gives_a_jacobian_that_is_known():
    torch.manual_seed(0)
    module = Decoder()
    tokens, positions = zoo.questions()
    oracle = Oracle(module, tokens)
    eye = torch.eye(WIDTH, dtype=torch.float64)
    rows = oracle.rows(positions, eye)
    for layer, found in enumerate(rows):
        weight = oracle.layers[layer].weight
        for window, column in ((0, 0), (1, 1)):
            place = int(positions[window, column])
            mean = oracle.plain.inputs[layer][window, : place + 1].mean(0)
            expected = eye + weight + torch.diag(2 * mean) / (place + 1)
            torch.testing.assert_close(found[window, column], expected)
            direction = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
            differences = oracle.columns(layer, positions, direction)[window, column]
            torch.testing.assert_close(differences, expected @ direction, rtol=1e-9, atol=1e-9)
    through = oracle.rows_through(0, positions, eye)
    torch.testing.assert_close(through, rows[1] @ rows[0])
    alone = oracle.rows_alone(positions, eye)
    state = oracle.plain.inputs[1][1, int(positions[1, 0])]
    torch.testing.assert_close(alone[1][1, 0], eye + oracle.layers[1].weight + torch.diag(2 * state))
    assert oracle.causal
    assert oracle.continuous


def test_layers_that_run_twice_are_no_stream():
    with pytest.raises(NotADecoderError, match=r"runs in the order \[0, 1, 0\]"):
        find_layers(Decoder((0, 1, 0)), zoo.questions()[0])


def test_no_float32_is_left_in_the_oracle():
    module = in_double(zoo.tiny("llama", layers=2))
    tokens, _ = zoo.questions()
    with in_float64(), torch.no_grad():
        norm = module.model.norm(torch.full((1, WIDTH * 0 + 32), 1 / 3))
    exact = (
        torch.full((1, 32), 1 / 3, dtype=torch.float64) / (1 / 9 + module.config.rms_norm_eps) ** 0.5
    ) * module.model.norm.weight
    torch.testing.assert_close(norm, exact, rtol=1e-15, atol=1e-15)
    assert torch.tensor(1.0).dtype is torch.float32
    assert module(input_ids=tokens).logits.dtype is torch.float64


@pytest.fixture(scope="module")
def llama():
    return Case(zoo.tiny("llama", layers=2), n_rows=2)


def _off(amount):
    """`probe.block_jacobian` with an error at one entry of the last block."""
    right = probe.block_jacobian

    def wrong(model, tokens, layer, *args, **kwargs):
        found = right(model, tokens, layer, *args, **kwargs)
        if layer == 1:
            found[-1, -1, 3, 4] += amount
        return found

    return wrong


def test_a_wrong_number_is_seen(llama, monkeypatch):
    assert measure(llama, "jacobian").outcome == "exact"
    monkeypatch.setattr(probe, "block_jacobian", _off(1e-3))
    for check in ("jacobian", "alone", "part", "windows"):
        finding = measure(llama, check)
        assert finding.outcome == "wrong", check
        assert "block 1" in finding.line


def test_states_and_heads_that_are_off_are_seen(llama, monkeypatch):
    right = type(llama.double).unembed
    monkeypatch.setattr(type(llama.double), "unembed", lambda self, states: 1.0001 * right(self, states))
    assert measure(llama, "head").outcome == "wrong"
    assert measure(llama, "capture").outcome == "exact"
    capture = probe.capture

    def late(model, tokens, **kwargs):
        return capture(model, tokens + 1, **kwargs)

    monkeypatch.setattr(probe, "capture", late)
    assert measure(llama, "capture").outcome == "wrong"
    assert measure(llama, "sites").outcome == "wrong"


@pytest.mark.parametrize("exchanged", ["qk", "vk", "gate-up"])
def test_matrices_under_each_others_names_are_seen(llama, exchanged):
    named = dict(llama.double.projections(1))
    assert explained(llama.oracle, 1, named) < 1e-6
    first, second = exchanged.split("-") if "-" in exchanged else exchanged
    named[first], named[second] = named[second], named[first]
    with pytest.raises(Exception, match="of block 1 is not what"):
        explained(llama.oracle, 1, named)
    named = {"o": llama.double.projections(1)["o"].flip(0).T}
    with pytest.raises(Exception, match="o of block 1 is no map of any module"):
        explained(llama.oracle, 1, named)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"q_b": lambda m: m["q_b"].roll(8, 0)}, "the queries that attention is handed"),
        ({"k_b": lambda m: m["v_b"], "v_b": lambda m: m["k_b"]}, "the keys that attention is handed"),
        ({"v_b": lambda m: m["v_b"].roll(1, 0)}, "the values that attention is handed"),
        ({"q_a": lambda m: m["kv_a"]}, "no norm of q_a gives what q_b reads"),
    ],
)
def test_matrices_of_latent_attention_under_each_others_names_are_seen(changed, said):
    # values as wide as the keys of a head without the rotary part, so that shapes alone do not tell them apart
    case = Case(zoo.tiny("deepseek_v3", layers=2, v_head_dim=8))
    named = case.double.projections(1)
    assert explained(case.oracle, 1, named) < 1e-6
    with pytest.raises(Exception, match=said):
        explained(case.oracle, 1, {**named, **{name: change(named) for name, change in changed.items()}})


@pytest.mark.parametrize(
    ("raised", "outcome", "line"),
    [
        (InputError("a model must have layers, got none: pass another"), "refused", "a model must have layers"),
        (InputError("two\nlines"), "crash", "a refusal of several lines: two lines"),
        (KeyError("blocks"), "crash", "KeyError: 'blocks'"),
    ],
)
def test_exceptions_are_told_apart(llama, monkeypatch, raised, outcome, line):
    def check(case: Case) -> float:
        raise raised

    monkeypatch.setitem(CHECKS, "planted", check)
    finding = measure(llama, "planted")
    assert finding.outcome == outcome
    assert finding.line.startswith(line)


def test_a_type_counts_under_the_worst_of_its_checks():
    exact, nothing, refused = Finding("jacobian", "exact", 1e-9), Finding("part", "nothing"), Finding("part", "refused")
    assert judge([exact, nothing])[0] == "exact"
    assert judge([exact, refused])[0] == "exact"  # not every block has parts
    assert judge([exact, Finding("continuity", "refused", line="no")]) == ("refused", "continuity: no")
    assert judge([Finding("head", "crash", line="E"), Finding("alone", "wrong", 0.5, "rows"), exact]) == (
        "wrong",
        "alone: rows (5.0e-01)",
    )
    results = [Result(name, name) for name in ("exact", "exact", "refused", "crash", "wrong", "unbuilt")]
    assert counted(results) == "2 exact, 1 refused, 1 crash, 1 wrong of 5"


def test_results_are_kept_and_a_type_that_hangs_stops_no_other(tmp_path, monkeypatch):
    def slow(case: Case) -> float:
        import time

        if case.module.config.model_type == "gpt2":
            time.sleep(60)
        return 0.0

    monkeypatch.setitem(CHECKS, "slow", slow)
    kept = tmp_path / "kept.jsonl"
    found = list(survey(["gpt2", "llama"], {"checks": ["slow"], "layers": 2}, limit=8, kept=kept))
    assert [one.outcome for one in found] == ["crash", "exact"]
    assert found[0].line == "no answer in 8 seconds"
    with kept.open("a", encoding="utf-8") as file:
        file.write('{"name": "cut o')
    assert read(kept) == {one.name: one for one in found}
    assert restored(json.loads(kept.read_text().splitlines()[1])) == found[1]


def test_models_differ_from_every_neutral_value():
    for name in ("llama", "gemma3_text", "granite", "gpt2"):
        for path, parameter in zoo.tiny(name, layers=2).named_parameters():
            assert not torch.isin(parameter, torch.tensor([0.0, 1.0])).any() or "embed" in path, f"{name}: {path}"
    assert zoo.tiny("gpt2:tie_word_embeddings").lm_head.weight is not zoo.tiny("gpt2").lm_head.weight


def test_variants_come_from_the_fields_of_a_configuration():
    assert {"attention_bias", "mlp_bias", "one_key_head", "all_key_heads", "wide_heads"} <= set(zoo.variants("llama"))
    assert zoo.variants("olmo")["clip_qkv"] == {"clip_qkv": 0.5}
    assert zoo.tiny("falcon:new_decoder_architecture").config.new_decoder_architecture
    assert set(zoo.tiny("qwen3_next").config.layer_types) == {"linear_attention", "full_attention"}
    assert examine("llama:attention_bias", ["jacobian"], layers=2).outcome == "exact"
