"""The subcommands of occinv. Each module has `add_arguments(parser)` and `run(options, rest)`."""
