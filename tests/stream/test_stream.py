from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jaxtyping
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from probe.errors import InputError
from probe.model import LanguageModel, load_model
from probe.stream import ResidualStream, capture, capturing, watch
from tests.plant.tiny import ARCHITECTURES, LAYERS, RECURRENT, WIDTH, tiny_model, tiny_module, tiny_tokens

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def count_hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


@pytest.fixture
def llama() -> Iterator[LanguageModel]:
    model = tiny_model("llama")
    yield model
    assert count_hooks(model.module) == 0


# What is captured


@every_architecture
def test_the_captured_states_are_those_of_huggingface(architecture: str) -> None:
    """`hidden_states[l]` of the module's own output is the input of block l, of Mamba its output; then the norm."""
    model, tokens = tiny_model(architecture), tiny_tokens(5)
    states = capture(model, tokens, sites=[*model.sites], batch_size=5)
    with torch.no_grad():
        own = model.module(tokens, output_hidden_states=True, use_cache=False).hidden_states
    side = "hook_resid_post" if architecture in RECURRENT else "hook_resid_pre"
    for layer in range(LAYERS):
        assert torch.equal(states[f"blocks.{layer}.{side}"], own[layer])
    assert torch.equal(states["ln_final.hook_out"], own[-1])


@pytest.mark.guards(
    "inference_mode, no_grad or autocast surround the capture",
    when="a pass runs",
    gives="the states of the plain pass, to the bit",
)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_states_are_the_same_whatever_mode_surrounds_the_capture(mode: Callable[[], Any]) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens(2)
    expected = capture(model, tokens)
    with mode():
        found = capture(model, tokens)
    for site in expected.sites:
        assert torch.equal(found[site], expected[site])
        assert not found[site].is_inference()


@every_architecture
def test_batches_give_what_one_pass_gives(architecture: str) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens(5)
    whole, batched = capture(model, tokens, batch_size=5), capture(model, tokens, batch_size=2)
    for site in whole.sites:
        torch.testing.assert_close(batched[site], whole[site], rtol=1e-4, atol=1e-5)


def test_by_default_the_states_at_all_depths(llama: LanguageModel) -> None:
    states = capture(llama, tiny_tokens())
    assert states.sites == (
        *(f"blocks.{layer}.hook_resid_pre" for layer in range(LAYERS)),
        f"blocks.{LAYERS - 1}.hook_resid_post",
    )
    assert states.shape == (3, 16, WIDTH)
    assert all(states[site].shape == (3, 16, WIDTH) for site in states.sites)


@pytest.mark.parametrize(
    ("sites", "layers", "expected"),
    [
        (["hook_mlp_out"], [2, 0], ("blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out")),
        (
            ["ln_final.hook_in", "hook_attn_out", "hook_resid_mid"],
            [1],
            ("blocks.1.hook_attn_out", "blocks.1.hook_resid_mid", "ln_final.hook_in"),
        ),
        (["blocks.3.hook_resid_post"], None, ("blocks.3.hook_resid_post",)),
        (None, [1, 2], ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre", "blocks.2.hook_resid_post")),
    ],
)
def test_chosen_sites_and_layers_in_the_order_of_the_pass(
    llama: LanguageModel, sites: list[str] | None, layers: list[int] | None, expected: tuple[str, ...]
) -> None:
    states = capture(llama, tiny_tokens(), sites=sites, layers=layers)
    assert states.sites == expected
    with torch.no_grad(), watch(llama, expected) as seen:
        llama.forward(tiny_tokens())
    assert all(torch.equal(states[site], seen[site]) for site in expected)


def test_windows_may_be_an_object_that_holds_tokens(llama: LanguageModel) -> None:
    @dataclass
    class Windows:
        tokens: Tensor

    site = "blocks.2.hook_resid_pre"
    assert torch.equal(capture(llama, Windows(tiny_tokens()))[site], capture(llama, tiny_tokens())[site])


def test_dtype_of_a_bfloat16_model() -> None:
    model = load_model(tiny_module("llama").to(torch.bfloat16))
    site = "blocks.1.hook_resid_post"
    own, wide = (capture(model, tiny_tokens(), sites=[site], dtype=dtype) for dtype in ("model", "float32"))
    assert own[site].dtype == torch.bfloat16
    assert wide[site].dtype == torch.float32
    assert torch.equal(own[site].float(), wide[site])


def test_a_captured_state_shares_no_memory_with_the_model(llama: LanguageModel) -> None:
    own: list[Tensor] = []
    handle = llama.blocks[1].register_forward_hook(lambda _, __, output: own.append(output))
    with handle, torch.no_grad(), watch(llama, ["blocks.1.hook_resid_post"]) as seen:
        llama.forward(tiny_tokens())
    assert torch.equal(own[0], seen["blocks.1.hook_resid_post"])
    assert own[0].untyped_storage().data_ptr() != seen["blocks.1.hook_resid_post"].untyped_storage().data_ptr()


def test_watching_keeps_no_graph() -> None:
    model = tiny_model("llama")
    with watch(model, ["blocks.1.hook_resid_post"]) as seen:
        logits = model.forward(tiny_tokens())
    assert logits.requires_grad
    assert not seen["blocks.1.hook_resid_post"].requires_grad


# Hooks


@pytest.mark.guards("a pass fails", when="a pass runs", gives="no hook stays")
def test_hooks_are_gone_after_an_exception() -> None:
    model = tiny_model("opt")

    def fail() -> None:
        with watch(model, model.sites):
            assert count_hooks(model.module) >= len(model.sites)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert count_hooks(model.module) == 0


def test_hooks_are_gone_after_a_pass_that_fails(llama: LanguageModel) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("stop")

    with llama.blocks[2].register_forward_hook(fail), pytest.raises(RuntimeError, match="stop"):
        capture(llama, tiny_tokens())


def test_hooks_are_gone_when_one_cannot_be_placed(llama: LanguageModel) -> None:
    with pytest.raises(InputError), watch(llama, ["blocks.0.hook_resid_pre", "blocks.9.hook_resid_pre"]):
        pytest.fail("the second site does not exist")


# A pass that goes around the hooks


def compiled_before(module: Any) -> None:
    """Compiled code does not look for hooks that come later."""
    module.model.compile(backend="eager")
    with torch.no_grad():
        for windows in (2, 3):  # the second number of windows makes the code one for any
            module.model(input_ids=tiny_tokens(windows), use_cache=False, return_dict=True)


def called_directly(module: Any) -> None:
    block = module.model.layers[3]
    block._call_impl = block.forward


def shortened(module: Any) -> None:
    module.config.num_hidden_layers = 2


def run_on_the_first_window(module: Any) -> None:
    trunk, forward = module.model, module.model.forward
    trunk.forward = lambda input_ids, **named: forward(input_ids=input_ids[:1], **named)


def run_on_the_last_position(module: Any) -> None:
    trunk, forward = module.model, module.model.forward
    trunk.forward = lambda input_ids, **named: forward(input_ids=input_ids[:, -1:], **named)


def run_twice(module: Any) -> None:
    trunk, forward = module.model, module.model.forward
    trunk.forward = lambda **named: (forward(**named), forward(**named))[1]


AROUND = [compiled_before, called_directly, shortened, run_on_the_first_window, run_on_the_last_position, run_twice]


@pytest.mark.guards(
    "what is returned was written: each site came once for every window and position",
    when="a pass runs",
    says=(
        "something goes around its hooks (torch.compile, a scripted or replaced forward) or "
        "repeats it; load the plain module"
    ),
)
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("go_around", AROUND)
def test_a_state_that_no_hook_brought_is_never_returned(
    go_around: Callable[[Any], None], on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of types
    model = tiny_model("llama")
    assert len(model.sites) > 4  # it was laid out before something went around its hooks
    go_around(model.module)
    out = tmp_path / "stream" if on_disk else None
    with pytest.raises(InputError, match="goes around its hooks") as caught:
        capture(model, tiny_tokens(5), sites=["blocks.3.hook_resid_post"], batch_size=2, out=out)
    assert "blocks.3.hook_resid_post" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert out is None or not (out / "stream.json").exists()


@pytest.mark.guards("a watched site has run", when="a pass runs", says="did not run in this pass")
@pytest.mark.parametrize("go_around", [called_directly, shortened])
def test_a_watched_site_that_did_not_run_says_so(go_around: Callable[[Any], None]) -> None:
    model = tiny_model("llama")
    go_around(model.module)
    with torch.no_grad(), watch(model, ["blocks.1.hook_resid_post", "blocks.3.hook_resid_post"]) as seen:
        model.forward(tiny_tokens())
    assert seen["blocks.1.hook_resid_post"].shape == (3, 16, WIDTH)
    with pytest.raises(InputError, match=r"blocks\.3\.hook_resid_post did not run"):
        seen["blocks.3.hook_resid_post"]


@pytest.mark.guards("windows may come in several calls", when="a pass runs", gives="they are counted, and all are read")
def test_a_model_that_runs_its_windows_one_by_one_is_read_whole() -> None:
    plain, parted = tiny_model("llama"), tiny_model("llama")
    trunk, forward = parted.module.model, parted.module.model.forward

    def one_by_one(input_ids: Tensor, **named: Any) -> Any:
        outputs = [forward(input_ids=window[None], **named) for window in input_ids]
        return SimpleNamespace(last_hidden_state=torch.cat([output.last_hidden_state for output in outputs]))

    assert parted.sites
    trunk.forward = one_by_one
    expected, found = capture(plain, tiny_tokens(5), batch_size=2), capture(parted, tiny_tokens(5), batch_size=2)
    for site in expected.sites:
        torch.testing.assert_close(found[site], expected[site], rtol=1e-4, atol=1e-5)


# On disk


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_streamed_to_disk_it_is_the_same(llama: LanguageModel, tmp_path: Path, batch_size: int) -> None:
    memory = capture(llama, tiny_tokens(5), batch_size=batch_size)
    disk = capture(llama, tiny_tokens(5), batch_size=batch_size, out=tmp_path / "stream")
    again = ResidualStream.open(tmp_path / "stream")
    assert memory.sites == disk.sites == again.sites
    for site in memory.sites:
        assert torch.equal(memory[site], disk[site])
        assert torch.equal(memory[site], again[site])
    assert len(list((tmp_path / "stream").glob("*.safetensors"))) == -(-5 // batch_size)


def test_parts_cover_the_windows_in_order(llama: LanguageModel, tmp_path: Path) -> None:
    site = "blocks.2.hook_resid_pre"
    for states in (
        capture(llama, tiny_tokens(5), batch_size=2),
        capture(llama, tiny_tokens(5), batch_size=2, out=tmp_path / "stream"),
    ):
        parts = list(states.parts(site))
        assert [(part.start, part.stop) for part, _ in parts] == [(0, 2), (2, 4), (4, 5)]
        assert torch.equal(torch.cat([state for _, state in parts]), states[site])


def test_a_stream_to_disk_holds_one_batch_at_a_time(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of windows, what is allocated for states is one batch."""
    sizes: list[int] = []
    full = torch.full

    def counted(*arguments: object, **named: object) -> Tensor:
        made: Tensor = full(*arguments, **named)  # type: ignore[call-overload]
        sizes.append(made.shape[0] if made.ndim == 3 else 0)
        return made

    monkeypatch.setattr(capturing.torch, "full", counted)
    capture(llama, tiny_tokens(9), batch_size=2, out=tmp_path / "stream")
    assert max(sizes) == 2


def test_a_shard_holds_its_batch_and_nothing_else(llama: LanguageModel, tmp_path: Path) -> None:
    capture(llama, tiny_tokens(3), batch_size=2, out=tmp_path, sites=["blocks.0.hook_resid_pre"])
    with safe_open(tmp_path / "shard-00001.safetensors", framework="pt") as shard:
        assert list(shard.keys()) == ["blocks.0.hook_resid_pre"]
        assert shard.get_tensor("blocks.0.hook_resid_pre").shape == (1, 16, WIDTH)


# Bad input


@pytest.mark.guards(
    "states are finite",
    when="a pass runs",
    says=(
        "states must be finite, and … (…) is NaN or infinite in window …; load the model with "
        'dtype="float32", or leave that window out'
    ),
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_state_that_is_not_finite_is_named(value: float) -> None:
    model = tiny_model("llama")

    def spoil(_: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        spoiled = output.clone()
        for window, marked in enumerate((arguments[0][:, 0, 0] == marker).tolist()):
            if marked:
                spoiled[window, 5, 3] = value
        return spoiled

    tokens = tiny_tokens(6)
    marker = capture(model, tokens)["blocks.2.hook_resid_pre"][4, 0, 0]
    with model.blocks[2].register_forward_hook(spoil), pytest.raises(InputError) as caught:
        capture(model, tokens, batch_size=2)
    assert "layer 3" in str(caught.value)
    assert "window 4" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert count_hooks(model.module) == 0


def test_large_finite_states_are_not_taken_for_infinite() -> None:
    module = tiny_module("llama")
    with torch.no_grad():
        module.get_input_embeddings().weight.fill_(3e38)
    states = capture(load_model(module), tiny_tokens(), sites=["blocks.0.hook_resid_pre"])
    assert (states["blocks.0.hook_resid_pre"] == torch.tensor(3e38)).all()


def test_bad_requests_are_refused_in_a_line(llama: LanguageModel, tmp_path: Path) -> None:
    tokens = tiny_tokens()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    (tmp_path / "file").touch()
    for words, call in {
        "0 … 3": lambda: capture(llama, tokens, layers=[4]),
        "-1": lambda: capture(llama, tokens, layers=[-1]),
        "at least one layer": lambda: capture(llama, tokens, layers=[]),
        "batch_size=0": lambda: capture(llama, tokens, batch_size=0),
        "hook_nothing": lambda: capture(llama, tokens, sites=["hook_nothing"]),
        "at least one prompt, got none": lambda: capture(llama, tokens[:0]),
        "64 positions": lambda: capture(llama, tiny_tokens(1, 65)),
        "not empty": lambda: capture(llama, tokens, out=tmp_path / "full"),
        "cannot be made": lambda: capture(llama, tokens, out=tmp_path / "file" / "below"),
        "was not": lambda: capture(llama, tokens)["blocks.0.hook_mlp_out"],
        "stream.json": lambda: ResidualStream.open(tmp_path / "full"),
    }.items():
        with pytest.raises(InputError) as caught:
            call()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_another_dtype_is_refused(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of types
    with pytest.raises(InputError, match="got 'bfloat16'"):
        capture(llama, tiny_tokens(), dtype="bfloat16")  # type: ignore[arg-type]


def test_a_folder_that_fills_up_is_said(llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(capturing, "save_file", full)
    with pytest.raises(InputError, match="No space left"):
        capture(llama, tiny_tokens(), out=tmp_path / "stream")
