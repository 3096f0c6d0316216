"""Pictures of the library's own objects and of any table of numbers, and the toolkit of all panels.

- spectra: `eigenvalues`, `singular_values`, `pseudospectrum`
- matrices: `heat_map`, `jacobian`, `token_layer_map`
- depth: `by_depth`, `continuity`, `cosine_maps`
- graphs: `graph`, `null_comparison`

Each gives a `Picture`, which a notebook shows once and `save` writes as PNG, SVG or PDF, and takes the options of
`Page`: width, height, font and its size. With `ax=` it draws on Axes of yours.

The toolkit: `new_figure` and `panel_rows` make pages, `finish` and `legend_below` label them. A panel is a function
that draws on the Axes it is given, or on those of a new figure with a legend; those of an analysis are in the analysis.
Nothing here touches matplotlib's global state: figures are `matplotlib.figure.Figure` objects, drawn in the page's
style whoever draws on them.

Everywhere a line is a median over tokens, the narrow band around it its 95 % interval over resampled documents, and a
pale band, where there is one, the middle half of the tokens.
"""

import lazy_loader

from probe.errors import renamed

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = renamed(__name__, {"NOTEBOOK_DPI": "canvas.NOTEBOOK_DPI"}, _load)
