"""The short way in which the sample tables write lists of wordings.

"|" separates wordings. (a,b) in a wording stands for one of its parts: "你(会,能)画画吗" is
你会画画吗 and 你能画画吗. A part may be empty: (a,). {w}, {t} and {d} stand for the lists of
MACROS.
"""

import itertools
import re

MACROS = {
    "{w}": "(我,我今天,今天,最近,我最近,现在,我现在,)",
    "{t}": "(我,今天,我今天,刚刚,我刚刚,昨天,我昨天,)",
    "{d}": "(好,很,特别,有点,真的好,真的很)",
}
"""Who and when for a feeling, who and when for an event, how much."""
_CHOICE = re.compile(r"\(([^()]*,[^()]*)\)")


def expanded(wording: str) -> list[str]:
    """The wording with each combination of its alternatives."""
    for name, choice in MACROS.items():
        wording = wording.replace(name, choice)
    parts = _CHOICE.split(wording)  # text, alternatives, text, alternatives ... text
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def wordings(cell: str) -> list[str]:
    """Every wording of a table's cell, in order, each once. Spaces around it are removed."""
    listed = (wording.strip() for wording in cell.split("|"))
    return list(dict.fromkeys(one for wording in listed if wording for one in expanded(wording)))
