"""recray: from raw ratings to a trained, measured and served recommender on any Ray cluster.

In Python: `recray.prepare`, `train`, `evaluate`, `tune`, `load`, `serve`; see recray.api.functions.
They are looked up when first used, so that importing recray loads neither torch nor Ray.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recray.api.evaluation import evaluate
    from recray.api.functions import load, prepare, serve, session, train, tune

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "load", "prepare", "serve", "session", "train", "tune"]


def __getattr__(name: str) -> Any:
    """The functions of __all__, imported when first asked for."""
    if name in __all__:
        home = "evaluation" if name == "evaluate" else "functions"
        return getattr(importlib.import_module(f"recray.api.{home}"), name)
    raise AttributeError(f"module 'recray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
