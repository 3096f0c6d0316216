"""The toolkit of all panels: pages and legends, styles, curves in their bands, intervals over documents.

A panel is a function of a Dataset that draws on the Axes it is given, or on those of a new figure with a legend;
`panel_rows` puts several on one page. The panels themselves are in their analyses. Nothing here touches matplotlib's
global state: figures are `matplotlib.figure.Figure` objects, and the page's style is a context (`page_style`).

Everywhere a line is a median over tokens, the narrow band around it its 95 % interval over resampled documents, and a
pale band, where there is one, the middle half of the tokens.
"""

import lazy_loader

from probe.errors import renamed

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = renamed(__name__, {"NOTEBOOK_DPI": "canvas.NOTEBOOK_DPI"}, _load)
