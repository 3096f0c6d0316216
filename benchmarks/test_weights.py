"""Continuity of the default model's weights against a plain loop of `torch.linalg.svd`; large matrices; memory.

The clock is the CPU time of one thread, so that other programs on the machine count for less. What is compared has to
agree: the same |cosines|, the same leading triplets. Memory is that of fresh processes: a checkpoint that is read one
matrix at a time against the model loaded first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from probe import load_model, weights
from probe.model import LanguageModel, cache, sources

WIDE = (4096, 3072)
MEMORY = """
import json, pathlib, sys
from probe import load_model, weights
model = sys.argv[2] if sys.argv[1] == "file" else load_model(sys.argv[2])
found = weights.continuity(model, composites=False)
status = pathlib.Path("/proc/self/status").read_text()  # of this program alone, not of the process it came from
peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps([peak, float(found["input_continuity"].mean())]))
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model(sources.DEFAULT_MODEL)


def plain(model: LanguageModel) -> dict[str, tuple[Tensor, Tensor]]:
    """What a user would write: |cos| of neighbours in both spaces, from all singular vectors of every matrix."""
    names = list(model.projections(0))
    found = {}
    for name in names:
        left, right = [], []
        for layer in range(model.n_layers):
            u, _, vh = torch.linalg.svd(model.projections(layer)[name], full_matrices=False)
            left.append(u[:, 0])
            right.append(vh[0])
        u1, v1 = torch.stack(left), torch.stack(right)
        found[name] = ((v1[:-1] * v1[1:]).sum(-1).abs(), (u1[:-1] * u1[1:]).sum(-1).abs())
    return found


def test_continuity_against_a_loop_of_svds(model: LanguageModel) -> None:
    start = time.process_time()
    own = weights.continuity(model, composites=False)
    middle = time.process_time()
    theirs = plain(model)
    end = time.process_time()
    gap = own["gap"].min("layer")
    for name, sides in theirs.items():
        for side, values in zip(("input", "output"), sides, strict=True):
            found = own[f"{side}_continuity"].sel(projection=name)
            # where two singular values nearly coincide, float32 turns the vector in their plane
            assert np.abs(found - values.numpy()).max() < 1e-4 / max(float(gap.sel(projection=name)) - 1, 1e-3)
    print(f"\n{'continuity, 210 matrices':32}{'seconds':>9}{'x probe':>9}")
    for name, seconds in (("probe.weights.continuity", middle - start), ("loop of torch.linalg.svd", end - middle)):
        print(f"{name:32}{seconds:9.2f}{seconds / (middle - start):9.2f}")
    assert end - middle > middle - start


def test_the_randomised_method_on_a_wide_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    spectrum = 1 / torch.arange(1, WIDE[1] + 1).float().pow(0.3)
    matrix = torch.randn(WIDE, generator=generator) * spectrum / WIDE[0] ** 0.5
    results = {}
    for method in ("randomised", "dense"):
        start = time.process_time()
        found = weights.leading_triplets(matrix, 8, method=method)  # type: ignore[arg-type]
        results[method] = (time.process_time() - start, found)
    start = time.process_time()
    _, singular, _ = torch.linalg.svd(matrix, full_matrices=False)
    results["torch.linalg.svd"] = (time.process_time() - start, None)
    print(f"\n{f'8 triplets of {WIDE[0]} x {WIDE[1]}':32}{'seconds':>9}{'x probe':>9}{'error':>10}")
    for name, (seconds, found) in results.items():
        error = "" if found is None else f"{found.error:.1e}"
        print(f"{name:32}{seconds:9.2f}{seconds / results['randomised'][0]:9.2f}{error:>10}")
        if found is not None:
            torch.testing.assert_close(found.singular.float(), singular[:8], rtol=1e-4, atol=0)
    assert results["dense"][0] > results["randomised"][0]
    assert results["torch.linalg.svd"][0] > results["randomised"][0]


def test_a_file_is_read_in_the_memory_of_a_matrix() -> None:
    load_model(sources.DEFAULT_MODEL)
    entry = cache.find(cache.digest_of([Path(sources.resolve(sources.DEFAULT_MODEL).location)]))
    assert entry is not None
    folder = str(entry.path)
    peaks, means = {}, {}
    for who in ("file", "loaded"):
        command = [sys.executable, "-c", MEMORY, who, folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        peaks[who], means[who] = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{'peak of the process':32}{'MiB':>9}{'x probe':>9}")
    for who, name in (("file", "one matrix at a time"), ("loaded", "model loaded first")):
        print(f"{name:32}{peaks[who]:9.0f}{peaks[who] / peaks['file']:9.2f}")
    assert means["file"] == pytest.approx(means["loaded"], abs=1e-6)
    assert peaks["file"] < peaks["loaded"]
