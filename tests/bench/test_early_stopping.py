import pytest

from flexjax.bench.early_stopping import needed_to_show, queries_needed


@pytest.mark.parametrize(("percentile", "over", "count"), [(0.99, 0, 459), (0.99, 1, 662), (0.9, 0, 44), (0.9, 1, 64)])
def test_counts_are_those_that_loadgen_asks_for(percentile, over, count):
    assert queries_needed(percentile, over) == count


def test_a_rare_percentile_needs_many():
    assert queries_needed(0.999) == 4603
    assert queries_needed(0.99, 5) > queries_needed(0.99, 1)


def test_an_estimate_needs_one_above_it():
    assert needed_to_show("Server", 0.99) == 459 and needed_to_show("SingleStream", 0.99) == 662
