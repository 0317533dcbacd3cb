"""What the launcher can run: one verb a file.

A job module has a docstring whose first line `--help` shows, a frozen dataclass `Config` (its fields
are what a config file may set) and `run(config: Config, workdir: Path) -> int`, the exit status. It
refuses what it cannot do with ValueError before it starts work. Config file and job meet by
`config.job`, the module's name; nothing is registered.

Over several processes (`config.distributed`) `run` is called in process 0 alone, and the others take
their parts in the models that it loads with `load_engine` (`flexjax.processes`). A module with
`PROCESSES = "every"` has `run` called in each process, one with `PROCESSES = "one"` is refused there.
"""
