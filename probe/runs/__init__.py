"""Runs: a directory that resumes, the tasks that fill it, and where its numbers come from."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
