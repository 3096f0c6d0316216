"""A lens against reverse-mode differentiation of the whole network, closed forms, and TransformerLens."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from probe import lens, load_model, replay
from probe.errors import InputError
from probe.jacobian import JacobianOptions, later_jacobians
from probe.lens import JacobianLens
from tests.architectures import zoo
from tests.lens.oracle import document
from tests.plant.tiny import ARCHITECTURES, tiny_model, tiny_module, tiny_tokens
from tests.stream.test_peers import bridge_of

FIRST = 3
TOKENS = tiny_tokens()[:, :12]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fit_is_the_mean_of_the_whole_networks_jacobian(architecture: str) -> None:
    module = tiny_module(architecture)
    fitted = lens.fit(load_model(module), TOKENS[:2], skip_first=FIRST, layers=[0, 2], quiet=True)
    for layer in (0, 2):
        expected = [document(module, tokens, layer, 3, FIRST, None) for tokens in TOKENS[:2]]
        mean = torch.stack(expected).mean(0)
        assert relative(fitted[layer], mean) < 1e-5
        spread = torch.stack(expected).std(0, correction=0)
        assert fitted.spread is not None
        assert relative(fitted.spread[fitted.layers.index(layer)], spread) < 1e-4
        row = fitted.layers.index(layer)
        norms = torch.tensor([float(one.norm()) for one in expected])
        torch.testing.assert_close(fitted.documents["norm"][:, row].float(), norms, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "qwen3_next", "jamba", "gemma4_text"])
def test_mixtures_latents_hybrids_and_shared_keys(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that are not installed
        module, tokens = zoo.tiny(name, layers=4), TOKENS[0, :9] % 90
        fitted = lens.fit(load_model(module), tokens[None], skip_first=FIRST, layers=1, quiet=True)
        expected = document(module, tokens, 1, 3, FIRST, None, singly=True)
    assert relative(fitted[1], expected) < 1e-4


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3", "mamba2"])
@pytest.mark.parametrize("horizon", [0, 2])
def test_a_horizon_and_the_same_position(architecture: str, horizon: int) -> None:
    module = tiny_module(architecture)
    model = load_model(module)
    fitted = lens.fit(model, TOKENS[:1], skip_first=FIRST, targets=horizon, layers=1, to_layer=2, quiet=True)
    assert fitted.provenance["targets"] == (horizon or "same")
    assert relative(fitted[1], document(module, TOKENS[0], 1, 2, FIRST, horizon)) < 1e-5


def test_some_sources_are_those_evenly_spaced() -> None:
    model = tiny_model("llama")
    every = lens.own_lens(model, TOKENS[:1], [FIRST, 7, 10], layers=[1])[0, :, 0].mean(0)
    fitted = lens.fit(model, TOKENS[:1], skip_first=FIRST, targets="same", sources=3, layers=1, quiet=True)
    assert relative(fitted[1], every.double()) < 1e-5


def test_a_context_that_ends_sooner_has_no_later_targets() -> None:
    """With attention silenced a network is tokenwise, and later targets add nothing."""
    module: Any = tiny_module("llama")
    with torch.no_grad():
        for block in module.model.layers:
            block.self_attn.o_proj.weight.zero_()
    model = load_model(module)
    later = lens.fit(model, TOKENS, skip_first=FIRST, quiet=True)
    same = lens.fit(model, TOKENS, skip_first=FIRST, targets="same", quiet=True)
    torch.testing.assert_close(later.jacobians, same.jacobians, rtol=1e-4, atol=1e-5)


def test_a_linear_network_is_known_in_closed_form() -> None:
    """Blocks that add nothing are the identity: α = 1, all of J is α I, and no document differs."""
    module: Any = tiny_module("llama")
    with torch.no_grad():
        for block in module.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    fitted = lens.fit(load_model(module), TOKENS, skip_first=FIRST, quiet=True)
    torch.testing.assert_close(fitted.jacobians, torch.eye(32).expand(3, -1, -1))
    assert fitted.alpha.tolist() == pytest.approx([1, 1, 1])
    assert fitted.identity_share.tolist() == pytest.approx([1, 1, 1])
    assert fitted.spread is not None
    assert float(fitted.spread.abs().max()) < 1e-6


def test_statistics_leave_a_lens_of_double_precision_as_it_is() -> None:
    matrices = torch.randn(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = JacobianLens((0, 1), matrices.clone(), 2, 1)
    given.to_dataset()
    assert torch.equal(given.jacobians, matrices)


def test_planted_alpha_and_rank_are_recovered() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 40, 3, generator=generator)
    core = left @ right.T
    core -= core.diagonal().mean() * torch.eye(40)
    planted = JacobianLens((0,), (0.7 * torch.eye(40) + core)[None], 1, 5)
    data = planted.to_dataset()
    assert float(data.alpha[0]) == pytest.approx(0.7, abs=1e-5)
    squares = torch.linalg.svdvals(core.double()) ** 2
    assert float(data.participation_ratio[0]) == pytest.approx(float(squares.sum() ** 2 / (squares**2).sum()), rel=1e-4)
    share = 0.7**2 * 40 / float((planted[0].double() ** 2).sum())
    assert float(data.identity_share[0]) == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "mamba"])
def test_transformer_lens_fits_the_same(architecture: str) -> None:
    from transformer_lens.tools.analysis import jacobian_lens as peer

    module = tiny_module(architecture)
    bridge = bridge_of(module)
    bridge.to_tokens = lambda tokens, **_: tokens
    theirs, count = peer._fit_transport_matrices(
        bridge,
        [tokens[None] for tokens in TOKENS],
        source_layers=[0, 1, 2],
        dim_batch=8,
        max_seq_len=128,
        skip_first_positions=FIRST,
        show_progress=False,
        backward_provider=peer._ordinary_vjp,
    )
    ours = lens.fit(load_model(module), TOKENS, skip_first=FIRST, quiet=True)
    assert count == ours.n_documents
    for layer in (0, 1, 2):
        assert relative(ours[layer], theirs[layer].double()) < 1e-5


def test_rows_in_parts_and_other_chunks_change_nothing_but_rounding() -> None:
    for architecture in ("llama", "phi", "mamba"):
        model = tiny_model(architecture)
        recorded = replay.record(model, TOKENS[:1, :-1], torch.arange(FIRST, 11))
        found = []
        for options in (JacobianOptions(), JacobianOptions(chunk=5), JacobianOptions(memory=8 * 32 * 12 * 8)):
            whole = torch.zeros(8, 32, 32)
            for _, rows, gradients in later_jacobians(recorded, FIRST, [1], options=options):
                whole[:, rows] = gradients
            found.append(whole)
        for other in found[1:]:
            assert relative(other, found[0].double()) < 1e-5


def test_blocks_that_are_given_more_than_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the model's own pass is differentiated, with the same result where blocks are given nothing more."""
    model = tiny_model("llama")
    expected = lens.fit(model, TOKENS[:1], skip_first=FIRST, quiet=True)
    monkeypatch.setattr(replay, "is_chained", lambda _: False)
    found = lens.fit(model, TOKENS[:1], skip_first=FIRST, quiet=True)
    torch.testing.assert_close(found.jacobians, expected.jacobians, rtol=1e-4, atol=1e-5)


def test_a_fit_goes_on_where_it_was_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = tiny_model("gpt2"), tmp_path / "fit.safetensors"
    whole = lens.fit(model, TOKENS, skip_first=FIRST, quiet=True)
    real, done = lens.document_jacobian, list[int]()

    def counted(*args: Any, **named: Any) -> Tensor:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args, **named)

    monkeypatch.setattr(lens.fitting, "document_jacobian", counted)
    with pytest.raises(KeyboardInterrupt):
        lens.fit(model, TOKENS, skip_first=FIRST, checkpoint=file, quiet=True)
    with pytest.raises(InputError, match=r"must be of the same fit, and .* differs in skip_first"):
        lens.fit(model, TOKENS, skip_first=FIRST + 1, checkpoint=file, quiet=True)
    with pytest.raises(InputError, match="differs in its documents"):
        lens.fit(model, TOKENS[:2], skip_first=FIRST, checkpoint=file, quiet=True)
    monkeypatch.setattr(lens.fitting, "document_jacobian", real)
    resumed = lens.fit(model, TOKENS, skip_first=FIRST, checkpoint=file, quiet=True)
    assert torch.equal(resumed.jacobians, whole.jacobians)
    assert resumed.spread is not None
    assert whole.spread is not None
    assert torch.equal(resumed.spread, whole.spread)
    assert not file.exists()


def test_a_merge_is_the_fit_of_all_documents() -> None:
    model = tiny_model("gpt_neox")
    whole = lens.fit(model, TOKENS, skip_first=FIRST, quiet=True)
    parts = [lens.fit(model, TOKENS[part], skip_first=FIRST, quiet=True) for part in (slice(0, 1), slice(1, None))]
    merged = lens.merge(parts)
    assert merged.n_documents == len(TOKENS)
    torch.testing.assert_close(merged.jacobians, whole.jacobians, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged.spread, whole.spread, rtol=1e-4, atol=1e-5)
    assert torch.equal(merged.documents["norm"], whole.documents["norm"])
    with pytest.raises(InputError, match="disjoint"):
        lens.merge([whole, parts[0]])
    with pytest.raises(InputError, match="differ in skip_first"):
        lens.merge([parts[0], lens.fit(model, TOKENS[1:], skip_first=2, quiet=True)])
    with pytest.raises(InputError, match="at least one lens"):
        lens.merge([])


def test_short_documents_are_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    rows = [TOKENS[0].tolist(), TOKENS[1, : FIRST + 1].tolist()]
    fitted = lens.fit(model, rows, skip_first=FIRST, layers=2, quiet=True)
    assert fitted.n_documents == 1
    assert "1 of 2 documents have no position that counts" in caplog.text
    with pytest.raises(InputError, match="at least 5 tokens, skip_first"):
        lens.fit(model, rows[1:], skip_first=FIRST, quiet=True)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"layers": [3]}, "before the target"),
        ({"layers": [9]}, r"layers= must lie in 0 … 3"),
        ({"to_layer": 0}, "before the target"),
        ({"targets": -1}, 'targets= must be "later"'),
        ({"sources": 3}, "sources= must be at least 1 and is for"),
        ({"skip_first": -1}, "skip_first= must be at least 0"),
    ],
)
def test_choices_that_do_not_exist_are_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lens.fit(tiny_model("llama"), TOKENS, quiet=True, **choices)


def test_a_lens_of_another_model_is_refused() -> None:
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    fitted = lens.fit(model, TOKENS[:1], skip_first=FIRST, quiet=True)
    fitted.require(model)
    with pytest.raises(InputError, match="fitted on other weights"):
        fitted.require(other)
    dataclasses.replace(fitted, provenance={}).require(other)
    with pytest.raises(InputError, match="fitted on openai/gpt2-xl, not on"):
        dataclasses.replace(fitted, provenance={"model": "openai/gpt2-xl"}).require(model)
    with pytest.raises(InputError, match="has width 8"):
        JacobianLens((0,), torch.eye(8)[None], 1, 1).require(model)
