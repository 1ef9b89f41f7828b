"""Occlusion-invariant features in JAX: masked image modeling as siamese learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from occinv.version import __version__ as __version__

if TYPE_CHECKING:
    from occinv.encoder import LoadedEncoder as LoadedEncoder
    from occinv.encoder import load_encoder as load_encoder

__all__ = ["__version__", "load_encoder"]


def __getattr__(name: str) -> Any:
    # Import on first use, so that `occinv --help` and `import occinv` do not import JAX.
    if name == "load_encoder":
        from occinv.encoder import load_encoder

        return load_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
