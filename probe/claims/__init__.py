"""Claims: the sentence, its interval and null, and the verdict that follows from them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
