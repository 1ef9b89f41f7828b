"""The site of occinv, as Sphinx reads it. `make docs` builds it without a network."""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import occinv

project = "occinv"
author = copyright = "The occinv authors"
version = release = occinv.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "myst_nb"]
html_theme = "furo"
html_title = f"occinv {release}"
html_show_sphinx = False
highlight_language = "none"
myst_heading_anchors = 3
nb_execution_mode = "off"  # docs/tutorial.ipynb has its outputs
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_custom_sections = [("Attributes", "params_style")]  # lines such as `width, depth: ...`

# The API reference has one page for each of these modules, or packages with all their modules.
PUBLIC = (
    *("encoder", "evaluate", "config", "schema", "rng"),
    *("objectives", "transforms", "losses", "models", "data", "evaluators", "train"),
)


def write_api_pages(folder: Path) -> None:
    """Write the page of each public module and package into `folder`."""
    folder.mkdir(exist_ok=True)
    for public in PUBLIC:
        module = import_module(f"occinv.{public}")
        names = [module.__name__]
        if hasattr(module, "__path__"):
            below = pkgutil.walk_packages(module.__path__, f"{module.__name__}.")
            names += [found.name for found in below]
        sections = [
            f"{name}\n{('-' if i else '=') * len(name)}\n\n.. automodule:: {name}\n   :members:\n"
            for i, name in enumerate(names)
        ]
        (folder / f"{public}.rst").write_text("\n".join(sections))


def close_literal(code: re.Match[str]) -> str:
    """Return code in double backticks, apart from a letter or digit that follows, as in `side`²."""
    after = f"\\ {code[2]}" if code[2] else ""
    return f"``{code[1]}``{after}"


def to_restructured_text(
    app: Any, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Show equations, commands and aligned columns of a docstring as they are written.

    These are indented paragraphs below one at the margin, and paragraphs with columns.
    """
    text = "\n".join(lines).rstrip()
    # Code in single backticks; a backslash ends it before a letter, as in `side`².
    text = re.sub(r"`([^`]+)`(\w?)", close_literal, text)
    marked: list[str] = []
    in_section = False
    for paragraph in re.split(r"\n{2,}", text):
        is_indented = paragraph.startswith("    ")
        has_columns = re.search(r"^\S.*\S {2,}\S", paragraph, re.MULTILINE)
        if has_columns:
            paragraph = re.sub(r"^", "    ", paragraph, flags=re.MULTILINE)
        if has_columns or (is_indented and not in_section):
            marked.append("::")
        else:
            in_section = is_indented or re.match(r"[A-Z]\w+:\n", paragraph) is not None
            paragraph = re.sub(r"([|*]+)(?=[^`]*(?:``[^`]*``[^`]*)*$)", r"\\\1", paragraph)
        marked.append(paragraph)
    lines[:] = [*"\n\n".join(marked).split("\n"), ""]


def skip_member(
    app: Any, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out the fields of named tuples: the class lists them under its attributes."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def shorten_signature(
    app: Any, what: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Leave out what Flax adds to the fields of every module."""
    if what != "class" or not signature:
        return None
    return re.sub(r"(, )?parent: .*?, name: .*?= None", "", signature), returns


def setup(app: Any) -> None:
    """Write the API pages, and read docstrings before napoleon does."""
    write_api_pages(Path(__file__).parent / "api")
    app.connect("autodoc-process-docstring", to_restructured_text, priority=400)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-signature", shorten_signature)
