"""The compilation cache of the command line: compiled programs on disk, for the next start."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

log = logging.getLogger("occinv.cache")


def use_compilation_cache() -> None:
    """Let JAX keep its compiled programs in `cache_folder`, on one process with GPUs or TPUs.

    JAX's own settings come first: `JAX_COMPILATION_CACHE_DIR` names another folder, and
    `JAX_ENABLE_COMPILATION_CACHE=false` turns the cache off. Otherwise there is no cache:

    - On CPU, because JAX's key does not contain the CPU model, and a program that was compiled for
      another CPU can fail with an illegal instruction. On some CPUs every load also logs an error
      (jax-ml/jax#38445).
    - In several processes, because only process 0 writes. If the folder is not shared, process 0
      loads a program that the others compile, and on GPUs all processes must compile together.
    """
    import jax

    settings: Any = jax.config
    is_set = settings.jax_compilation_cache_dir is not None
    if is_set or not settings.jax_enable_compilation_cache:
        return
    if jax.default_backend() == "cpu" or jax.process_count() > 1:
        return
    try:
        folder = cache_folder()
        # Other users must not be able to write programs that this user will run.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} is not writable")
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home folder
        log.warning(
            "Compiled programs are not cached: %s. Name a folder with JAX_COMPILATION_CACHE_DIR.",
            error,
        )
        return
    settings.update("jax_compilation_cache_dir", str(folder))


def cache_folder() -> Path:
    """Return `occinv/xla` in `$XDG_CACHE_HOME`, or in ~/.cache if that is not an absolute path."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "occinv" / "xla"
