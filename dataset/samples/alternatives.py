"""Lists of wordings in the sample tables, written short.

Wordings are separated by "|". (a,b,) in a wording stands for each of its parts, the last of which may be nothing:
"你(会,能)画画吗" is 你会画画吗 and 你能画画吗.
"""

import itertools
import re

_CHOICE = re.compile(r"\(([^()]*,[^()]*)\)")


def expanded(wording: str) -> list[str]:
    """The wording with each combination of its alternatives."""
    parts = _CHOICE.split(wording)  # text, alternatives, text, alternatives ... text
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def wordings(cell: str) -> list[str]:
    """Every wording of a table's cell, in order, each once. Line breaks around a wording don't count."""
    listed = (wording.strip() for wording in cell.split("|"))
    return list(dict.fromkeys(one for wording in listed if wording for one in expanded(wording)))
