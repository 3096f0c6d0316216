"""Models: names and files to a `LanguageModel`, the one boundary to every architecture."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
