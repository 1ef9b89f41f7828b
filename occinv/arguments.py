"""Temporary: moved to occinv.cli; delete with the last import."""

from occinv.cli import make_parser as make_parser
