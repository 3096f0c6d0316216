"""Blocks run on the last positions of changed streams equal a whole pass with hooks, on every architecture."""

from __future__ import annotations

import pytest
import torch

from probe import replay
from probe.model import first_tensor
from tests.plant.tiny import ARCHITECTURES, LAYERS, RECURRENT, VOCABULARY, tiny_model

LENGTH = 20
WINDOWS = torch.tensor([2, 0, 2, 1])
"""The window that each alternative is of."""

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def _tokens():
    return torch.randint(0, VOCABULARY - 8, (3, LENGTH), generator=torch.Generator().manual_seed(0))


def _recorded(architecture):
    model, tokens = tiny_model(architecture), _tokens()
    return model, replay.record(model, tokens, torch.full((3, 1), LENGTH - 1))


def _changed(context, layer, start):
    states = context.states[layer][WINDOWS, start:]
    generator = torch.Generator().manual_seed(1)
    return states + 0.3 * states.std() * torch.randn(states.shape, generator=generator)


def _by_hooks(model, tokens, layer, start, states):
    """The stream that enters the final norm when a plain hook puts `states` into what enters block `layer`."""

    def overwrite(module, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[:, start:] = states
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    last = []
    handles = [
        model.blocks[layer].register_forward_pre_hook(overwrite, with_kwargs=True),
        model.blocks[-1].register_forward_hook(lambda module, args, output: last.append(first_tensor(output))),
    ]
    with torch.no_grad():
        model.forward(tokens)
    for handle in handles:
        handle.remove()
    return last[0][:, start:]


@every_architecture
def test_a_suffix_runs_on_as_in_a_full_pass(architecture):
    model, context = _recorded(architecture)
    for layer, start in [(0, 7), (2, 13), (2, 0), (LAYERS - 1, LENGTH - 1)]:
        states = _changed(context, layer, start)
        with torch.no_grad():
            found = context.run_suffix(layer, start, states, WINDOWS)
        expected = _by_hooks(model, context.tokens[WINDOWS], layer, start, states)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert (found - context.states[LAYERS][WINDOWS, start:]).norm() > 1e-2 * expected.norm()
    ways = {context.suffix_way(layer, 7) for layer in range(LAYERS)}
    assert ways <= ({"carried", "sequences"} if architecture in RECURRENT else {"keys"})
    assert context.suffix_way(0, LENGTH - 1) == ("carried" if architecture in RECURRENT else "keys")
    assert context.suffix_way(1, 0) == "sequences"


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mamba2"])
def test_every_way_gives_the_same(architecture):
    _, context = _recorded(architecture)
    states = _changed(context, 1, 12)
    ways = {"llama": ("keys", "carried"), "gemma3": ("keys",), "mamba2": ()}[architecture]
    with torch.no_grad():
        expected = replay.suffix.run(context, "sequences", 1, 12, states, WINDOWS)
        for way in (*ways, context.suffix_way(1, 12)):
            found = replay.suffix.run(context, way, 1, 12, states, WINDOWS)
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_an_earlier_start_is_proved_again():
    model, context = _recorded("llama")
    context.suffix_way(1, 15)
    with torch.no_grad():
        model.blocks[1].mlp.down_proj.weight.mul_(2)
    context.suffix_way(1, 16)  # rests on the proof from 15 on
    with pytest.raises(ValueError, match="block 1 of"):
        context.suffix_way(1, 12)


def test_a_part_of_a_context_goes_on_as_the_whole_does():
    _, context = _recorded("llama")
    part = context.select(slice(1, 3), slice(0, 1))
    states = _changed(context, 1, 12)[[0, 2, 3]]  # of windows 2, 2 and 1
    with torch.no_grad():
        whole = context.run_suffix(1, 12, states, torch.tensor([2, 2, 1]))
        found = part.run_suffix(1, 12, states, torch.tensor([1, 1, 0]))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


def test_a_depth_that_was_not_recorded_is_refused():
    model, tokens = tiny_model("llama"), _tokens()
    context = replay.record(model, tokens, torch.zeros(3, 1, dtype=torch.int64), layers=[3])
    with pytest.raises(ValueError, match="that of depth 1 was not"):
        context.run_suffix(1, 5, torch.zeros(1, LENGTH - 5, model.d_model), torch.tensor([0]))
