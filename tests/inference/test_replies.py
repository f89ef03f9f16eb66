"""An answer that streams stops when it repeats itself."""

from inference.replies import is_looping


def test_an_answer_that_goes_in_circles_is_stopped() -> None:
    assert is_looping([1, 2, 3] + [7] * 24)
    assert is_looping([9] + [1, 2, 3, 4, 5] * 6)
    assert is_looping(list(range(32)) * 3)
    assert not is_looping([7] * 23)
    assert not is_looping(list(range(100)))
    assert not is_looping([1, 2, 3] * 8 + [4])
