"""`python -m asdjax.main --config=configs/mfn.py`: trains, scores and reports. The one entry point of a run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from asdjax import parallel
from asdjax.core import InputError, Preempted, UsageError

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A file of configs/, e.g. configs/mfn.py or configs/mfn.py:VARIANT. Every value can be overridden: "
    "--config.train.steps=20",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/CONFIG[-VARIANT].")
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print the config with its overrides and stop.")


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with a user's mistake told in a line instead of a traceback."""
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.lock()  # a config that failed to load says so when it is first touched
        return rest
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        places = [line.strip() for line in lines if line.startswith("  File ")]
        if isinstance(error, KeyError):
            lines = [
                f"a flag --config... names the value {lines[0]}, which the config does not have (try --print_config)"
            ]
        # an error within a config file comes as a whole traceback: its last line and last place tell what is wrong
        print(f"error: {lines[-1]} ({places[-1]})" if places else "error: " + "\n".join(lines), file=sys.stderr)
        sys.exit(2)


def default_workdir() -> Path:
    """runs/CONFIG or runs/CONFIG-VARIANT, from the value of --config."""
    file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path("runs", Path(file).stem + (f"-{variant}" if variant else ""))


def main(argv: list[str]) -> int:
    """Exit code: 0 done, 1 bad data or a diverged training, 2 bad usage, 75 stopped by SIGTERM and resumable."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        if len(argv) > 1:
            raise UsageError(f"not understood: {' '.join(argv[1:])} (flags begin with --)")
        if _CONFIG.value is None:
            raise UsageError("no config given; try --config=configs/mfn.py")
        if _PRINT_CONFIG.value:
            print(_CONFIG.value)
            return 0
        parallel.tune_malloc()
        parallel.keep_compiled_programs()
        from asdjax import run

        run.run(_CONFIG.value.to_dict(), Path(_WORKDIR.value) if _WORKDIR.value else default_workdir())
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except Preempted as stop:
        print(stop, file=sys.stderr)
        return 75
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)), flags_parser=parse_flags)
