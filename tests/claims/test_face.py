"""The public face of the claims needs none of the large libraries: an author of an analysis imports it at the top."""

from __future__ import annotations

import subprocess
import sys


def test_claims_need_no_large_library():
    code = (
        "import sys\n"
        "from probe.claims import SIGNS, Claim, Condition, Criterion, Evidence, Sentence, Verdict\n"
        "from probe.claims import decide, enough_units, judge, line\n"
        "sys.exit(bool({'torch', 'xarray', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
