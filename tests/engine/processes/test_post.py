"""Letters between processes, in one."""

import multiprocessing

import pytest

from flexjax.engine.processes.post import Post


@pytest.fixture
def post() -> Post:
    return Post()


def test_a_letter_that_cannot_be_read_ends_it_for_all(post, caplog):
    here, there = multiprocessing.Pipe()
    there.send((0, "box", "first"))
    there.send_bytes(b"no pickle")
    post._read(0, here)
    assert post.take("box") == "first" and post.take("box") is None
    assert post.ended.is_set() and not post.closed
    assert "cannot be read" in caplog.text


def test_a_line_that_is_cut_ends_it_for_all(post):
    here, there = multiprocessing.Pipe()
    there.close()
    post._read(0, here)
    assert post.take("any") is None and not post.closed


def test_after_the_close_every_box_is_at_its_end(post):
    post.close()
    post.close()
    assert post.take("any") is None and post.closed
