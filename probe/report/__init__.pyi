from .comparison import write_comparison as write_comparison
from .result import Figure as Figure
from .result import Result as Result
