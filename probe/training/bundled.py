"""Training of the small byte-level models that ship with the library, each written with its card.

    python -m probe.training --architecture transformer --text FILE --out DIR
    python -m probe.training --architecture mamba --text FILE --out DIR

A directory holds the files that `probe.load_model` reads (the configuration, weights in float16, a tokenizer with one
token a byte) and `README.md`, the card. The text is not copied. The start is that of `load_model(DIR,
random_init=SEED)`. An interrupted training continues from its checkpoint; equal arguments give equal weights on the
same machine. The package `mambapy` computes Mamba's scan over positions in parallel; as a loop, its gradient takes ten
times as long.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
import tyro
from jaxtyping import Int64
from torch import Tensor, nn
from tqdm.auto import tqdm

from probe.errors import InputError
from probe.model.loading import seeded
from probe.text import Part, Windows, load_windows
from probe.training.data import Bytes, NextByte
from probe.training.loop import Schedule, Stack, snapshot_steps, train
from probe.training.optimisers import Optimiser
from probe.training.transformer import BYTES, next_byte_loss

SIZES: MappingProxyType[str, tuple[str, dict[str, Any]]] = MappingProxyType({
    "transformer": (
        "LlamaConfig",
        {
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "max_position_embeddings": 1024,
        },
    ),
    "mamba": ("MambaConfig", {"hidden_size": 128, "num_hidden_layers": 6, "state_size": 8, "expand": 2}),
})
"""Class of configuration in transformers, and its arguments; at most 1.3 million parameters, 2.6 MB in float16."""
TOKENS = {"vocab_size": BYTES, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
WEIGHT_DECAY, WARMUP = 0.1, 0.05
UNDECAYED = ("A_log", ".D", "norm", "bias")  # parameters whose names hold one of these do not decay
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Training of a small byte-level language model on a text, written with its card."""

    architecture: Literal["transformer", "mamba"]
    """Llama's architecture, or Mamba's."""
    out: Path
    """Directory of the model."""
    dataset: str | None = None
    """wikitext-2, wikitext-103 or sample."""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A UTF-8 file instead of a data set."""
    split: str = "train"
    """Split of the data set."""
    seed: int = 0
    """Seed of the start and of the order of the text."""
    steps: int = 4000
    """Number of steps."""
    batch: int = 8
    """Windows of a step."""
    window_length: int = 128
    """Bytes of a window."""
    learning_rate: float = 2e-3
    """Highest learning rate, after the warm-up."""
    held_out: int = 512
    """Windows on which the model is judged, from the tenth of the documents that it does not learn."""

    @property
    def command(self) -> str:
        """The command that gives the same weights."""
        text = f"--text {self.text.name}" if self.text else f"--dataset {self.dataset} --split {self.split}"
        names = ("seed", "steps", "batch", "window_length", "learning_rate", "held_out")
        numbers = " ".join(f"--{name.replace('_', '-')} {getattr(self, name)}" for name in names)
        return f"python -m probe.training --architecture {self.architecture} {text} {numbers} --out {self.out.name}"


def fit(config: Config, *, quiet: bool = False) -> Path:
    """Train a model and write it, or continue an interrupted training.

    Args:
        config: The model and its text.
        quiet: Show no progress.

    Returns:
        The model's directory.

    Raises:
        InputError: If the text cannot be read or is too short, the directory holds a model, or `mambapy` is missing.
    """
    if config.architecture == "mamba" and find_spec("mambapy") is None:
        raise InputError("Mamba is trained with the package mambapy, which is not installed: pip install mambapy")
    if (config.out / "config.json").exists():
        raise InputError(f"a new model needs a directory of its own, and {config.out} holds a model: pass another out=")
    learned, held_out = texts(config)
    module = fresh(config.architecture, config.seed)
    _scan_in_parallel(module, True)
    stack = Stack([_Logits(module)], next_byte_loss, batched=False)
    data = NextByte((config.seed,), learned.tokens, held_out.tokens, batch=config.batch)
    decayed = [name for name, value in stack.start.items() if value.ndim > 2 and not any(u in name for u in UNDECAYED)]
    optimiser = Optimiser("adamw", WEIGHT_DECAY, hidden=(), decayed=decayed, learning_rate=config.learning_rate)
    schedule = Schedule(config.steps, snapshot_steps(config.steps, 10), WARMUP)
    judged = data.held_out(min(64, config.held_out))

    def observe(parameters: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"held_out_loss": stack.losses(parameters, judged)}

    checkpoint = _File(config.out / CHECKPOINT, config)
    with tqdm(total=config.steps, desc=config.architecture, unit="step", disable=quiet) as bar:
        seen, parameters = train(
            stack, data.batch, optimiser, schedule, observe, checkpoint=checkpoint, progress=bar.update
        )
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(parameters[f"module.{name}"][0])
    _scan_in_parallel(module, False)
    curve = dict(zip(schedule.snapshots, seen["held_out_loss"][:, 0].tolist(), strict=True))
    _write(config, module, learned, held_out, curve)
    checkpoint.path.unlink(missing_ok=True)
    return config.out


def fresh(architecture: str, seed: int) -> nn.Module:
    """Make a model before its training, equal to `load_model(DIRECTORY, random_init=seed)`.

    Args:
        architecture: A key of `SIZES`.
        seed: Seed of the weights.

    Returns:
        The module of transformers.
    """
    import transformers

    name, settings = SIZES[architecture]
    options = getattr(transformers, name)(**settings, **TOKENS)
    with seeded(seed):
        module: nn.Module = transformers.AutoModelForCausalLM.from_config(options, dtype=torch.float32)
    return module


def byte_tokenizer() -> Any:
    """Make a tokenizer of transformers with one token a byte; the id is the byte.

    Returns:
        The tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {piece: byte for byte, piece in bytes_to_unicode().items()}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def trigram_bits(learned: Int64[Tensor, "window position"], held_out: Int64[Tensor, "other length"]) -> float:
    """Compute the bits a byte of a trigram model, which predicts a byte from the two before it.

    Witten and Bell's interpolation, ``P(c|ab) = (n(abc) + t(ab) P(c|b)) / (n(ab) + t(ab))`` with t(ab) the number of
    different bytes seen after ab; likewise P(c|b) from P(c), and P(c) from the uniform distribution.

    Args:
        learned: Windows whose trigrams are counted.
        held_out: Windows whose bytes are predicted, from the third byte on.

    Returns:
        Cross-entropy in bits.

    Source: Witten & Bell (1991), IEEE Transactions on Information Theory 37(4), method C.
    """
    triples = _codes(held_out, 2)
    probability = torch.full(triples.shape, 1 / BYTES, dtype=torch.float64)
    for order in range(3):
        seen, counts = torch.unique(_codes(learned, order), return_counts=True)
        asked = triples % BYTES ** (order + 1)  # the byte, and the `order` bytes before it
        index = torch.searchsorted(seen, asked).clamp(max=len(seen) - 1)
        count = torch.where(seen[index] == asked, counts[index], 0)
        total, kinds = (
            torch.bincount(seen // BYTES, weights, minlength=BYTES**order)[asked // BYTES]
            for weights in (counts.double(), torch.ones(len(seen), dtype=torch.float64))
        )
        known = (count + kinds * probability) / (total + kinds).clamp(min=1)
        probability = torch.where(total > 0, known, probability)
    return float(-probability.log2().mean())


def _codes(windows: Int64[Tensor, "window position"], order: int) -> Int64[Tensor, " ngram"]:
    """Runs of `order` + 1 bytes as numbers."""
    length = windows.shape[1] - order
    codes = sum(windows[:, offset : offset + length] * BYTES ** (order - offset) for offset in range(order + 1))
    assert isinstance(codes, Tensor)
    return codes.flatten()


class _Logits(nn.Module):
    """A causal LM as a function of its tokens alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, tokens: Int64[Tensor, "window position"]) -> Tensor:
        logits: Tensor = self.module(input_ids=tokens, use_cache=False).logits
        return logits


@dataclass(frozen=True)
class _File:
    """A checkpoint in one file, which belongs to one configuration."""

    path: Path
    config: Config

    def load(self) -> dict[str, Tensor] | None:
        if not self.path.is_file():
            return None
        with safetensors.safe_open(self.path, framework="pt") as file:
            if file.metadata() != self._key():
                raise InputError(f"{self.path} belongs to other options: delete it or pass another out=")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping

    def save(self, state: Mapping[str, Tensor]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, partial, self._key())
        os.replace(partial, self.path)

    def _key(self) -> dict[str, str]:
        return {"command": self.config.command}


def texts(config: Config) -> tuple[Windows, Windows]:
    """Load the windows to learn, of nine tenths of the documents, and those on which the model is judged.

    Args:
        config: The text and its windows.

    Returns:
        Windows of all documents but the validation part; windows of the validation part.
    """

    def windows(part: Part) -> Windows:
        return load_windows(
            Bytes(),
            dataset=None if config.text else config.dataset,
            text=config.text,
            split=config.split,
            windows=None,
            window_length=config.window_length + 1,
            part=part,
            seed=config.seed,
        )

    def some(of: Windows, which: slice | Tensor) -> Windows:
        return replace(of, tokens=of.tokens[which], document=of.document[which])

    every, held_out = windows("all"), windows("validation")
    learned = ~torch.isin(every.document, held_out.document)
    return some(every, learned), some(held_out, slice(config.held_out))


def _scan_in_parallel(module: nn.Module, parallel: bool) -> None:
    """Choose the scan of Mamba's blocks over positions; other models have no such blocks."""
    for block in module.modules():
        if hasattr(block, "use_mambapy"):
            block.use_mambapy = parallel  # type: ignore[assignment]  # no tensor


def _write(config: Config, module: nn.Module, learned: Windows, held_out: Windows, curve: Mapping[int, float]) -> None:
    """Write the model's directory; the weights are judged as they ship, in float16, and the card says so."""
    half: Any = module.half()
    half.save_pretrained(config.out)
    byte_tokenizer().save_pretrained(config.out)
    whole = module.float().eval()
    with torch.no_grad():
        losses = [
            float(next_byte_loss(whole(input_ids=part[:, :-1], use_cache=False).logits, part[:, 1:])) * len(part)
            for part in held_out.tokens.split(32)
        ]
    found = {
        "architecture": config.architecture,
        "parameters": sum(value.numel() for value in module.parameters()),
        "text": learned.name,
        "text_sha256": learned.sha256,
        "bytes_learned": learned.tokens.numel(),
        "documents_learned": learned.n_documents,
        "documents_judged": held_out.n_documents,
        "steps": config.steps,
        "bytes_a_step": config.batch * config.window_length,
        "held_out_bits_per_byte": sum(losses) / held_out.n_windows / _NAT,
        "trigram_bits_per_byte": trigram_bits(learned.tokens, held_out.tokens),
        "weights_sha256": hashlib.sha256((config.out / "model.safetensors").read_bytes()).hexdigest(),
        "seed": config.seed,
        "command": config.command,
        "learning_curve_bits_per_byte": {str(step): loss / _NAT for step, loss in curve.items()},
    }
    (config.out / "README.md").write_text(_card(found), encoding="utf-8")


_NAT = math.log(2)  # nats in a bit


def _card(found: Mapping[str, Any]) -> str:
    lines = [f"# A small {found['architecture']} on bytes", ""]
    lines += [
        f"{found['parameters']:,} parameters in float16, trained by `probe` on {found['bytes_learned']:,} bytes of "
        f"{found['text']} ({found['documents_learned']} documents; judged on {found['documents_judged']} others). The "
        "text is not shipped. For tests and examples, not for use.",
        "",
        "| | |",
        "|---|---|",
    ]
    shown = {key: value for key, value in found.items() if key != "learning_curve_bits_per_byte"}
    lines += [f"| {key.replace('_', ' ')} | {_text(value)} |" for key, value in shown.items()]
    curve = found["learning_curve_bits_per_byte"]
    lines += ["", "Held-out bits a byte by step:", "", "| step | bits / byte |", "|---|---|"]
    lines += [f"| {step} | {bits:.3f} |" for step, bits in curve.items()]
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"`{value}`" if isinstance(value, str) else f"{value:,}"
