"""The text of an answer as it grows: whole characters, and nothing of a stop string."""

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from inference.request import GrowingText

LETTERS = "ab的😀\n"


def shown(pieces: Sequence[bytes], stop: Sequence[str]) -> list[str]:
    """What may be shown after each piece, and at the end."""
    text, found = GrowingText(stop), []
    for piece in pieces:
        text.add(piece)
        found.append(text.text)
        if text.stopped:
            return found
    text.add(b"", last=True)
    return [*found, text.text]


@given(
    text=st.text(LETTERS, max_size=30),
    cuts=st.lists(st.integers(1, 5), min_size=40, max_size=40),
    stop=st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3),
)
def test_text_grows_in_whole_characters_and_ends_before_the_first_stop_string(
    text: str, cuts: list[int], stop: list[str]
) -> None:
    data, pieces = text.encode(), []
    for size in cuts:
        pieces.append(data[:size])
        data = data[size:]
    found = shown([*pieces, data], stop)
    for earlier, later in itertools.pairwise(found):
        assert later.startswith(earlier)  # nothing that was shown is taken back
    assert "\ufffd" not in found[-1]
    # A stop string ends the answer when it is complete. Pieces may complete several at once.
    ends = [text.find(one) for one in stop if one in text]
    if not ends:
        assert found[-1] == text
    else:
        assert not any(one in found[-1] for one in stop)
        assert text.startswith(found[-1]) and any(text[len(found[-1]) :].startswith(one) for one in stop)


def test_what_may_become_a_stop_string_is_held_back_and_shown_if_it_does_not() -> None:
    assert shown([b"a", b"b", b"x"], ["bc"]) == ["a", "a", "abx", "abx"]
    assert shown([b"ab"], ["bc"]) == ["a", "ab"]
    assert shown([b"1ab", b"c2"], ["abc", "bc2"])[-1] == "1"


def test_a_broken_character_at_the_end_is_shown_as_such() -> None:
    assert shown(["好".encode()[:2]], []) == ["", "\ufffd"]
