"""States of the residual stream, and other tensors of the pass, captured with forward hooks.

A hook copies a tensor and changes nothing: the hooked pass equals the plain one to the bit. Hooks live in context
managers and are removed when these end, also after an exception. A capture runs the module up to the deepest block
that is asked for, without its head.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
