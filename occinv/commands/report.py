"""`occinv report`: compare runs, or show the results of `occinv reproduce`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `occinv report`."""
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="DIR", help="Show the run or table in DIR.")
    add("--markdown", action="store_true", help="Print a Markdown table and write no page.")


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run `occinv report` and return the exit status."""
    from occinv.report.compare import compare, report
    from occinv.report.table import markdown_table

    if options.markdown:
        print(markdown_table(compare(options.folders)))
    else:
        print(report(options.folders))
    return 0
