"""The launcher, with the jobs of another folder beside those that ship: run by test_processes.py, `… FOLDER ARG …`."""

import sys

import flexjax.jobs
from flexjax import launch

if __name__ == "__main__":
    flexjax.jobs.__path__.append(sys.argv[1])
    sys.exit(launch.run(sys.argv[2:]))
