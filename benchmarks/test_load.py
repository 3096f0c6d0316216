"""The second load of the default model against the first, which dequantises 4-bit weights.

Each load is a fresh process with a cache that is empty at first; imports are timed apart. The clock is the CPU time of
one thread, so that other programs on the machine count for less; waiting for the disk does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, time
start = time.process_time()
from transformers import AutoTokenizer, LlamaForCausalLM
from probe.model import load_model
imported = time.process_time()
load_model("smollm2-135m-instruct-q4")
print(json.dumps([imported - start, time.process_time() - imported]))
"""
FRACTION = 0.5


def load(cache: Path) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PROBE_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
    )
    imports, seconds = json.loads(done.stdout.splitlines()[-1])
    return imports, seconds


def test_the_second_load_takes_a_fraction_of_the_first(tmp_path: Path) -> None:
    (first_imports, first), (second_imports, second) = load(tmp_path), load(tmp_path)
    print(f"\n{'':14}{'seconds':>9}{'x first':>9}{'imports':>9}")
    print(f"{'first load':14}{first:9.2f}{1:9.2f}{first_imports:9.2f}")
    print(f"{'second load':14}{second:9.2f}{second / first:9.2f}{second_imports:9.2f}")
    assert second < FRACTION * first
