"""Subcommands of `tokops`: every module here has `register(app)`."""
