"""Matrices by name from loaded models and from files that are never loaded, and their leading singular triplets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from probe import InputError, capture, weights
from probe.model import first_tensor, load_model
from probe.spectra.singular import Method, product_triplets
from probe.weights.twins import Initialiser
from tests.architectures import zoo
from tests.model.test_model import ATTENTION, PROJECTIONS, rotary, zero_biases
from tests.plant.gguf_file import write_gguf
from tests.plant.hub_cache import add_model
from tests.plant.tiny import ARCHITECTURES, LAYERS, RECURRENT, WIDTH, tiny_model, tiny_module
from tests.plant.versions import since

STANDARD = [name for name in ARCHITECTURES if name not in RECURRENT]
JOINT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 264,
    "pad_token_id": 258,
}


def singular(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.double())


def planted(out: int, in_: int, values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A float64 matrix of known singular triplets: (W, U, V)."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(out, len(values), generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(in_, len(values), generator=generator, dtype=torch.float64)).Q
    return (left * values) @ right.mT, left, right


# Files


def checkpoint_folder(folder: Path, module: nn.Module) -> Path:
    module.save_pretrained(folder)
    return folder


@pytest.mark.guards(
    "a file has the matrices of the loaded model",
    when="weights are compared",
    gives="equal to the bit, of all tested architectures",
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_gives_the_matrices_of_the_loaded_model(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    opened = weights.open_weights(checkpoint_folder(tmp_path, model.module))
    assert all(parameter.is_meta for parameter in opened.module.parameters())
    assert " ".join(opened.stored) == PROJECTIONS.get(architecture, "q k v o gate up down")
    loaded = weights.weights_of(model)
    for layer in range(LAYERS):
        own = model.projections(layer)
        for name in opened.stored:
            assert torch.equal(opened.matrix(layer, name), own[name]), name
            gains = [one.gain(layer, name) for one in (opened, loaded)]
            assert (gains[0] is None) == (gains[1] is None)
            assert gains[0] is None or torch.equal(*gains)
    assert all(parameter.is_meta for parameter in opened.module.parameters()), "reading must not fill the skeleton"
    assert (opened.n_layers, opened.d_model, opened.recurrent) == (LAYERS, WIDTH, model.recurrent)


@pytest.mark.guards(
    "weights in shards, or in PyTorch's format, are those of one file",
    when="a file is read",
    gives="the same matrices",
)
def test_shards_and_pickles_are_read_like_one_file(tmp_path: Path) -> None:
    module = tiny_module("gpt_neox")
    expected = weights.weights_of(load_model(module))
    module.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(module.state_dict(), pickled / "pytorch_model.bin")
    module.config.save_pretrained(pickled)
    for folder in ("shards", "pickled"):
        opened = weights.open_weights(tmp_path / folder)
        assert all(torch.equal(opened.matrix(3, name), expected.matrix(3, name)) for name in expected.stored)


@pytest.mark.guards("the tensors of a trunk alone have other names", when="a file is read", gives="the same matrices")
def test_a_checkpoint_of_the_trunk_alone_is_read_too(tmp_path: Path) -> None:
    """As published GPT-2 weights are: "h.0.attn.c_attn.weight" without "transformer."."""
    module = tiny_module("gpt2")
    checkpoint_folder(tmp_path, module)
    file = tmp_path / "model.safetensors"
    save_file({name.removeprefix("transformer."): value for name, value in load_file(file).items()}, file)
    opened = weights.open_weights(tmp_path)
    assert torch.equal(opened.matrix(1, "k"), load_model(module).projections(1)["k"])


@pytest.mark.guards(
    "joint matrices are cut by heads as the model cuts them",
    when="weights are compared",
    gives="the matrices of the loaded model",
)
@pytest.mark.parametrize("family", ["Phi3", "Bloom"])
def test_joint_matrices_of_other_architectures_are_cut_by_their_adapter(family: str, tmp_path: Path) -> None:
    settings = {"Phi3": JOINT, "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 264}}[family]
    torch.manual_seed(0)
    module = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**settings)).eval()
    model = load_model(module)
    opened = weights.open_weights(checkpoint_folder(tmp_path, module))
    assert {"q", "k", "v", "o", "up", "down"} <= set(opened.stored)
    for name, matrix in model.projections(1).items():
        assert torch.equal(opened.matrix(1, name), matrix), name


ONE_OR_FEW_KEY_HEADS: dict[str, tuple[str, dict[str, object], int]] = {
    "Falcon 7B": ("Falcon", {}, 1),
    "Falcon 40B": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, 2),
    "Falcon of as many": ("Falcon", {"multi_query": False}, 4),
    "SantaCoder": ("GPTBigCode", {}, 1),
    "GPT-BigCode of as many": ("GPTBigCode", {"multi_query": False}, 4),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=since("5.24", "it warns of a function of torch that is deprecated"))
        if family == "GPTBigCode"
        else name
        for name, (family, *_) in ONE_OR_FEW_KEY_HEADS.items()
    ],
)
def test_joint_matrices_with_one_or_few_key_heads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At position 0, where nothing is rotated, attention is handed what q, k and v make of its input."""
    family, settings, keys = ONE_OR_FEW_KEY_HEADS[name]
    sizes = {"vocab_size": 264, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**sizes, bos_token_id=0, eos_token_id=0, **settings)
    module = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    opened = weights.open_weights(checkpoint_folder(tmp_path, module))
    assert opened.heads == weights.heads.Heads(4, keys)
    attend, handed, read = nn.functional.scaled_dot_product_attention, [], []

    def record(q: Tensor, k: Tensor, v: Tensor, *arguments: object, **named: object) -> Tensor:
        handed.append((q, k, v))
        return attend(q, k, v, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", record)
    joint = module.transformer.h[1].get_submodule(opened.at(1).projections["q"].module)
    joint.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.no_grad():
        module(torch.tensor([[7]]))
    for part, tensor, heads in zip("qkv", handed[1], (4, keys, keys), strict=True):
        own = tensor[0, :: tensor.shape[1] // heads].flatten()  # a key head may be handed once for each query head
        torch.testing.assert_close(opened.matrix(1, part) @ read[0].flatten(), own)
    found = weights.continuity(tmp_path, subspaces=[1])
    assert {"q", "k", "v", "ov", "qk"} <= set(found["projection"].to_numpy())


def test_a_gguf_file_gives_the_matrices_of_the_loaded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    expected = write_gguf(path)
    opened = weights.open_weights(path)
    names = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "o": "self_attn.o_proj", "down": "mlp.down_proj"}
    for name, stem in names.items():
        np.testing.assert_array_equal(opened.matrix(2, name), expected[f"model.layers.2.{stem}.weight"], err_msg=name)
    np.testing.assert_array_equal(opened.gain(2, "up"), expected["model.layers.2.post_attention_layernorm.weight"])
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))
    loaded = weights.weights_of(load_model(path))
    for name in loaded.stored:
        assert torch.equal(opened.matrix(3, name), loaded.matrix(3, name)), name


def test_files_are_told_apart_by_their_hash(tmp_path: Path) -> None:
    folders = [checkpoint_folder(tmp_path / str(seed), tiny_module("opt", seed=seed // 2)) for seed in range(3)]
    first, same, other = (weights.checkpoint.weight_hash(weights.open_weights(folder)) for folder in folders)
    assert first == same
    assert first != other


def test_a_hub_id_is_read_from_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    modules = {"main": ("a" * 40, tiny_module("gpt_neox")), "step1": ("b" * 40, tiny_module("gpt_neox", seed=1))}
    add_model(tmp_path / "hub", "EleutherAI/pythia-1b", modules)
    for revision, (_, module) in modules.items():
        opened = weights.open_weights("pythia-1b", revision=revision)
        assert opened.name == "pythia-1b"
        assert torch.equal(opened.matrix(2, "k"), load_model(module).projections(2)["k"])
    for file in (tmp_path / "hub").rglob("model.safetensors"):
        file.unlink()
    fresh = weights.open_weights("pythia-1b", random_init=3)  # needs the configuration only
    assert torch.equal(fresh.matrix(2, "k"), weights.open_weights("pythia-1b", random_init=3).matrix(2, "k"))
    with pytest.raises(InputError, match="not in the local hub cache"):
        weights.open_weights("pythia-1b")


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    module = tiny_module("llama").to(torch.bfloat16)
    matrix = weights.open_weights(checkpoint_folder(tmp_path, module)).matrix(0, "q")
    assert matrix.dtype == torch.float32
    assert torch.equal(matrix, module.model.layers[0].self_attn.q_proj.weight.float())


@pytest.mark.guards(
    "a checkpoint that is read matrix by matrix holds each",
    when="a file is read",
    says="a checkpoint must hold every tensor of its model, and … holds … …: load the whole model and pass it instead",
)
def test_what_a_file_lacks_is_said(tmp_path: Path) -> None:
    module = tiny_module("llama")
    folder = checkpoint_folder(tmp_path / "model", module)
    file = folder / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "1.mlp.up" not in name}, file)
    opened = weights.open_weights(folder)
    with pytest.raises(InputError, match=r"holds no model\.layers\.1\.mlp\.up_proj\.weight"):
        opened.matrix(1, "up")
    with pytest.raises(InputError, match=r"q, k, v, o, gate, up, down\), got 'x'"):
        opened.matrix(1, "x")
    with pytest.raises(InputError, match=r"0 … 3 for .*, got 4"):
        opened.matrix(4, "q")
    file.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors or pytorch_model\.bin"):
        weights.open_weights(folder).matrix(1, "q")
    file.write_bytes(b"no tensors")
    with pytest.raises(InputError, match="must be readable"):
        weights.open_weights(folder).matrix(1, "q")
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(InputError, match=r"an architecture that transformers .* knows"):
        weights.open_weights(folder)


# The parts rebuild what the module does


@pytest.mark.parametrize("architecture", STANDARD)
def test_ov_is_what_attention_does_to_a_text_of_one_token(architecture: str, tmp_path: Path) -> None:
    """One position attends to itself alone, so attention is the linear map W_O W_V, whatever its queries are."""
    model = tiny_model(architecture)
    zero_biases(model.module)
    opened = weights.open_weights(checkpoint_folder(tmp_path, model.module))
    attention = model.blocks[1].get_submodule(ATTENTION.get(architecture, "self_attn"))
    x = torch.randn(5, 1, WIDTH, generator=torch.Generator().manual_seed(1))
    angles = (torch.ones(5, 1, rotary(attention)), torch.zeros(5, 1, rotary(attention)))
    options = {} if rotary(attention) == 0 else {"position_embeddings": angles}
    with torch.no_grad():
        own = first_tensor(attention(hidden_states=x, attention_mask=None, **options))
    torch.testing.assert_close(x @ weights.matrix_of(opened, 1, "ov").mT, own, rtol=1e-4, atol=1e-5)


@pytest.mark.guards(
    "latent attention has no one matrix for queries, keys and values",
    when="weights are compared",
    gives="the matrices before and behind its norm, by names of their own",
)
@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}])
def test_latent_attention_is_rebuilt_from_a_file(changes: dict[str, object], tmp_path: Path) -> None:
    """Of one token the values alone count: W_O W_VB (γ_c ⊙ c / rms c) with c = W_KVA (γ ⊙ x / rms x)."""
    module = zoo.tiny("youtu", **changes)
    opened = weights.open_weights(checkpoint_folder(tmp_path, module))
    queries = "q" if changes else "q_a q_b"
    # in the order of the row
    assert " ".join(opened.stored) == f"{queries} kv_a k_rot k_b v_b o gate up down"
    assert "ov" not in weights.heads.names_of(opened)
    model = load_model(module)
    sites = ["blocks.1.hook_resid_pre", "blocks.1.hook_attn_out"]
    found = capture(model, torch.tensor([[40], [41], [42]]), sites=sites)
    x, own = found[sites[0]][:, 0], found[sites[1]][:, 0]

    def standard(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    folded = {name: weights.bases.prepared(opened, 1, name, folded=True) for name in ("kv_a", "v_b")}
    latent = standard(x) @ folded["kv_a"].mT
    values = standard(latent) @ folded["v_b"].mT
    at_once = x @ (folded["v_b"] @ folded["kv_a"]).mT  # up to one positive number a token
    torch.testing.assert_close(nn.functional.cosine_similarity(at_once, values), torch.ones(3))
    rebuilt = values @ opened.matrix(1, "o").mT
    torch.testing.assert_close(rebuilt, own, rtol=1e-3, atol=1e-4)
    by_head = zip(weights.head_views(opened, 1, "o"), weights.head_views(opened, 1, "v_b"), strict=True)
    whole = opened.matrix(1, "o") @ opened.matrix(1, "v_b")
    torch.testing.assert_close(sum(out @ values for out, values in by_head), whole)
    shapes = {name: tuple(opened.matrix(1, name).shape) for name in ("kv_a", "k_rot", "k_b", "v_b")}
    config = module.config
    heads, rank, plain = config.num_attention_heads, config.kv_lora_rank, config.qk_nope_head_dim
    assert shapes == {
        "kv_a": (rank, WIDTH),
        "k_rot": (config.qk_rope_head_dim, WIDTH),
        "k_b": (heads * plain, rank),
        "v_b": (heads * config.v_head_dim, rank),
    }
    (part,) = model.support.left_out
    assert part.what == ("k, v" if changes else "q, k, v")
    assert part.why.endswith("k_b, v_b make them of normed latents")


@since("5.24", "there is no InternLM 3")
def test_heads_that_act_in_pairs_have_no_composites() -> None:
    assert weights.weights_of(load_model(zoo.tiny("diffllama"))).heads is None
    assert weights.weights_of(load_model(zoo.tiny("internlm3"))).heads == weights.heads.Heads(4, 2)


@pytest.mark.parametrize("architecture", STANDARD)
def test_composites_are_the_sums_of_their_heads(architecture: str) -> None:
    model = weights.weights_of(tiny_model(architecture))
    assert model.heads is not None
    q, k, v, o = (weights.head_views(model, 2, name).double() for name in "qkvo")
    shared = model.heads.query // model.heads.key
    own = {
        "ov": sum(o[head] @ v[head // shared] for head in range(model.heads.query)),
        "qk": sum(q[head].mT @ k[head // shared] for head in range(model.heads.query)),
    }
    for name, expected in own.items():
        torch.testing.assert_close(weights.matrix_of(model, 2, name).double(), expected, rtol=1e-4, atol=1e-4)
        left, right = weights.heads.head_factors(model, 2, name)
        torch.testing.assert_close((left @ right).sum(0).double(), expected, rtol=1e-4, atol=1e-4)
    x, y = torch.randn(2, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = [float((q[head] @ x) @ (k[head // shared] @ y)) for head in range(model.heads.query)]
    assert float(x @ own["qk"] @ y) == pytest.approx(sum(scores))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folded_reader_acts_on_the_normed_state_before_its_gain(architecture: str) -> None:
    """``W (γ ⊙ x̂) = (W diag γ) x̂``: the norm's own output, less its bias, against x̂ computed by hand."""
    model = tiny_model(architecture)
    zero_biases(model.module)
    found = weights.weights_of(model)
    block = model.blocks[1]
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(2))
    paths = {"gpt2": ("ln_1", "ln_2"), "opt": ("self_attn_layer_norm", "final_layer_norm")}
    paths |= {"gemma3": ("input_layernorm", "pre_feedforward_layernorm"), "phi": ("input_layernorm",) * 2}
    first, second = paths.get(architecture, ("input_layernorm", "post_attention_layernorm"))
    if architecture == "olmo3":  # its readers read the stream itself, its writers write behind norms
        assert weights.bases.prepared(found, 1, "q", folded=True) is None
        gain = block.post_feedforward_layernorm.weight.detach()
        expected = gain[:, None] * found.matrix(1, "down")
        torch.testing.assert_close(weights.bases.prepared(found, 1, "down", folded=True), expected)
        return
    readers = {"in": "norm"} if model.recurrent else {"q": first, "v": first, "up": second}
    for name, path in readers.items():
        norm = block.get_submodule(path)
        centred = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
        standard = centred / centred.square().mean(-1, keepdim=True).sqrt()
        with torch.no_grad():
            own = norm(x) @ found.matrix(1, name).mT
        matrix = weights.bases.prepared(found, 1, name, folded=True)
        assert matrix is not None
        torch.testing.assert_close(standard @ matrix.mT, own, rtol=1e-3, atol=1e-3)


def test_a_model_of_the_users_own_gives_its_projections() -> None:
    tiny = tiny_model("llama")

    class Own:
        def __getattr__(self, name: str) -> object:
            return getattr(tiny, name)

    from probe.weights.reading import ProjectedWeights

    found = ProjectedWeights(Own())  # type: ignore[arg-type]
    assert found.stored == tuple(tiny.projections(0))
    assert torch.equal(found.matrix(2, "o"), tiny.projections(2)["o"])
    assert weights.heads.names_of(found) == found.stored
    with pytest.raises(InputError, match="needs a Hugging Face model"):
        weights.fresh_twin(found, 0)


# Controls


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_twin_is_drawn_like_a_fresh_model(architecture: str) -> None:
    model = weights.weights_of(tiny_model(architecture))
    twin, again, other = (weights.fresh_twin(model, seed) for seed in (1, 1, 2))
    fresh = load_model(tiny_module(architecture), random_init=0)
    for name in model.stored:
        drawn = twin.matrix(1, name)
        assert torch.equal(drawn, again.matrix(1, name)), "a reading must not depend on those before"
        assert not torch.equal(drawn, twin.matrix(2, name))
        assert not torch.equal(drawn, other.matrix(1, name))
        theirs = fresh.projections(1)[name].detach()
        assert drawn.shape == theirs.shape
        # up to the factor that some classes apply to writers afterwards
        ratio = float(drawn.std() / theirs.std())
        assert 0.8 < ratio < 1.25 or name in {"o", "down", "out"}, name
        shape = (drawn.flatten() / drawn.std()).sort().values - (theirs.flatten() / theirs.std()).sort().values
        assert shape.abs().mean() < 0.2, name


class Unheard(nn.Module):
    """A module of which the model's class knows nothing: only its own reset gives it values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(50))

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, 3, 4)


@pytest.mark.guards(
    "a fresh twin has no value that memory happened to hold",
    when="a control is drawn",
    gives="every value is drawn",
)
def test_initialising_leaves_no_value_to_chance() -> None:
    """Memory that is not written would hold what was there before."""
    parts = (nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv1d(2, 2, 3), Unheard())
    block = nn.Sequential(nn.Sequential(*parts)).to("meta")
    skeleton = tiny_module("llama")
    values = []
    for _ in range(2):
        torch.full((10_000,), float("nan"))  # likely to be handed out again
        Initialiser(3).fill(block, "0.1", "layers.7", skeleton)
        values.append({name: value.clone() for name, value in block.state_dict().items()})
    first, second = values
    assert all(torch.equal(first[name], second[name]) and first[name].isfinite().all() for name in first)
    assert ((first["0.3.weight"] >= 3) & (first["0.3.weight"] <= 4)).all()


def test_a_shuffled_twin_keeps_the_entries_and_moves_them() -> None:
    model = weights.weights_of(tiny_model("gpt2"))
    twin, again, other = (weights.shuffled_twin(model, seed) for seed in (1, 1, 2))
    for name in ("q", "down"):
        matrix, moved = model.matrix(2, name), twin.matrix(2, name)
        assert torch.equal(moved.flatten().sort().values, matrix.flatten().sort().values)
        assert (moved == matrix).float().mean() < 0.05
        assert torch.equal(moved, again.matrix(2, name))
        assert not torch.equal(moved, other.matrix(2, name))
    assert torch.equal(twin.gain(2, "q"), model.gain(2, "q"))  # type: ignore[arg-type]


# Public names


def test_old_names_still_work_for_a_release() -> None:
    from probe.spectra.singular import Triplets
    from probe.weights import bases, curves

    moved = {
        "best_matches": (weights.best_cosines, "best_cosines"),
        "participation_ratio": (curves.vector_participation, "curves.vector_participation"),
        "described": (bases.described, "bases.described"),
        "of_model": (weights.weights_of, "weights_of"),
    }
    for old, (new, path) in moved.items():
        with pytest.warns(DeprecationWarning, match=rf"use probe\.weights\.{path}$"):
            assert getattr(weights, old) is new
    with pytest.warns(DeprecationWarning, match=r"use probe\.spectra\.singular\.Triplets$"):
        assert weights.Triplets is Triplets  # type: ignore[attr-defined]


# Singular triplets


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64)])
@pytest.mark.parametrize("method", ["dense", "randomised"])
def test_planted_triplets_are_recovered(shape: tuple[int, int], method: Method) -> None:
    values = torch.cat([torch.tensor([5.0, 3.0, 2.0]), torch.linspace(1, 0.1, 37)]).double()
    matrix, left, right = planted(*shape, values)
    found = weights.leading_triplets(matrix, 3, method=method, tolerance=1e-11)
    assert found.method == method
    torch.testing.assert_close(found.singular, values[:3], rtol=1e-10, atol=0)
    for own, planted_ in ((found.left, left), (found.right, right)):
        torch.testing.assert_close((own * planted_[:, :3]).sum(0).abs(), torch.ones(3).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(matrix @ found.right, found.left * found.singular, atol=1e-9, rtol=0)
    assert found.norm == pytest.approx(float(values.norm()))
    assert found.gap == pytest.approx(5 / 3)
    assert found.error < 1e-9


@pytest.mark.parametrize("gap", [1.5, 1.02])
def test_the_randomised_method_keeps_its_stated_error(gap: float) -> None:
    """Flat spectra are the hard case: σ falls by 2 % a step, then by a thousandth."""
    values = torch.cat([torch.tensor([gap**2, gap]), torch.linspace(1, 0.2, 298)]).double()
    matrix, left, _ = planted(400, 300, values)
    for tolerance in (1e-3, 1e-6):
        found = weights.leading_triplets(matrix, 2, method="randomised", tolerance=tolerance)
        assert found.error <= 1.5 * tolerance
        residual = (matrix.mT @ found.left - found.right * found.singular).norm(dim=0).max() / found.singular[0]
        assert float(residual) <= found.error * (1 + 1e-9)
        sine = (1 - float(found.left[:, 0] @ left[:, 0]) ** 2) ** 0.5
        assert sine <= 2 * found.error * gap / (gap - 1)


@given(seed=st.integers(0, 10_000), out=st.integers(1, 12), in_=st.integers(1, 12), rank=st.integers(1, 4))
@settings(max_examples=60)
def test_any_matrix_has_orthonormal_triplets_that_are_those_of_numpy(seed: int, out: int, in_: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rank = min(rank, out, in_)
    matrix = torch.randn(out, rank, generator=generator) @ torch.randn(rank, in_, generator=generator)
    k = min(out, in_, 3)
    found = weights.leading_triplets(matrix, k)
    eye = torch.eye(k, dtype=torch.float64)
    for vectors in (found.left, found.right):
        torch.testing.assert_close(vectors.mT @ vectors, eye, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.singular, singular(matrix)[:k], atol=1e-5 * float(found.singular[0]), rtol=1e-6)
    assert found.error < 1e-5


def test_triplets_of_a_product_need_not_form_it() -> None:
    left, right = torch.randn(50, 6, dtype=torch.float64), torch.randn(6, 30, dtype=torch.float64)
    own, dense = product_triplets(left, right, 2), weights.leading_triplets(left @ right, 2)
    torch.testing.assert_close(own.singular, dense.singular)
    torch.testing.assert_close(own.left.mT @ dense.left, own.right.mT @ dense.right, atol=1e-9, rtol=0)
    torch.testing.assert_close((own.left * dense.left).sum(0).abs(), torch.ones(2).double())


@pytest.mark.guards(
    "a matrix is finite",
    when="weights are compared",
    says="a matrix of weights must be finite, got NaN or infinity: fetch it again",
)
def test_zero_and_broken_matrices() -> None:
    found = weights.leading_triplets(torch.zeros(4, 3), 2)
    assert (found.norm, found.error) == (0.0, 0.0)
    assert np.isnan(found.gap)
    with pytest.raises(InputError, match="must be finite"):
        weights.leading_triplets(torch.tensor([[1.0, float("nan")]]), 1)
    with pytest.raises(InputError, match="1 … min"):
        weights.leading_triplets(torch.ones(4, 3), 4)
