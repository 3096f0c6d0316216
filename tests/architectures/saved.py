"""A tiny model as a directory on disk, with a tokenizer and a text that fit it, and what is asked of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import probe
from probe.analyses import tokenwise as analysis
from tests.architectures.case import Case, NothingToAskError, WrongError, check, within
from tests.architectures.oracle import own_states
from tests.architectures.tables import VOCABULARY
from tests.plant.saved import write_text

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single characters for the vocabulary of the zoo."""
    characters = [chr(code) for code in range(32, 127)][: VOCABULARY - len(SPECIAL) - 1]
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL, *characters, "\n"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names)


@contextmanager
def saved(case: Case) -> Iterator[Path]:
    """The directory of a case's module, for a while."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        try:
            case.module.save_pretrained(path)
        except Exception as error:
            raise NothingToAskError(f"transformers does not save it: {type(error).__name__}") from error
        tokenizer().save_pretrained(path)
        yield path


@check()
def directory(case: Case) -> float:
    """A saved directory gives the states of the object, to the bit, and its continuity, read matrix by matrix."""
    with saved(case) as path:
        model = probe.load_model(path)
        stream = probe.capture(model, case.tokens)
        for layer, state in enumerate(own_states(model.module, case.oracle.path, case.tokens)[:-1]):
            if not torch.equal(stream[f"blocks.{layer}.hook_resid_pre"], state):
                raise WrongError(float("inf"), f"blocks.{layer}.hook_resid_pre of the directory, to the bit")
        if model.weight_hash != case.single.weight_hash:
            raise NothingToAskError("transformers does not load what it saved")
        read = probe.weights.continuity(str(path))
    held = probe.weights.continuity(case.single)
    worst = 0.0
    for name in ("input_continuity", "output_continuity"):
        found, expected = torch.as_tensor(read[name].values), torch.as_tensor(held[name].values)
        worst = max(worst, within(found.nan_to_num(), expected.nan_to_num(), 1e-3, f"{name} of the directory"))
    return worst


@check()
def tokenwise(case: Case) -> float:
    """The analysis of layer updates runs to its end on a saved directory, and its numbers are numbers."""
    small = {"windows": 6, "window_length": 32, "fit_windows": 16, "positions_per_window": 4, "layers": "0,1"}
    small |= {"classes": ("mean", "linear", "alone"), "replaced": ("mean", "linear"), "draws": 1, "all_windows": 2}
    small |= {"sweep": False, "floor": False}
    with saved(case) as path:
        text = write_text(path.parent / "text.txt", articles=30)
        config = analysis.Config(model=str(path), text=text, **small)
        result = analysis.run(config, out=path.parent / "run", quiet=True)
        data = result.data.load()
    for name in ("relative_error", "update_norm", "state_norm", "kl", "entropy"):
        values = data[name].values
        if not np.isfinite(values[~np.isnan(values)]).all() or np.isnan(values).all():
            raise WrongError(float("inf"), f"{name} of tokenwise is not finite")
    return 0.0
