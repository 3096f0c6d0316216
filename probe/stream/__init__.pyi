from .capturing import capture as capture
from .capturing import watch as watch
from .states import ResidualStream as ResidualStream
