"""Interventions: what the output does when tensors inside the pass are replaced.

- `patch` replaces tensors at some positions of prompts, and says what the output does; `intervene` does it to every
  pass while a context lasts
- `activation_patching` puts the states of one prompt into the run of another, each (layer, position) by itself
- `one_position`, `one_position_later`, `all_positions` put alternatives into a recorded `probe.replay.Context`, and
  `compare_outputs` measures the change of the output
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
