"""What a case hands to the library, and the module that the oracle runs: the same weights, made without the library."""

from __future__ import annotations

import copy
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.architectures import zoo
from tests.architectures.case import in_double
from tests.architectures.oracle import NotADecoderError, find_layers, output_state
from tests.architectures.saved import tokenizer
from tests.architectures.tables import VOCABULARY
from tests.plant import gguf_model
from tests.soak.drawing import WRITTEN, Drawn

LAYERS = 2
BYTES = 300
"""Vocabulary of a GGUF file, whose tokenizer has a token for each byte."""


class NothingMadeError(Exception):
    """There is no such module or file: transformers or PEFT do not make it."""


@dataclass
class Made:
    """A case made.

    Attributes:
        given: What `load_model` gets: an object or a path.
        module: The module whose numbers are right, in the dtype of the object, or of the weights as they are loaded.
        tokens: Tokens for the library.
        plain: The same for the oracle: int64, in the vocabulary; random ones where the library's are to be refused.
        positions: Int64 (window, 1).
    """

    given: Any
    module: Any
    tokens: Tensor
    plain: Tensor
    positions: Tensor


def make(drawn: Drawn, folder: Path) -> Made:
    """Build the module of a case, wrap it, write it, and draw its tokens.

    Args:
        drawn: The case.
        folder: An empty folder.

    Raises:
        NothingMadeError: If the drawn parts do not go together.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _made(drawn, folder)
        except Exception as error:
            raise NothingMadeError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _made(drawn: Drawn, folder: Path) -> Made:
    changes = {"vocab_size": BYTES, **WRITTEN[drawn.type.partition(":")[0]]} if drawn.file == "gguf" else {}
    module = zoo.tiny(drawn.type, layers=LAYERS, seed=drawn.number, **changes)
    plain, tokens = _tokens(drawn)
    places = torch.Generator().manual_seed(drawn.number)
    positions = torch.randint(0, drawn.length, (drawn.windows, 1), generator=places)
    dtype = getattr(torch, drawn.dtype)
    if drawn.file:
        module = _merged(module) if drawn.object == "merged" else module
        _round(module, dtype)
        stored = module.base_model if drawn.object == "trunk" else module
        given = _write(drawn, stored, dtype, folder)
        return Made(given, _cast(module, getattr(torch, drawn.loaded)), tokens, plain, positions)
    given, module = OBJECTS[drawn.object](_cast(module, dtype), plain)
    return Made(given, module, tokens, plain, positions)


def _cast(module: Any, dtype: torch.dtype) -> Any:
    return in_double(module) if dtype is torch.float64 else module.to(dtype)


# Tokens


def _tokens(drawn: Drawn) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + drawn.number)
    plain = torch.randint(4, 90, (drawn.windows, drawn.length), generator=generator)
    size = BYTES if drawn.file == "gguf" else VOCABULARY
    tokens = plain.clone()
    match drawn.tokens:
        case "int32" | "uint8":
            tokens = tokens.to(getattr(torch, drawn.tokens))
        case "left pads":
            tokens[-1, : max(1, drawn.length // 2)] = 0
        case "outside":
            tokens[0, -1] = size
        case "negative":
            tokens[-1, 0] = -1
        case "empty":
            tokens = tokens[:, :0]
        case "no windows":
            tokens = tokens[:0]
        case "floats":
            tokens = tokens.float()
        case "one axis":
            tokens = tokens[0]
    return plain, tokens


# Objects


def _adapted(module: Any) -> Any:
    turned = module.config.model_type in ("gpt2", "imagegpt", "openai-gpt", "decision_transformer")
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=turned)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(module, config).eval().requires_grad_(False)


def _merged(module: Any) -> Any:
    return _adapted(module).merge_and_unload()


def _lora(module: Any, _: Tensor) -> tuple[Any, Any]:
    whole = _adapted(module)
    return whole, whole.get_base_model()


def _trunk(module: Any, _: Tensor) -> tuple[Any, Any]:
    if module.base_model is module:
        raise NothingMadeError("its trunk has no name")
    return module.base_model, module


def _hooked(change: Callable[[Tensor], Tensor | None], inside: bool) -> Callable[[Any, Tensor], tuple[Any, Any]]:
    def hooked(module: Any, tokens: Tensor) -> tuple[Any, Any]:
        try:
            block = find_layers(module, tokens)[1][-1]
        except NotADecoderError:
            block = next(part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part))[-1]
        linear = [part for part in block.modules() if isinstance(part, nn.Linear)] if inside else [block]
        linear[-1].register_forward_hook(_replacing(change))
        return module, module

    return hooked


def _replacing(change: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        state = output_state(output)
        assert state is not None
        changed = change(state)
        return changed if changed is None or isinstance(output, Tensor) else type(output)((changed, *output[1:]))

    return hook


OBJECTS: dict[str, Callable[[Any, Tensor], tuple[Any, Any]]] = {
    "module": lambda module, _: (module, module),
    "trunk": _trunk,
    "compiled": lambda module, _: (torch.compile(module), module),
    "lora": _lora,
    "merged": lambda module, _: (_merged(module),) * 2,
    "watched": _hooked(lambda _: None, inside=False),
    "scaled by a hook": _hooked(lambda state: 1.5 * state, inside=True),
    "shifted by a hook": _hooked(lambda state: state + 0.5 * state.tanh(), inside=False),
}
"""What is given, and the module inside, by the name of the object."""


# Files


@torch.no_grad()
def _round(module: nn.Module, dtype: torch.dtype) -> None:
    """Round to a dtype what a file stores; what is computed from the configuration stays as it is."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))


def _write(drawn: Drawn, module: Any, dtype: torch.dtype, folder: Path) -> Path:
    if drawn.file == "gguf":
        gguf_model.write(folder / "model.gguf", module)
        return folder / "model.gguf"
    path = folder / "model"
    sharded = drawn.file in ("shards", "missing shard")
    copy.deepcopy(module).to(dtype).save_pretrained(path, max_shard_size="20KB" if sharded else "1GB")
    tokenizer().save_pretrained(path)
    _change(drawn, path)
    return path


def _change(drawn: Drawn, path: Path) -> None:
    """Store the weights otherwise, or damage them."""
    rng = random.Random(drawn.number)
    files = sorted(path.glob("*.safetensors"))
    file = files[0]
    if drawn.file in ("shards", "missing shard"):
        if len(files) < 2:
            raise NothingMadeError("it lies in one file")
        if drawn.file == "missing shard":
            rng.choice(files).unlink()
    elif drawn.file == "truncated":
        content = file.read_bytes()
        file.write_bytes(content[: int(rng.choice([0.0, 0.01, 0.5, 0.999]) * len(content))])
    elif drawn.file in ("bin", "extra tensor", "missing tensor", "another shape"):
        stored = load_file(file)
        whole = sorted(name for name, tensor in stored.items() if tensor.ndim)
        chosen = rng.choice(whole)
        if drawn.file == "extra tensor":
            stored["extra.weight"] = torch.ones(3)
        elif drawn.file == "missing tensor":
            del stored[chosen]
        elif drawn.file == "another shape":
            stored[chosen] = torch.cat([stored[chosen], stored[chosen][:1]])
        if drawn.file == "bin":
            file.unlink()
            torch.save(stored, path / "pytorch_model.bin")
        else:
            save_file(stored, file, {"format": "pt"})


def emptied(folder: Path) -> None:
    """Remove what an attempt left in a folder."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
