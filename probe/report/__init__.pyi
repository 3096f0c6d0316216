from .comparison import write_comparison as write_comparison
from .figure import Figure as Figure
from .result import Result as Result
