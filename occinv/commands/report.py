"""`occinv report`: compare runs, or show the results of `occinv reproduce`."""

from __future__ import annotations

import argparse

from occinv.commands.options import to_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `occinv report`."""
    # fmt: off
    add = parser.add_argument
    add("folders", type=to_path, nargs="+", metavar="DIR", help="Show the run or table in DIR.")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--markdown", action="store_true", help="Print a Markdown table and write no page.")
    add("--out", type=to_path, metavar="FILE",
        help="Write the page to FILE (default: into the first DIR).")
    # fmt: on


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run `occinv report` and return the exit status."""
    from occinv.report.compare import compare, report
    from occinv.report.matrix import markdown

    if options.markdown:
        print(markdown(compare(options.folders)))
    else:
        print(report(options.folders, options.out))
    return 0
