"""What the commands `python -m asdjax.NAME ...` have in common: exit codes, errors in a line, printable text."""

from __future__ import annotations

import argparse
import sys

from asdjax.core import InputError, UsageError


def printable(text: str) -> str:
    """The text without what steers a terminal or cannot be written: names of files are anybody's."""
    return "".join(c if c.isprintable() else "?" for c in text)


def run(parser: argparse.ArgumentParser, argv: list[str] | None) -> int:
    """Calls `act` of the command that the arguments name, a function of them.

    Returns:
        its exit code; 1 where something is wrong with a file, 2 for bad usage.
    """
    args = parser.parse_args(argv)
    if "act" not in args:
        parser.print_help()
        return 2
    try:
        return args.act(args)
    except InputError as error:
        text, code = str(error), 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        text, code = f"{error.filename}: {error.strerror}" if error.filename else str(error), 1
    for line in f"error: {text}".splitlines():
        print(printable(line), file=sys.stderr)
    return code
