"""Models around models: of images and text, compiled, with adapters. The decoder inside is found and is exact."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from probe.errors import InputError
from probe.jacobian import block_jacobian
from probe.model import load_model
from tests.architectures import checks as _checks  # noqa: F401 - enter their checks into the table
from tests.architectures import zoo
from tests.architectures.case import Case, measure

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21

JOINT = ("gemma3", "qwen3_vl", "llava", "mistral3", "aria", "internvl", "idefics3", "mllama", "fuyu", "gemma4")
ADAPTED = ("llama", "gpt2", "gpt_neox", "phi3")


@pytest.mark.guards(
    "the decoder of a model of images and text",
    when="a model is loaded",
    gives="exact; never the blocks of its vision part",
)
@pytest.mark.parametrize("name", JOINT)
def test_the_decoder_inside_a_model_of_images_and_text_is_exact(name: str) -> None:
    case = Case(zoo.multimodal(name), n_rows=2)
    for check in ("load", "capture", "head", "jacobian"):
        found = measure(case, check)
        assert found.outcome == "exact", found
    assert "vision" not in case.single.layout.blocks


@pytest.mark.guards(
    "the whole model runs on text",
    when="a model is loaded",
    gives="the causal model inside, named in `description`",
)
def test_a_causal_model_inside_is_taken_where_the_whole_does_not_run_on_text() -> None:
    whole = zoo.multimodal("llama4")
    with pytest.raises(AttributeError):  # in transformers 5.24
        whole(input_ids=zoo.questions()[0])
    model = load_model(whole)
    assert model.module is whole.language_model
    assert "Llama4ForCausalLM inside" in model.description
    with pytest.raises(InputError, match="trunk without a head"):
        load_model(whole.language_model.model)


def adapted(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model with adapters that are not merged, and a copy in which they are."""
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=name == "gpt2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(zoo.tiny(name, layers=2), config).eval()
    return model, copy.deepcopy(model).merge_and_unload()


@pytest.mark.guards(
    "weights are what runs: an adapter that is not merged adds to a matrix",
    when="a model is loaded",
    gives="Jacobians of the adapted weights; no matrix until `merge_and_unload()`",
)
@pytest.mark.parametrize("name", ADAPTED)
def test_jacobians_are_those_of_the_adapted_weights_and_matrices_wait_for_a_merge(name: str) -> None:
    (whole, merged), (tokens, positions) = adapted(name), zoo.questions()
    plain, one, other = (load_model(each) for each in (zoo.tiny(name, layers=2), whole, merged))
    found, expected, without = (block_jacobian(each, tokens, 1, positions, of="update") for each in (one, other, plain))
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert (without - expected).norm() > 1e-2 * expected.norm()
    assert one.method(1)[0] == "frozen"
    assert not one.projections(1)
    (left_out,) = (part for part in one.support.left_out if "matrices" in part.what)
    assert "merge_and_unload()" in left_out.why
    assert set(other.projections(1)) == set(plain.projections(1))
    assert other.method(1)[0] == "analytic"


@pytest.mark.guards(
    "weights are what runs: an adapter changes some matrices",
    when="a model is loaded",
    gives="the others by name",
)
def test_an_adapter_of_some_modules_withholds_their_matrices_alone() -> None:
    config = LoraConfig(r=4, target_modules=["v_proj"], init_lora_weights=False)
    model = load_model(get_peft_model(zoo.tiny("llama", layers=2), config).eval())
    assert set(model.projections(0)) == {"q", "k", "o", "gate", "up", "down"}


@pytest.mark.guards(
    "weights are what runs: a packed weight is not what multiplies",
    when="a model is loaded",
    gives="no matrix of that name, with the reason in `support`",
)
def test_a_module_that_packs_its_weight_has_no_matrix() -> None:
    class Packed(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.scale = linear.weight.abs().amax() / 127
            self.register_buffer("weight", (linear.weight / self.scale).round().to(torch.int8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ (self.weight.to(x.dtype) * self.scale).mT

    module = zoo.tiny("llama", layers=2)
    for block in module.model.layers:
        block.mlp.up_proj = Packed(block.mlp.up_proj)
    model = load_model(module)
    assert "up" not in model.projections(0)
    assert "down" in model.projections(0)
    assert any("dequantise" in part.why for part in model.support.left_out)
