from .config import Config as Config
from .config import Thresholds as Thresholds
from .stages import analysis as analysis
from .stages import plan as plan
from .stages import run as run
