"""Occlusion-invariant features in JAX: masked image modeling as siamese learning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from occinv.version import __version__ as __version__

if TYPE_CHECKING:
    from occinv.encoder import LoadedEncoder as LoadedEncoder
    from occinv.encoder import load_encoder as load_encoder
    from occinv.evaluate import evaluate_one as evaluate
    from occinv.evaluators.similarity import cka as cka
    from occinv.report.rows import compare as compare
    from occinv.train import train as train

__all__ = ["__version__", "cka", "compare", "evaluate", "load_encoder", "train"]

MODULES = {  # by public function
    "cka": "occinv.evaluators.similarity",
    "compare": "occinv.report.rows",
    "load_encoder": "occinv.encoder",
}


def __getattr__(name: str) -> Any:
    # Import on first use, so that `occinv --help` and `import occinv` do not import JAX.
    if name in ("evaluate", "train"):  # modules that are functions, too
        return importlib.import_module(f"occinv.{name}")
    if name in MODULES:
        return getattr(importlib.import_module(MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
