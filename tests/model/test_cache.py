"""The cache of converted weights: an entry is as it was written, or it is made anew; it never stops a load."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from probe.cli import models as command
from probe.errors import InputError
from probe.model import cache, load_model, loading
from tests.plant.gguf_model import error, made, write

SIZES = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def model_file(folder: Path, seed: int = 0) -> tuple[Path, Any]:
    module = made(LlamaForCausalLM, seed=seed, **SIZES)
    write(folder / f"model{seed}.gguf", module)
    return folder / f"model{seed}.gguf", module


def forbid_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "gguf_model", lambda *_: pytest.fail("converted again"))


def test_an_entry_is_a_model_s_directory_with_checksums(tmp_path: Path, place: Path) -> None:
    path, module = model_file(tmp_path)
    loaded = load_model(path)
    (entry,) = cache.entries()
    assert [entry.path] == list(place.iterdir())
    assert entry.made_from == str(path)
    assert entry.path.name.startswith(cache.digest_of([path]))
    weights = load_file(entry.path / "model.safetensors")
    assert set(weights) == set(module.state_dict())
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in weights.items())
    assert error(module, AutoModelForCausalLM.from_pretrained(entry.path)) == 0
    assert load_model(entry.path).encode("he") == loaded.encode("he")
    assert set(json.loads((entry.path / "entry.json").read_text())["checksums"]) == set(weights)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_weights_come_in_the_dtype_that_was_asked_for(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, module = model_file(tmp_path)
    first = load_model(path, dtype=dtype)
    forbid_conversion(monkeypatch)
    second = load_model(path, dtype=dtype)
    for model in (first, second):
        state: Any = model.module
        for name, value in state.state_dict().items():
            assert torch.equal(value, module.state_dict()[name].to(getattr(torch, dtype)))


def test_a_changed_weight_does_not_change_the_entry(tmp_path: Path) -> None:
    path, module = model_file(tmp_path)
    for _ in range(2):
        loaded: Any = load_model(path).module
        assert error(module, loaded) == 0
        loaded.model.norm.weight.data.zero_()
    load_model(path, shuffled_weights=0)
    assert error(module, load_model(path).module) == 0


def test_fresh_weights_need_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = model_file(tmp_path)
    first = load_model(path, random_init=3)
    assert cache.entries() == []
    load_model(path)
    forbid_conversion(monkeypatch)
    assert load_model(path, random_init=3).weight_hash == first.weight_hash


@pytest.mark.guards(
    "what the cache keeps of a GGUF file was made by this conversion",
    when="a file is read",
    gives="it is converted anew",
)
@pytest.mark.parametrize("of", ["probe", "transformers"])
def test_another_version_of_the_conversion_converts_again(
    of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, module = model_file(tmp_path)
    load_model(path)
    if of == "probe":
        monkeypatch.setattr(cache, "CONVERSION", cache.CONVERSION + 1)
    else:
        monkeypatch.setattr("importlib.metadata.version", lambda _: "6.0.0")
    with monkeypatch.context() as forbidden:
        forbid_conversion(forbidden)
        with pytest.raises(BaseException, match="converted again"):
            load_model(path)
    assert error(module, load_model(path).module) == 0
    assert len(cache.entries()) == 2


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.guards(
    "what the cache keeps is undamaged, by checksums",
    when="a file is read",
    gives="it is converted anew",
)
@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("model.safetensors", _flip),
        ("model.safetensors", _cut),
        ("model.safetensors", Path.unlink),
        ("model.safetensors", lambda path: path.write_bytes(b"")),
        ("entry.json", _cut),
        ("entry.json", lambda path: path.write_text("{}")),
        ("config.json", _cut),
        ("tokenizer.json", _cut),
    ],
)
def test_a_damaged_entry_is_made_anew(
    file: str, harm: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "probe.model")
    path, module = model_file(tmp_path)
    load_model(path)
    (entry,) = cache.entries()
    harm(entry.path / file)
    again = load_model(path)
    assert error(module, again.module) == 0
    assert again.encode("he") == [257]
    (line,) = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert "\n" not in line
    forbid_conversion(monkeypatch)
    assert error(module, load_model(path).module) == 0


def test_a_file_that_is_refused_leaves_no_entry(tmp_path: Path, place: Path) -> None:
    path, module = model_file(tmp_path)
    write(path, module, without=["blk.0.ffn_up.weight"])
    with pytest.raises(InputError):
        load_model(path)
    assert not place.exists()


def test_a_full_disk_means_no_cache(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "probe.model")
    path, module = model_file(tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert error(module, load_model(path).module) == 0
    assert list(place.iterdir()) == []
    assert "No space left" in caplog.text
    assert "PROBE_CACHE" in caplog.text
    load_model(path)
    assert len(cache.entries()) == 1


def test_a_cache_that_cannot_be_made_means_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, module = model_file(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "file"))
    assert error(module, load_model(path).module) == 0
    assert "are not kept" in caplog.text


def test_entries_beyond_the_limit_go_the_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = [model_file(tmp_path, seed)[0] for seed in range(3)]
    for age, path in enumerate(files[:2]):
        load_model(path)
        os.utime(cache.entries()[0].path, (1000 + age, 1000 + age))
    load_model(files[0])
    assert cache.entries()[0].made_from == str(files[0])
    monkeypatch.setenv("PROBE_CACHE_LIMIT", str(sum(entry.bytes for entry in cache.entries())))
    load_model(files[2])
    assert {entry.made_from for entry in cache.entries()} == {str(files[0]), str(files[2])}
    monkeypatch.setenv("PROBE_CACHE_LIMIT", "1e3")
    load_model(files[1])
    assert len(cache.entries()) == 2
    assert "PROBE_CACHE_LIMIT" in caplog.text
    monkeypatch.setenv("PROBE_CACHE_LIMIT", "much")
    with pytest.raises(InputError, match="much"):
        load_model(files[1])


def test_what_a_stopped_process_left_is_cleared(tmp_path: Path, place: Path) -> None:
    path, _ = model_file(tmp_path)
    for name in ("unfinished-old", "unfinished-dead", "unfinished-alive", "unfinished-new"):
        (place / name).mkdir(parents=True)
    (place / "unfinished-dead" / "lock").touch()
    os.utime(place / "unfinished-old", (time.time() - 3600,) * 2)
    with (place / "unfinished-alive" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        load_model(path)
        assert {folder.name for folder in place.glob("unfinished-*")} == {"unfinished-alive", "unfinished-new"}
    assert len(cache.entries()) == 1


def _load(path: Path, barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    barrier.wait()
    results.put(load_model(path).weight_hash)


def test_two_processes_at_once_both_succeed(tmp_path: Path, place: Path) -> None:
    path, _ = model_file(tmp_path)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    worker = context.Process(target=_load, args=(path, barrier, results))
    worker.start()
    barrier.wait(timeout=120)
    own = load_model(path).weight_hash
    assert results.get(timeout=120) == own
    worker.join(timeout=60)
    assert load_model(path).weight_hash == own
    assert len(list(place.iterdir())) == 1


def test_an_entry_that_another_process_made_first_is_taken(tmp_path: Path, place: Path) -> None:
    path, _ = model_file(tmp_path)
    load_model(path)
    (entry,) = cache.entries()
    zeros = {"a": (2, 3), "none": (0,)}
    again = cache.keep(cache.digest_of([path]), path, zeros, lambda name: np.zeros(zeros[name]), lambda _: None)
    assert again is not None
    assert again.path == entry.path
    assert "a" not in again.names
    assert list(place.iterdir()) == [entry.path]


def test_the_command_shows_and_clears(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = model_file(tmp_path)
    assert command.main(["--cache", "show"]) == 0
    assert "empty" in capsys.readouterr().out
    load_model(path)
    assert command.main(["--cache", "show", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["made_from"] == str(path)
    assert shown["bytes"] == cache.entries()[0].bytes
    assert command.main(["--cache", "show"]) == 0
    assert "model0.gguf" in capsys.readouterr().out.replace("\n", "")
    assert command.main(["--cache", "clear"]) == 0
    assert "kB" in capsys.readouterr().out
    assert cache.entries() == []
    assert command.main(["--cache", "burn"]) == 2
