"""Directions of one's own in the residual stream: what the blocks do to them, and how they lie to the blocks' own.

A direction is a vector of the stream: a row of a sparse autoencoder's decoder, the weights of a probe, a row of a lens,
a difference of means. Every function takes one or several of them as a tensor or a numpy array, (d,) or (n, d), or as
`Directions`, which have names and may say at which depth of the stream they lie.

- where they come from: `open_decoder` (a file, read row by row), `difference_of_means`, `unembedding_rows`
- what blocks do to them: `gain_and_turn`, exact, by products without the matrix; `path`, one depth after the other,
  beside random directions, with intervals over documents
- how they lie to a matrix: `overlap` with its leading singular vectors and eigenvectors
"""

from __future__ import annotations

from probe.directions.carrying import gain_and_turn
from probe.directions.files import Decoder, open_decoder
from probe.directions.following import DirectionPath, path
from probe.directions.overlaps import overlap
from probe.directions.vectors import Directions, difference_of_means, unembedding_rows

__all__ = [
    "Decoder",
    "DirectionPath",
    "Directions",
    "difference_of_means",
    "gain_and_turn",
    "open_decoder",
    "overlap",
    "path",
    "unembedding_rows",
]


def __dir__() -> list[str]:
    return __all__
