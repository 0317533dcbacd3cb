from flexjax.micro import memory


def test_bytes_are_those_that_a_call_moves():
    read, copy = memory([1])
    assert read.work == 2**20
    assert copy.work == 2 * 2**20
    assert read.run(1) > 0
    assert copy.run(1) > 0
