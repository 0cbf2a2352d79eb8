"""`python -m asdjax.main --config=configs/mfn.py`: trains, scores and reports. The one entry point of a run."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from pathlib import Path

if __name__ == "__main__":  # an interrupt while jax is imported may be lost in a callback of its, or end in a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

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
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes, as the cluster tells it.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "One of several processes: HOST:PORT of process 0.")
_PROCESSES = flags.DEFINE_integer("processes", 0, "With --coordinator: how many processes there are.")
_PROCESS = flags.DEFINE_integer("process", 0, "With --coordinator: which of them this is, from 0.")
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print the config with its overrides and stop.")


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with a user's mistake told in a line instead of a traceback."""
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.lock()  # a config that failed to load says so when it is first touched
        return rest
    except (flags.Error, AttributeError, KeyError, IndexError, TypeError, ValueError, OSError) as error:
        print(f"error: {told(error)}", file=sys.stderr)
        sys.exit(2)


def told(error: Exception) -> str:
    """A mistake in flags or config in one line: absl and ml_collections say it in many, or bury it in a traceback."""
    text = str(error.args[0] if error.args else error).strip().strip("'")
    text = text.replace("\\n", " ").replace("\\'", "'")  # a message within a message comes quoted
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if "Failed loading config file" in text:
        return f"config file {lines[-2].rstrip(':')}: {lines[-1]}" if len(lines) > 1 else text
    places = [line for line in lines if line.startswith("File ")]
    if places:
        return f"{lines[-1]} ({places[-1]})"
    if isinstance(error, KeyError | AttributeError | IndexError):
        return f"a --config... flag names a value that the config does not have: {' '.join(lines)} (try --print_config)"
    return " ".join(lines)


def default_workdir() -> Path:
    """runs/CONFIG or runs/CONFIG-VARIANT, from the value of --config."""
    file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path("runs", Path(file).stem + (f"-{variant}" if variant else ""))


def on_sigterm(*_) -> None:
    """SIGTERM outside the training, which saves a checkpoint first."""
    raise Preempted("stopped by SIGTERM; the same command resumes")


def main(argv: list[str]) -> int:
    """Exit code: 0 done, 1 bad data or a diverged training, 2 bad usage, 75 stopped by SIGTERM and resumable."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    several = _DISTRIBUTED.value or bool(_COORDINATOR.value)
    signal.signal(signal.SIGTERM, on_sigterm)
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
        if several:
            parallel.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
            signal.signal(signal.SIGTERM, on_sigterm)  # once more: JAX has taken it to itself
            if not parallel.is_first():  # they all would say the same
                logging.getLogger().setLevel(logging.WARNING)
        from asdjax import ensemble, run, tagging

        signal.signal(signal.SIGINT, signal.default_int_handler)
        config, workdir = _CONFIG.value.to_dict(), Path(_WORKDIR.value) if _WORKDIR.value else default_workdir()
        if "ensemble" in config:
            ensemble.run(config, workdir)
        elif "data" in config and config["data"].get("year") == tagging.YEAR:
            tagging.run(config, workdir)
        else:
            run.run(config, workdir)
        parallel.leave()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except Preempted as stop:
        print(stop, file=sys.stderr)
        return 75
    except KeyboardInterrupt:
        print("interrupted; the same command resumes where a checkpoint was saved, or begins anew", file=sys.stderr)
        return 130
    except Exception as error:
        if not several:
            raise
        if parallel.is_of_peer(error):
            print(f"error: {parallel.LOST} ({str(error).splitlines()[0]})", file=sys.stderr)
        else:
            traceback.print_exc()
        return 1
    return 0


def end(code: int) -> None:
    """Ends the process; one of several at once, since JAX would wait for the others in vain when something failed."""
    if code and (_DISTRIBUTED.value or _COORDINATOR.value):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    app.run(lambda argv: end(main(argv)), flags_parser=parse_flags)
