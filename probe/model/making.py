"""One model is made at a time.

While transformers makes a model it exchanges functions of torch.nn.init, torch's default dtype and its own tying of
weights, for the whole process: two threads at once would not put them back.
"""

from __future__ import annotations

import threading

MAKING = threading.RLock()
"""Held while transformers makes a model."""
