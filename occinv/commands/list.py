"""`occinv list`: print every objective with its T1, T2, target and M."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing, because `occinv list` has no options."""


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run `occinv list` and return the exit status."""
    from occinv.report.list_objectives import print_objectives

    print_objectives()
    return 0
