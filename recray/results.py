"""The types of what recray's functions return, for annotations.

`recray.prepare` gives Data, `train` a Run, `tune` a Sweep, `load` a Loaded, `serve` a Service.
"""

from recray.api.handles import Data, Run, Service, Sweep
from recray.api.model import Loaded

__all__ = ["Data", "Loaded", "Run", "Service", "Sweep"]
