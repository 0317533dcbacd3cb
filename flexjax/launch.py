"""Runs one job from a config file.

  python -m flexjax.launch --config=configs/bench.py
  python -m flexjax.launch --config=configs/bench.py --config.engine.max_num_seqs=16 --workdir=runs/wide
  python -m flexjax.launch --config=configs/bench.py --help      (its fields, with defaults)

  --config=PATH[:ARG]      the config file; ARG goes to its get_config
  --config.FIELD=VALUE     overrides one field of it; sections are dotted
  --workdir=DIR            where the results go; runs/<date-time>-<config name> unless given
  --debug                  tracebacks for wrong input too

Exit status: the job's own (0 well, 1 an invalid result), 2 for wrong input, 130 after Ctrl-C. With
--config.distributed every process ends with that of process 0, or with 3 where one of them is lost.
"""

import datetime
import difflib
import functools
import importlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags
from rich.console import Console

from flexjax import config as config_lib
from flexjax import files, jobs
from flexjax.config_file import Launch, listed, load, shipped, split
from flexjax.hardware import distributed, flag_check, platforms, xla_flags
from flexjax.refusal import Refusal


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line (`sys.argv` unless given) and returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(args)
    except KeyboardInterrupt as interrupt:
        return _tell(interrupt)
    except (Refusal, flags.Error) as error:
        if "--debug" in args:
            raise
        return _tell(error)


def _tell(error: BaseException, debug: bool = False) -> int:
    """Prints what ended the run, and returns the exit status."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if isinstance(error, KeyboardInterrupt):
        console.print("interrupted", style="yellow")
        return 130
    refused = isinstance(error, Refusal | flags.Error)
    if debug or not refused:
        traceback.print_exception(error)
    else:
        console.print(f"error: {error}", style="bold red", markup=False)
        console.print("(--debug shows where it was raised)", style="dim")
    return 2 if refused else 1


def _run(args: list[str]) -> int:
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "config file", flag_values=values)
    flags.DEFINE_string("workdir", None, "results folder", flag_values=values)
    flags.DEFINE_bool("debug", False, "tracebacks", flag_values=values)
    flags.DEFINE_bool("help", False, "this text", flag_values=values)
    rest = values(["flexjax", *args], known_only=True)[1:]
    if values["help"].value and not values["config"].value:
        print(_help())
        return 0
    if not values["config"].value:
        raise Refusal(f"--config=PATH is missing. Configs that ship:\n{shipped()}")

    mine, others = split(load(values["config"].value))
    early = [a for a in rest if re.match(r"--?(no)?config\.(job|xla_flags|distributed)(=|$)", a)]
    launch = config_lib.from_config_dict(Launch, _override(Launch, mine, early))
    if launch.xla_flags:
        # Before the job, and with it JAX, is imported.
        flags_of_set = xla_flags.load(launch.xla_flags)
        flag_check.check(flags_of_set)
        xla_flags.apply(flags_of_set)
    platforms.cpu_unless_accelerated()
    job = _job(launch.job)
    if values["help"].value:
        print(_help(job.Config))
        return 0
    late = [a for a in rest if a not in early]
    config = config_lib.from_config_dict(job.Config, _override(job.Config, others, late))

    name = Path(values["config"].value.partition(":")[0]).stem
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    workdir = files.local(values["workdir"].value or f"runs/{now}-{name}", "The workdir")

    def work(workdir: Path) -> int:
        workdir = files.make_folder(workdir, "The workdir")
        _log_devices(launch.job, workdir)
        return job.run(config, workdir)

    if launch.distributed:
        return _together(job, work, workdir, debug=bool(values["debug"].value))
    return work(workdir)


def _together(job: ModuleType, work: Callable[[Path], int], workdir: Path, debug: bool) -> int:
    """Runs the job over the processes of all hosts, in the way that its module states."""
    runs_in = getattr(job, "PROCESSES", "first")
    if runs_in == "one":
        name = job.__name__.rpartition(".")[2]
        raise Refusal(
            f"The job {name!r} runs in one process, and distributed=True joins several. Run it on one host, without "
            "--config.distributed."
        )
    distributed.join()
    import jax  # Not at the top: the flags must be set first.

    if jax.process_count() == 1:
        return work(workdir)
    from flexjax import processes

    return processes.run(work, workdir, everywhere=runs_in == "every", tell=functools.partial(_tell, debug=debug))


def _override(cls: type, values: dict[str, Any], args: Sequence[str]) -> config_dict.ConfigDict:
    """`values` with every field of `cls` in it and the `--config.FIELD=VALUE` of `args` applied."""
    paths = [m[2] for a in args if (m := re.match(r"--?(no)?config\.([\w.]+)", a))]
    fields = config_lib.complete(cls, values, paths)
    own = flags.FlagValues()
    argv = ["flexjax", *args]
    config_flags.DEFINE_config_dict("config", fields, lock_config=True, flag_values=own, sys_argv=argv)
    left = own(argv)[1:]
    if left:
        raise Refusal(f"Arguments are --config.FIELD=VALUE, --workdir=DIR or --debug; got {' '.join(left)!r}.")
    return fields


def _job(name: str) -> ModuleType:
    known = [p.stem for p in _job_files()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise Refusal(f"config.job must be one of {', '.join(known)}; got {name!r}.{hint}")
    return importlib.import_module(f"flexjax.jobs.{name}")


def _job_files() -> list[Path]:
    return sorted(p for folder in jobs.__path__ for p in Path(folder).glob("[a-z]*.py"))


def _help(cls: type | None = None) -> str:
    text = f"{__doc__}\nJobs (config.job):\n{listed(_job_files())}\n\nConfigs that ship:\n{shipped()}"
    if cls is None:
        return text
    rows = [
        f"  --{path}  {kind}, {default}" + (f"\n        {comment}" if comment else "")
        for part in (Launch, cls)
        for path, kind, default, comment in config_lib.describe(part)
    ]
    return (
        f"{text}\n\nFields of this job's config, each with its type and default (the file may set another):\n"
        + "\n".join(rows)
    )


def _log_devices(job: str, workdir: Path) -> None:
    import jax  # Not at the top: the flags must be set first.

    if jax.process_index():
        return
    devices = jax.devices()
    hosts = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    print(
        f"flexjax {job}: {len(devices)} × {devices[0].device_kind}{hosts}, jax {jax.__version__}, results in {workdir}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(run())
