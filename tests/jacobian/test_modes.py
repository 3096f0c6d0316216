from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch

from probe import replay
from probe.errors import InputError
from probe.jacobian import block, block_jacobian, iter_block_jacobians, operator, site_jacobian
from probe.model import load_model
from tests.architectures import zoo
from tests.plant.tiny import tiny_model, tiny_module, tiny_tokens

TOKENS = tiny_tokens(2, 8)
MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
MEASURES: dict[str, Callable[[Any], Any]] = {
    "auto": lambda model: block_jacobian(model, TOKENS, 1, [3, 7]),
    "frozen": lambda model: block_jacobian(model, TOKENS, 1, [3, 7], method="frozen"),
    "jacrev": lambda model: block_jacobian(model, TOKENS, 1, [3, 7], method="jacrev"),
    "alone": lambda model: block_jacobian(model, TOKENS, 1, [3], context="alone"),
    "all layers": lambda model: torch.stack([J for _, J in iter_block_jacobians(model, TOKENS, None, [3])]),
    "sites": lambda model: site_jacobian(model, TOKENS, "blocks.1.hook_resid_pre", "blocks.2.hook_resid_post", [3]),
    "operator": lambda model: torch.from_numpy(operator(model, TOKENS, 1, 3) @ np.eye(model.d_model)),
}


@pytest.mark.guards(
    "inference_mode, no_grad or autocast surround the call",
    when="a Jacobian is computed",
    gives="the Jacobian of a plain call",
)
@pytest.mark.parametrize("architecture", ["llama", "mamba"])
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("mode", MODES)
def test_a_jacobian_is_the_same_whatever_mode_surrounds_the_call(mode: str, measure: str, architecture: str) -> None:
    expected = MEASURES[measure](tiny_model(architecture))
    model = tiny_model(architecture)
    with MODES[mode]():
        found = MEASURES[measure](model)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.is_grad_enabled()


@pytest.mark.guards(
    '`method="auto"` ends with a method that works, or one refusal',
    when="a Jacobian is computed",
    says=(
        "a Jacobian needs blocks that run again with gradients, and block … of … does not by … "
        "(…): use a model of another family"
    ),
)
@pytest.mark.parametrize("error", [RuntimeError, TypeError, IndexError, AttributeError, NotImplementedError])
def test_a_foreign_error_of_a_faster_method_leads_to_the_next(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(tiny_module("llama"))
    expected = block_jacobian(model, TOKENS, 1, [3], method="jacrev")

    def fail(*_: object) -> None:
        raise error("planted")

    monkeypatch.setattr(block, "_composed", fail)
    monkeypatch.setattr(block, "_frozen", fail)
    with caplog.at_level(logging.INFO, logger="probe.jacobian"):
        found = block_jacobian(model, TOKENS, 1, [3])
    torch.testing.assert_close(found, expected)
    said = [record.getMessage() for record in caplog.records]
    assert sum("planted" in line for line in said) == 2
    assert said[-1].endswith("by method jacrev")
    monkeypatch.setattr(block.rows, "reference", fail)
    with pytest.raises(InputError, match=rf"does not by jacrev \({error.__name__}\)") as caught:
        block_jacobian(model, TOKENS, 1, [3])
    assert "\n" not in str(caught.value)


@pytest.mark.guards(
    "a context was recorded in inference_mode",
    when="a Jacobian is computed",
    gives="the Jacobian of a plain one",
)
def test_a_context_recorded_in_inference_mode_serves_outside_of_it() -> None:
    model = tiny_model("llama")
    positions = torch.tensor([[3], [4]])
    with torch.inference_mode():
        recorded = replay.record(model, TOKENS, positions)
    expected = block.recorded_jacobian(replay.record(model, TOKENS, positions), 1)
    torch.testing.assert_close(block.recorded_jacobian(recorded, 1), expected)


@pytest.mark.parametrize(("model_type", "taken"), [("gemma2", "eager"), ("gpt_oss", "eager"), ("llama", "sdpa")])
def test_an_implementation_is_recommended_that_the_model_takes(model_type: str, taken: str) -> None:
    model, tokens = load_model(zoo.tiny(model_type)), TOKENS[:1] % 64
    model.module.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match=f'load it with attn_implementation="{taken}"$'):
        block_jacobian(model, tokens, 1, [3])
    model.module.set_attn_implementation(taken)
    assert block_jacobian(model, tokens, 1, [3]).shape == (1, 1, model.d_model, model.d_model)


@pytest.mark.guards(
    "a model was made in inference_mode, of whose weights autograd keeps nothing",
    when="a Jacobian is computed",
    gives="the Jacobian of a plain one, of copies of the weights",
)
@pytest.mark.parametrize("method", ["auto", "frozen", "jacrev"])
@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_a_model_made_in_inference_mode_has_the_jacobian_of_a_plain_one(architecture: str, method: Any) -> None:
    with torch.inference_mode():
        module = tiny_module(architecture)
    assert next(module.parameters()).is_inference()
    expected = block_jacobian(tiny_model(architecture), TOKENS, 1, [3], method=method)
    found = block_jacobian(load_model(module), TOKENS, 1, [3], method=method)
    torch.testing.assert_close(found, expected)
    assert next(module.parameters()).is_inference()
