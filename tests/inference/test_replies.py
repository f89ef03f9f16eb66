"""An answer that streams: it stops when it repeats itself; its thought is told apart."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dataset.chat import THOUGHT
from inference.replies import Parts, is_looping, split_thought


def test_an_answer_that_goes_in_circles_is_stopped() -> None:
    assert is_looping([1, 2, 3] + [7] * 24)
    assert is_looping([9] + [1, 2, 3, 4, 5] * 6)
    assert is_looping(list(range(32)) * 3)
    assert not is_looping([7] * 23)
    assert not is_looping(list(range(100)))
    assert not is_looping([1, 2, 3] * 8 + [4])


@given(cuts=st.lists(st.integers(0, 60), max_size=8), stray=st.sampled_from(["", "<", "<|thin", "<|think_end"]))
def test_a_thought_is_told_apart_however_the_text_comes_in_parts(cuts: list[int], stray: str) -> None:
    text = f"{THOUGHT[0]}三<|加<四😀{THOUGHT[1]}是七。<|x|>{stray}"
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    parts, pieces = Parts(), []
    for start, end in pairwise(places):
        new = list(parts.add(text[start:end]))
        assert new  # at least one piece each time
        pieces += new
    pieces += parts.add("", last=True)
    assert "".join(piece.text for piece in pieces if piece.is_thought) == "三<|加<四😀"
    assert "".join(piece.text for piece in pieces if not piece.is_thought) == f"是七。<|x|>{stray}"
    assert split_thought(text) == ("三<|加<四😀", f"是七。<|x|>{stray}")


def test_text_is_shown_at_once_unless_a_mark_may_begin_there() -> None:
    parts = Parts()
    shown = [piece.text for text in ("春", "天<", "b", "<|think_", "start|>") for piece in parts.add(text)]
    assert shown == ["春", "天", "<b", "", "", ""]
    assert parts.is_thought


def test_the_answer_of_a_text_begins_behind_the_thought() -> None:
    assert split_thought("七。") == ("", "七。")
    assert split_thought(f"{THOUGHT[0]}三加四{THOUGHT[1]}七。") == ("三加四", "七。")
    assert split_thought(f"{THOUGHT[0]}三加四") == ("三加四", "")
