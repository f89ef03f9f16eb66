"""How vocabularies are compared."""

from benchmarks.tokenizer.results import equal_first, first_difference


def test_the_first_rank_that_differs_is_named() -> None:
    assert first_difference([b"a", b"b"], [b"a", b"b"]) == ""
    assert first_difference([b"a", b"b", b"c"], [b"a", b"x", b"c"]) == "rank 1: b'b' here, b'x' there"
    assert first_difference([b"a", b"b"], [b"a"]) == "rank 1: b'b' here, nothing there"
    assert equal_first([b"a", b"b", b"c"], [b"a", b"b", b"x"]) == 2
