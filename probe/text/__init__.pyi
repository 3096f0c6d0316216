from .corpora import DATASETS as DATASETS
from .corpora import SPLITS as SPLITS
from .windows import Part as Part
from .windows import Windows as Windows
from .windows import load_windows as load_windows
