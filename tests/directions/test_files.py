"""Decoders in files of each layout: the planted row comes back, whichever way it is stored."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from probe.directions import gain_and_turn, open_decoder
from probe.directions.files import depth_of
from tests.directions.test_carrying import F64
from tests.plant.refusing import refused
from tests.plant.tiny import WIDTH, tiny_model, tiny_tokens

N, D = 11, 6
DECODER = torch.arange(N * D, dtype=torch.float32).reshape(N, D) + 1


def saved(folder, tensors, settings=None, *, name="sae_weights.safetensors", beside="cfg.json"):
    save_file(
        {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}, folder / name
    )
    if settings is not None:
        (folder / beside).write_text(json.dumps(settings))
    return folder


def sae_lens(matrix=DECODER):
    return {"W_enc": matrix.mT, "W_dec": matrix, "b_enc": torch.zeros(len(matrix)), "b_dec": torch.zeros(D)}


LAYOUTS = {
    "SAELens": (sae_lens(), {"d_in": D, "hook_name": "blocks.2.hook_resid_post"}, "sae_weights", 3),
    "SAELens 6": (sae_lens(), {"d_in": D, "metadata": {"hook_name": "blocks.2.hook_resid_pre"}}, "sae_weights", 2),
    "transcoder": (
        sae_lens(),
        {
            "d_in": 4,
            "d_out": D,
            "metadata": {"hook_name": "blocks.2.ln2.hook_normalized", "hook_name_out": "blocks.2.hook_mlp_out"},
        },
        "sae_weights",
        3,
    ),
    "sparsify": ({"encoder.weight": -DECODER, "W_dec": DECODER}, {"d_in": D, "num_latents": N}, "sae", None),
    "linear layer": ({"encoder.weight": -DECODER, "decoder.weight": DECODER.mT}, None, "ae", None),
    "nested": (
        {"sae.decoder.weight": DECODER.mT},
        {"trainer": {"activation_dim": D, "submodule_name": "layers.4"}},
        "ae",
        5,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("by_model", [True, False])
def test_every_layout_gives_the_planted_rows(tmp_path, layout, by_model):
    tensors, settings, name, depth = LAYOUTS[layout]
    folder = saved(tmp_path, tensors, settings, name=f"{name}.safetensors")
    decoder = open_decoder(folder, D if by_model else None)
    assert (decoder.n, decoder.d, len(decoder), decoder.depth) == (N, D, N, depth)
    found = decoder.directions([7, 0, 7])
    assert torch.equal(found.vectors, DECODER[[7, 0, 7]].double())
    assert found.names == ("7", "0", "7")
    assert (found.depth, found.site) == (depth, decoder.site)
    unit = decoder.directions(torch.tensor([3]), normalised=True).vectors
    assert torch.allclose(unit[0], torch.nn.functional.normalize(DECODER[3].double(), dim=0))
    assert decoder.file.name in decoder._repr_html_()


def test_the_width_is_stronger_than_the_name(tmp_path):
    saved(tmp_path, {"W_dec": DECODER.mT})
    decoder = open_decoder(tmp_path, D)
    assert (decoder.n, decoder.rows) == (N, False)
    assert torch.equal(decoder.directions([4]).vectors[0], DECODER[4].double())
    refused(lambda: open_decoder(tmp_path, D, rows=True), "rows=", str(D))
    assert open_decoder(tmp_path).n == D  # of a file alone only the name tells


@pytest.mark.parametrize(("name", "rows"), [("W_dec", True), ("decoder.weight", False)])
def test_a_square_decoder_is_turned_as_its_name_says(tmp_path, name, rows):
    square = torch.arange(36.0).reshape(6, 6) + 1
    saved(tmp_path, {name: square})
    wanted = (square if rows else square.mT)[2].double()
    assert torch.equal(open_decoder(tmp_path, 6).directions([2]).vectors[0], wanted)
    other = open_decoder(tmp_path, 6, rows=not rows).directions([2]).vectors[0]
    assert torch.equal(other, (square.mT if rows else square)[2].double())


def test_a_square_tensor_of_another_name_is_refused_until_it_is_said(tmp_path):
    square = torch.arange(36.0).reshape(6, 6) + 1
    saved(tmp_path, {"features": -square, "decoder": square})
    refused(lambda: open_decoder(tmp_path, 6, tensor="features"), "row or a column", "rows=")
    refused(lambda: open_decoder(tmp_path, 6), "row or a column")
    assert torch.equal(open_decoder(tmp_path, 6, rows=False).directions([1]).vectors[0], square[:, 1].double())


def test_only_the_chosen_rows_are_read(tmp_path, monkeypatch):
    saved(tmp_path, sae_lens())
    decoder = open_decoder(tmp_path, D)
    seen = []
    from probe.directions import files

    class Spied:
        def __init__(self, inner):
            self.inner = inner

        def __getitem__(self, where):
            seen.append(where)
            return self.inner[where]

    class Opened:
        def __init__(self, *args, **kwargs):
            self.manager = files_open(*args, **kwargs)

        def __enter__(self):
            self.inner = self.manager.__enter__()
            return self

        def __exit__(self, *error):
            return self.manager.__exit__(*error)

        def get_slice(self, name):
            return Spied(self.inner.get_slice(name))

    files_open = files.safe_open
    monkeypatch.setattr(files, "safe_open", Opened)
    found = decoder.directions([2, 9]).vectors
    assert seen == [slice(2, 3), slice(9, 10)]
    found.zero_()  # a copy: the file's own memory is another
    assert torch.equal(decoder.directions([2]).vectors[0], DECODER[2].double())


def test_sites_tell_the_depth():
    assert depth_of("blocks.3.hook_resid_pre") == 3
    assert depth_of("blocks.3.hook_resid_post") == 4
    assert depth_of("blocks.3.hook_mlp_out") == 4
    assert depth_of("model.layers.3") == 4
    assert depth_of("transformer.h.0.mlp") == 1
    for unknown in ("blocks.3.hook_attn_out", "blocks.3.hook_resid_mid", "layers.3.attention", "embed", "hook_z"):
        assert depth_of(unknown) is None


def test_rows_of_a_file_go_through_a_model_from_their_depth(tmp_path):
    model, tokens = tiny_model("llama"), tiny_tokens(2, 8)
    matrix = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))
    saved(tmp_path, {"W_dec": matrix}, {"hook_name": "blocks.1.hook_resid_post", "d_in": WIDTH})
    rows = open_decoder(tmp_path, model).directions([4, 1])
    found = gain_and_turn(model, tokens, rows, None, [5])
    assert found.attrs["site"] == "blocks.1.hook_resid_post"
    assert found.attrs["from_depth"] == 2
    assert found["direction"].values.tolist() == ["4", "1"]
    expected = gain_and_turn(model, tokens, matrix[[4, 1]].to(F64), 2, [5])
    assert (abs(found["gain"].values - expected["gain"].values) < 1e-5).all()


def test_what_is_no_decoder_is_refused(tmp_path):
    refused(lambda: open_decoder(tmp_path), "holds 0", "name the file")
    refused(lambda: open_decoder(tmp_path / "none.safetensors"), "check the path")
    (tmp_path / "ae.pt").write_bytes(b"x")
    refused(lambda: open_decoder(tmp_path / "ae.pt"), ".safetensors", "weights_only=True")
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 2000)
    refused(lambda: open_decoder(tmp_path), "readable")
    (tmp_path / "bad.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 12\n")
    refused(lambda: open_decoder(tmp_path / "bad.safetensors"), "pointer")
    saved(
        tmp_path, {"W_dec": torch.ones(3, 2, D), "x.W_dec": DECODER.to(torch.int8), "a": DECODER}, name="b.safetensors"
    )
    file = tmp_path / "b.safetensors"
    refused(lambda: open_decoder(file), "once")
    refused(lambda: open_decoder(file, tensor="W_dec"), "one matrix")
    refused(lambda: open_decoder(file, tensor="x.W_dec"), "quantised")
    refused(lambda: open_decoder(file, tensor="b"), "holds no b")
    refused(lambda: open_decoder(file, D + 1, tensor="a"), "another model")
    refused(lambda: open_decoder(tmp_path), "holds 2")
    (tmp_path / "cfg.json").write_text("{")
    refused(lambda: open_decoder(file, tensor="a"), "JSON")


def test_latents_must_exist_and_live(tmp_path):
    matrix = DECODER.clone()
    matrix[5] = 0
    decoder = open_decoder(saved(tmp_path, sae_lens(matrix)), D)
    refused(lambda: decoder.directions([N]), f"0 … {N - 1}")
    refused(lambda: decoder.directions([-1]), f"0 … {N - 1}")
    refused(lambda: decoder.directions([]), "at least one")
    refused(lambda: decoder.directions([2, 5], normalised=True), "latent 5")
    assert not decoder.directions([5]).vectors.any()
