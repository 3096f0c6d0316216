"""Acting along lens directions: closed forms, exactness at the last block, and TransformerLens's hooks."""

from __future__ import annotations

from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

from probe import capture, intervene, lens
from probe.directions import unembedding_rows
from probe.errors import InputError
from probe.inference import spearman
from probe.lens import AffineLens, JacobianLens, LensEffect
from probe.lens.acting import ablated, steered, swapped
from probe.model import LanguageModel, load_model
from probe.patching import patch
from tests.plant.tiny import tiny_model, tiny_module, tiny_tokens
from tests.stream.test_peers import bridge_of

TOKENS = tiny_tokens(3, 12)
WIDTH, LAST = 32, 3


def some_lens(seed: int = 0) -> JacobianLens:
    """Matrices that are no model's, so that what is read off them cannot come out right by chance."""
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.eye(WIDTH) + 0.3 * torch.randn(3, WIDTH, WIDTH, generator=generator)
    return JacobianLens((0, 1, 2), matrices, LAST, 1)


def vectors_of(model: LanguageModel, given: JacobianLens, tokens: list[int], layer: int) -> Tensor:
    return unembedding_rows(model, tokens, folded=False).vectors @ given[layer].double()


def states_at(model: LanguageModel, layer: int, position: int) -> Tensor:
    stream = capture(model, TOKENS, sites=["resid_post"])
    return stream[f"blocks.{layer}.hook_resid_post"][:, position].double()


# The changes themselves


def test_what_is_ablated_has_no_part_along_any_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    states, vectors = (torch.randn(size, generator=generator).double() for size in ((5, 16), (3, 16)))
    dependent = torch.cat([vectors, vectors[:1] + vectors[1:2]])
    for given in (vectors, dependent):
        delta = ablated(states, given.expand(5, -1, -1))[:, 0]
        assert float(((states + delta) @ given.T).abs().max()) < 1e-10
        projector = vectors.T @ torch.linalg.pinv(vectors.T)
        torch.testing.assert_close(delta, -states @ projector.T, rtol=0.0, atol=1e-10)


def test_a_swap_exchanges_coordinates_and_undoes_itself() -> None:
    generator = torch.Generator().manual_seed(1)
    states, vectors = (torch.randn(size, generator=generator).double() for size in ((5, 16), (2, 16)))
    new = states + swapped(states, vectors.expand(5, -1, -1))[:, 0]
    before, after = (one @ torch.linalg.pinv(vectors) for one in (states, new))
    torch.testing.assert_close(after, before.flip(-1))
    outside = torch.eye(16).double() - torch.linalg.pinv(vectors) @ vectors
    torch.testing.assert_close(new @ outside, states @ outside)
    torch.testing.assert_close(new + swapped(new, vectors.expand(5, -1, -1))[:, 0], states)


@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.9, 0.9999])
def test_a_swap_of_unit_vectors_is_a_reflection(cosine: float) -> None:
    states = torch.randn(5, 16, generator=torch.Generator().manual_seed(2)).double()
    pair = torch.zeros(2, 16).double()
    pair[0, 0], pair[1, 0], pair[1, 1] = 1, cosine, (1 - cosine**2) ** 0.5
    w = (pair[0] - pair[1]) / (pair[0] - pair[1]).norm()
    new = states + swapped(states, pair.expand(5, -1, -1))[:, 0]
    torch.testing.assert_close(new, states - 2 * (states @ w)[:, None] * w, rtol=0.0, atol=1e-8)
    torch.testing.assert_close(new.norm(dim=-1), states.norm(dim=-1), rtol=0.0, atol=1e-8)


def test_what_steering_adds_has_the_stated_size() -> None:
    states, vectors = torch.tensor([[3.0, 4.0]]).double(), torch.tensor([[[0.0, 2.0], [1.0, 1.0]]]).double()
    found = steered(states, vectors, 0.2)[0]
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0], [0.5**0.5, 0.5**0.5]]).double())


# Predicted and measured


def act(action: str, model: LanguageModel, given: Any, tokens: list[int], **options: Any) -> LensEffect:
    found: LensEffect = getattr(lens, action)(model, TOKENS, given, tokens, **options)
    return found


@pytest.mark.parametrize("action", ["steer", "ablate", "swap"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_behind_the_last_block_the_prediction_is_exact(architecture: str, action: str) -> None:
    model = tiny_model(architecture)
    effect = act(action, model, "logit", [7, 90], layers=LAST, positions=[4, -1], read=[7, 90, 5])
    predicted, measured = effect.data["predicted"].values, effect.data["measured"].values
    assert np.abs(measured).max() > 1e-3
    np.testing.assert_allclose(predicted, measured, atol=1e-5)


def test_a_network_without_later_blocks_is_predicted_by_the_logit_lens() -> None:
    """Blocks that add nothing leave J = I: every prediction of the logit lens comes true, that of another does not."""
    module: Any = tiny_module("llama")
    with torch.no_grad():
        for block in module.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    model = load_model(module)
    effect = lens.steer(model, TOKENS, "logit", [1, 2, 3], layers=[0, 2], positions=[2, 5], strength=0.3)
    np.testing.assert_allclose(effect.data["predicted"], effect.data["measured"], atol=1e-5)
    assert effect.spearman(resamples=20).estimate == pytest.approx(1.0)
    assert effect.spearman(resamples=20, inside=True).estimate == pytest.approx(1.0)
    other = lens.steer(
        model, TOKENS, some_lens(), [1, 2, 3], layers=[0, 2], positions=[2, 5], along="logit", strength=0.3
    )
    np.testing.assert_allclose(other.data["measured"], effect.data["measured"], atol=1e-6)
    assert float(np.abs(other.data["predicted"] - effect.data["predicted"]).max()) > 1e-2


def test_a_small_change_is_predicted_by_the_contexts_own_jacobian() -> None:
    model = tiny_model("llama", scale=2.0)
    options: dict[str, Any] = {"layers": [0, 1], "positions": [3, -1], "strength": 1e-3}
    own = lens.steer(model, TOKENS, "own", [1, 2, 3, 4], **options).data
    off = float(np.abs(own["predicted"] - own["measured"]).max() / np.abs(own["measured"]).max())
    assert off < 0.02
    logit = lens.steer(model, TOKENS, "logit", [1, 2, 3, 4], along="logit", **options).data
    assert float(np.abs(logit["predicted"] - logit["measured"]).max() / np.abs(logit["measured"]).max()) > 0.1


@torch.no_grad()
def by_hand(model: LanguageModel, layer: int, position: int, delta: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """Changes of all logits, predicted and by a whole pass with the state replaced."""
    site, final = f"blocks.{layer}.hook_resid_post", states_at(model, LAST, position)
    new = (states_at(model, layer, position) + delta).float()
    run = patch(model, TOKENS, {site: new[:, None]}, positions=[position], read=[position])
    predicted = model.unembed((final + carried).float()) - model.unembed(final.float())
    return predicted, (run.after - run.before)[:, 0]


def test_each_action_is_what_is_written_down() -> None:
    model, given, tokens, layer, position = tiny_model("gpt2"), some_lens(), [11, 200], 1, 6
    states, vectors = states_at(model, layer, position), vectors_of(model, given, tokens, layer)
    basis = torch.linalg.qr(vectors.T).Q
    coordinates = states @ torch.linalg.pinv(vectors)
    deltas = {
        "ablate": -states @ basis @ basis.T,
        "swap": (coordinates.flip(-1) - coordinates) @ vectors,
    }
    for action, delta in deltas.items():
        effect = act(action, model, given, tokens, layers=layer, positions=[position])
        predicted, measured = by_hand(model, layer, position, delta, delta @ given[layer].double().T)
        np.testing.assert_allclose(effect.data["predicted"][0, :, 0], predicted[:, tokens], atol=2e-4)
        np.testing.assert_allclose(effect.data["measured"][0, :, 0], measured[:, tokens], atol=2e-4)
        size = delta.norm(dim=-1) / states.norm(dim=-1)
        np.testing.assert_allclose(effect.data["size"][0, :, 0], size, rtol=1e-4)
    effect = lens.steer(model, TOKENS, given, tokens, layers=layer, positions=[position], strength=0.2, read=[3, 4, 5])
    assert effect.data["predicted"].dims == ("layer", "prompt", "position", "direction", "token")
    for row in range(2):
        delta = 0.2 * states.norm(dim=-1)[:, None] * vectors[row] / vectors[row].norm()
        predicted, measured = by_hand(model, layer, position, delta, delta @ given[layer].double().T)
        np.testing.assert_allclose(effect.data["predicted"][0, :, 0, row], predicted[:, 3:6], atol=2e-4)
        np.testing.assert_allclose(effect.data["measured"][0, :, 0, row], measured[:, 3:6], atol=2e-4)


def test_without_tokens_to_read_each_direction_has_its_own() -> None:
    model, given = tiny_model("llama"), some_lens()
    own = lens.steer(model, TOKENS, given, [5, 9], positions=[3, -2])
    every = lens.steer(model, TOKENS, given, [5, 9], positions=[3, -2], read=[5, 9])
    assert own.data["layer"].values.tolist() == [0, 1, 2]
    assert own.data["at"].values.tolist() == [[3, 10]] * 3
    for name in ("predicted", "measured"):
        np.testing.assert_allclose(own.data[name], np.diagonal(every.data[name], axis1=-2, axis2=-1), atol=1e-6)
    assert own.data["size"].dims == own.data["predicted"].dims
    np.testing.assert_allclose(own.data["size"], 0.05, rtol=1e-4)
    assert len(own.table()) == 3 * 3 * 2 * 2


def test_prompts_of_other_lengths_keep_their_order() -> None:
    model, given = tiny_model("llama"), some_lens()
    prompts = [TOKENS[0, :9].tolist(), TOKENS[1].tolist(), TOKENS[2, :9].tolist()]
    whole = lens.ablate(model, prompts, given, [5], layers=1)
    for row, prompt in enumerate(prompts):
        alone = lens.ablate(model, [prompt], given, [5], layers=1)
        np.testing.assert_allclose(whole.data["measured"][:, row], alone.data["measured"][:, 0], atol=1e-4)
    assert whole.data["at"].values.tolist() == [[8], [11], [8]]


def test_one_position_is_not_moved_by_another_unless_they_act_together() -> None:
    model, given = tiny_model("llama"), some_lens()
    pair = lens.ablate(model, TOKENS, given, [5, 9], layers=0, positions=[3, 8])
    later = lens.ablate(model, TOKENS, given, [5, 9], layers=0, positions=[8])
    np.testing.assert_allclose(pair.data["measured"][:, :, 1], later.data["measured"][:, :, 0], atol=1e-5)
    both = lens.ablate(model, TOKENS, given, [5, 9], layers=0, positions=[3, 8], together=True)
    np.testing.assert_allclose(both.data["predicted"], pair.data["predicted"], atol=1e-5)
    np.testing.assert_allclose(both.data["measured"][:, :, 0], pair.data["measured"][:, :, 0], atol=1e-4)
    assert float(np.abs(both.data["measured"][:, :, 1] - pair.data["measured"][:, :, 1]).max()) > 1e-2


def test_other_directions_and_other_lenses() -> None:
    model, given = tiny_model("gpt2"), some_lens()
    options: dict[str, Any] = {"layers": [0, 2], "positions": [3, 5]}
    logit = lens.steer(model, TOKENS, given, [5, 9], along="logit", **options)
    rows = unembedding_rows(model, [5, 9], folded=False)
    own = lens.steer(model, TOKENS, given, [5, 9], along=rows.vectors.numpy(), **options)
    assert (logit.along, own.along) == ("logit", "given")
    for name in ("predicted", "measured"):
        np.testing.assert_allclose(logit.data[name], own.data[name], atol=1e-6)
    random = [lens.steer(model, TOKENS, given, [5, 9], along="random", seed=seed, **options) for seed in (0, 0, 1)]
    assert random[0].data.identical(random[1].data)
    assert not np.allclose(random[0].data["measured"], random[2].data["measured"])
    np.testing.assert_allclose(random[0].data["size"], 0.05, rtol=1e-4)
    affine = AffineLens(given.layers, given.jacobians, torch.randn(3, WIDTH), LAST)
    same = lens.steer(model, TOKENS, affine, [5, 9], **options)
    expected = lens.steer(model, TOKENS, given, [5, 9], **options)
    np.testing.assert_allclose(same.data["predicted"], expected.data["predicted"], atol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_transformer_lens_measures_the_same(architecture: str) -> None:
    from transformer_lens.tools.analysis.jacobian_lens import JacobianLens as Peer

    module, given = tiny_module(architecture), some_lens()
    model, bridge = load_model(module), bridge_of(module)
    peer = Peer(dict(zip(given.layers, given.jacobians, strict=True)), n_prompts=1, d_model=WIDTH)
    places: dict[str, Any] = {"layers": 1, "positions": [7]}
    theirs = {
        "steer": (peer.steering_hooks(bridge, 11, [1], alpha=0.3, positions=[7]), [11], {"strength": 0.3}),
        "ablate": (peer.ablation_hooks(bridge, [11, 200], [1], positions=[7]), [11, 200], {}),
        "swap": (peer.swap_hooks(bridge, 11, 200, [1], positions=[7]), [11, 200], {}),
    }
    for action, (hooks, tokens, options) in theirs.items():
        effect = act(action, model, given, tokens, **places, **options)
        for row, prompt in enumerate(TOKENS):
            with torch.no_grad():  # theirs scale by the median over the batch: one prompt at a time
                before = bridge(prompt[None])
                after = bridge.run_with_hooks(prompt[None], fwd_hooks=hooks)
            changed = (after - before)[0, 7, tokens].float()
            assert float(changed.abs().max()) > 1e-3
            np.testing.assert_allclose(effect.data["measured"][0, row, 0], changed, atol=1e-3, rtol=1e-3)


# The result


def test_correlations_are_those_over_the_entries() -> None:
    model = tiny_model("llama")
    effect = lens.steer(model, TOKENS, some_lens(), [5, 9, 17], positions=[3, 5], strength=0.3)
    predicted, measured = (effect.data[name].values for name in ("predicted", "measured"))
    every = spearman(predicted.ravel(), measured.ravel())
    assert abs(float(every)) < 0.95
    interval = effect.spearman(resamples=50)
    assert interval.estimate == pytest.approx(float(every), abs=1e-9)
    assert interval.n_units == 3
    assert interval.low < interval.estimate < interval.high
    inside = [float(spearman(predicted[:, row].ravel(), measured[:, row].ravel())) for row in range(3)]
    assert effect.by_document().values.tolist() == pytest.approx(inside)
    assert effect.spearman(resamples=50, inside=True).estimate == pytest.approx(float(np.mean(inside)))
    drawn = effect.plot()
    assert drawn.ax.lines[1].get_xdata().tolist() == pytest.approx(np.moveaxis(predicted, 1, 0).ravel().tolist())
    assert "spearman=" in repr(effect)


def test_nearly_parallel_directions_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    model, generator = tiny_model("llama"), torch.Generator().manual_seed(3)
    one = torch.randn(WIDTH, generator=generator).double()
    near = torch.stack([one, 3 * (one + 0.05 * torch.randn(WIDTH, generator=generator))])
    lens.swap(model, TOKENS, "logit", [5, 9], along=near, layers=[0, 1])
    assert caplog.text.count("are nearly parallel") == 1
    gain = float(torch.linalg.matrix_norm(torch.linalg.pinv(near) @ near.flip(0), 2))
    assert f"by up to {gain:.3g}" in caplog.text
    assert gain > 3
    with pytest.raises(InputError, match="must differ to be swapped"):
        lens.swap(model, TOKENS, "logit", [5, 9], along=torch.stack([one, 2 * one]), layers=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lens": "tuned"}, "lens= must be .* one of 'logit', 'own'"),
        ({"along": "later"}, "along= must be one of 'lens', 'logit', 'random'"),
        ({"along": np.ones((3, WIDTH))}, "one for each of 2 tokens, got 3"),
        ({"layers": 7}, "layers= must lie in 0 … 3"),
        ({"tokens": [5, 5]}, "two different tokens"),
        ({"tokens": [5, 6, 7]}, "two different tokens"),
        ({"positions": [40]}, "positions= must lie in"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no such check
    chosen = {"lens": some_lens(), "tokens": [5, 9], **options}
    with pytest.raises(InputError, match=message):
        lens.swap(tiny_model("llama"), TOKENS, **chosen)


def test_a_plain_pass_is_asked_for() -> None:
    model = tiny_model("llama")
    refused = pytest.raises(InputError, match="an intervention is in place")
    with intervene(model, {"blocks.0.hook_mlp_out": 0.0}), refused:
        lens.ablate(model, TOKENS, some_lens(), [5])
