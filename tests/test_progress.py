import subprocess
import sys

import pytest

from flexjax.progress import Progress, duration


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_each_part_says_its_time_and_what_is_left(capsys):
    clock = Clock()
    with Progress(4, clock=clock) as progress:
        for name, seconds in (("one", 10), ("two", 30), ("three", 20), ("four", 0.5)):
            clock.now += seconds
            progress.done(name)
    progress.close()
    assert capsys.readouterr().out.splitlines() == [
        "[1/4] one: 10 s, about 30 s left",
        "[2/4] two: 30 s, about 40 s left",
        "[3/4] three: 20 s, about 20 s left",
        "[4/4] four: 0.5 s",
    ]
    assert progress.fault == ""


def test_several_at_once_and_more_than_were_known(capsys):
    clock = Clock()
    progress = Progress(3, at_most=True, clock=clock)
    clock.now += 4
    progress.done("pair", parts=2)
    progress.done("pair", parts=2)
    assert capsys.readouterr().out.splitlines() == [
        "[2/at most 3] pair: 4.0 s, at most 2.0 s left",
        "[4/at most 4] pair: 0.0 s",
    ]


@pytest.mark.parametrize(
    ("error", "fault"),
    [(KeyboardInterrupt, "interrupted after 1 of 3 parts"), (OSError, "ended by OSError after 1 of 3 parts")],
)
def test_what_ends_it_early_waits_until_what_is_done_is_written(capsys, error, fault):
    written = []
    with pytest.raises(error):
        with Progress(3) as progress:
            progress.done("one")
            raise error
        written.append(progress.fault)
        progress.close()
    assert written == [fault]
    assert capsys.readouterr().out.endswith(f"{fault.capitalize()}; what is done is kept.\n")


def test_where_nothing_is_done_nothing_waits():
    with pytest.raises(KeyboardInterrupt), Progress(3):
        raise KeyboardInterrupt


def test_a_line_is_in_the_pipe_as_soon_as_the_part_has_ended():
    code = "import sys; from flexjax.progress import Progress; Progress(2).done('one'); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stdout and job.stdin
        assert job.stdout.readline().startswith(b"[1/2] one: ")  # It waits for its input, and has not ended.
        assert job.poll() is None
        job.stdin.close()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (12.4, "12 s"), (99, "99 s"), (200, "3 min"), (12_000, "3 h 20 min")]
)
def test_durations_read_well(seconds, words):
    assert duration(seconds) == words
