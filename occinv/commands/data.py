"""`occinv data`: prepare, check and convert data sets of tensorflow_datasets."""

from __future__ import annotations

import argparse

from occinv.schema import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `occinv data`."""
    # fmt: off
    subcommands = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    prepare, check, convert = (
        subcommands.add_parser(name, help=text) for name, text in (
            ("prepare", "Make a data set from its archives and check it."),
            ("check", "Read every record and decode one image of each class."),
            ("convert", "Convert TFRecord files to ArrayRecord files."),
        )
    )
    for add in (prepare.add_argument, check.add_argument):
        add("name", metavar="NAME", help="Name of the tfds data set, such as imagenet2012.")
        add("--data-dir", metavar="DIR",
            help="Folder of the data sets (default: the folder of tfds).")
        add("--expect", metavar="SPLIT=COUNT,...",
            help="Fail if the splits do not have these sizes, such as "
                 "train=13000,validation=500 (default: the published sizes).")
    add = prepare.add_argument
    add("--manual-dir", metavar="DIR", help="Read downloaded archives from this folder.")
    add("--format", default="array_record", metavar="FORMAT",
        help="Write array_record (default) or tfrecord files.")
    add = convert.add_argument
    add("source", metavar="SRC",
        help="Read the data set in this folder, which has dataset_info.json.")
    add("data_dir", metavar="DST", help="Write the data set to NAME/VERSION in this folder.")
    # fmt: on


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run `occinv data` and return the exit status."""
    if options.subcommand == "convert":
        from occinv.data.tfds.convert import convert

        for line in convert(options.source, options.data_dir):
            print(line, flush=True)
        return 0
    expected = _counts(options.expect)
    from occinv.data.tfds.check import check
    from occinv.data.tfds.prepare import prepare

    if options.subcommand == "prepare":
        print(prepare(options.name, options.data_dir, options.manual_dir, options.format))
    for line in check(options.name, options.data_dir, expected):
        print(line, flush=True)
    return 0


def _counts(text: str | None) -> dict[str, int] | None:
    """Parse `train=1281167,validation=50000`."""
    if text is None:
        return None
    try:
        return {split: int(count) for split, count in (s.split("=") for s in text.split(","))}
    except ValueError as error:
        raise UserError(
            f"--expect {text!r}, expected SPLIT=COUNT,... such as train=1281167,validation=50000"
        ) from error
