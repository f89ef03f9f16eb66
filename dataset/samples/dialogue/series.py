"""Sample talk with many answers of one kind: jokes, poems, stories, riddles, chains of idioms.

"Another one" gives the next answer of the series, so all come before any comes again. Which answer
comes first depends only on the wording.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from dataset.samples.dialogue.everyday import HALVES, Half, Turn, form_of, items, key, record, typed
from dataset.samples.frames import bare, framed
from dataset.samples.tables import lines, yaml_table

SERIES_FILE = Path(__file__).with_name("series.yaml")
IDIOMS_FILE = Path(__file__).with_name("idioms.txt")

NUM_FIRST = 4
"""How many answers a series may begin with. A long series has more, so that two of them are at most
so many answers apart."""
NUM_TYPED = 22
"""Training records of one turn for each series, but at least one for each wording."""
NUM_TRIES = 4 * NUM_TYPED
"""After so many typed questions a series gets no more records of one turn."""
NUM_CHAINS_AN_ANSWER = 1.75
"""Conversations in which the user asks for another one, for each answer of a series."""
FAVOURITES, NUM_FAVOURITE_CHAINS = ("joke", "story", "riddle", "poem"), 6.0
"""The series that people ask for most, and the same number for these."""
NUM_IDIOM_GAMES = 60
"""Games of idioms with several turns."""
SMILES: tuple[Turn, ...] = (
    ("哈哈哈", "看你笑我也开心，再聊点有趣的吧。"),
    ("哈哈", "看你笑我也开心，再聊点有趣的吧。"),
    ("谢谢", "不客气，随时可以找我。"),
    ("不错", "谢谢夸奖，我会继续努力。"),
)
"""What may come between two answers of a series. The replies are those of the small talk."""
RIDDLES = ("riddle", "teaser")
GAME_OPENERS = {
    "training": (
        "成语接龙", "玩成语接龙", "我们玩成语接龙吧", "来玩成语接龙", "陪我玩成语接龙", "成语接龙吧", "我想玩成语接龙",
        "玩个成语接龙", "来成语接龙", "会成语接龙吗", "你会成语接龙吗", "陪我玩游戏", "我们玩个游戏吧", "玩游戏", "陪我玩",
        "玩个游戏", "玩点什么", "来玩游戏吧", "有什么好玩的游戏", "接龙", "开始成语接龙",
    ),
    "validation": ("跟我玩成语接龙", "来一局成语接龙", "能玩成语接龙吗"),
}  # fmt: skip
GAME_START = "好呀，我先来：一心一意。"
GAME_END = "我接不上了，你赢了！"
FISTS = {"石头": "我出剪刀，你赢了！", "剪刀": "我出石头，我赢啦！", "布": "我也出布，打平了！"}
FIST_OPENERS = (
    "猜拳",
    "石头剪刀布",
    "剪刀石头布",
    "玩石头剪刀布",
    "我们猜拳吧",
    "来猜拳",
    "划拳",
    "玩猜拳",
    "陪我猜拳",
    "剪刀石头布来不来",
)
FIST_START = "好呀，你先出：石头、剪刀还是布？"


@dataclass(frozen=True, slots=True)
class Series:
    """Answers of one kind, and how people ask for them. A riddle also has a solution."""

    name: str
    answers: tuple[str, ...]
    solutions: tuple[str, ...]
    ask: tuple[str, ...]
    heldout: dict[str, tuple[str, ...]]
    again: tuple[str, ...]
    topics: tuple[str, ...]
    topic_ask: tuple[str, ...]
    topic_heldout: tuple[str, ...]

    def first(self, number: int) -> int:
        """The number of the answer to a wording: `num_first` answers, spread over the series, take
        turns."""
        return number % self.num_first * len(self.answers) // self.num_first

    @property
    def num_first(self) -> int:
        """How many answers may come first."""
        return max(min(NUM_FIRST, len(self.answers)), -(-len(self.answers) // NUM_FIRST))


def _table() -> dict[str, Any]:
    """The series, and under `all` the wordings for every series."""
    return yaml_table(SERIES_FILE)


@cache
def series() -> tuple[Series, ...]:
    """Every series. Its held-out wordings all belong to one half; the halves take turns."""
    found = []
    for number, (name, entry) in enumerate((name, entry) for name, entry in _table().items() if name != "all"):
        listed = entry["answers"] or [item.answer for item in items() if item.kind == entry["kind"]]
        answers, solutions = zip(*listed, strict=True) if name in RIDDLES else (listed, ())
        found.append(
            Series(
                name=name,
                answers=tuple(answers),
                solutions=tuple(map(str, solutions)),
                ask=tuple(entry["ask"]),
                heldout={half: tuple(entry["heldout"]) if number % 2 == i else () for i, half in enumerate(HALVES)},
                again=(*entry["again"], *_table()["all"]["again"]),
                topics=tuple(entry.get("topics", ())),
                topic_ask=tuple(entry.get("topic_ask", ())),
                topic_heldout=tuple(entry.get("topic_heldout", ())),
            )
        )
    return tuple(found)


# --- one turn -------------------------------------------------------------------------------------


def _single(one: Series, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Each wording with its answer. For a held-out wording every answer of the series is right."""
    asked = {bare(ask): number for number, ask in enumerate(one.ask[:4])}
    owner = {key(ask): number for number, ask in enumerate(one.ask)}
    for number, ask in islice(cycle(enumerate(one.ask)), NUM_TRIES):
        question = typed(ask, rng, form_of(ask, "mark"))
        # 夸我 with 吧 after it may be another wording of the list, which has its own answer.
        if len(asked) < max(NUM_TYPED, len(one.ask) + 4) and owner.setdefault(key(question), number) == number:
            asked.setdefault(question, number)
    for question, number in asked.items():
        yield record([(question, one.answers[one.first(number)])], kind="chat")
    for half, wordings in one.heldout.items():
        for number, ask in enumerate(wordings):
            answer = one.answers[one.first(number)]
            others = [other for other in one.answers if other != answer]
            question = typed(ask, rng)
            yield record([(question, answer)], kind="chat", split=half, cluster=f"chat:{one.name}", accepted=others)


def _by_topic(one: Series, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Questions for a certain answer: a poem about the sea, 《春晓》."""
    for number, topic in enumerate(one.topics):
        for ask in one.topic_ask:
            question = framed(ask.format(t=topic), rng, form_of(ask, "mark"))
            yield record([(question, one.answers[number])], kind="chat")
        half = HALVES[number % 2]
        question = one.topic_heldout[number % 2].format(t=topic)
        yield record([(question, one.answers[number])], kind="chat", split=half, cluster=f"{one.name}:{topic}")


# --- another one ----------------------------------------------------------------------------------


def _opening(one: Series, start: int, rng: random.Random) -> str:
    """The wording of this number, as somebody may type it."""
    # If the words around it make it another wording, which has another answer, it stays bare.
    question = typed(one.ask[start], rng, form_of(one.ask[start], "mark"))
    return question if key(question) == key(one.ask[start]) else one.ask[start]


def chain(one: Series, start: int, num_more: int, rng: random.Random) -> list[Turn]:
    """An opening, then `num_more` times another one, sometimes with a smile between two answers.

    Args: start: the number of the opening's wording.
    """
    position = one.first(start)
    turns: list[Turn] = [(_opening(one, start, rng), one.answers[position])]
    for _ in range(min(num_more, len(one.answers) - 1)):
        if one.solutions and rng.random() < 0.75:
            turns += guesses(one, position, rng)
        elif not one.solutions and rng.random() < 0.25:
            turns.append(rng.choice(SMILES))
        position = (position + 1) % len(one.answers)
        turns.append((typed(rng.choice(one.again), rng), one.answers[position]))
    if one.solutions:
        turns += guesses(one, position, rng)
    return turns


def guesses(one: Series, position: int, rng: random.Random, half: Half = "training") -> list[Turn]:
    """What follows a riddle: a guess, or the wish to hear the solution; perhaps a wrong guess
    first."""
    solution, words = one.solutions[position], _table()["all"]
    tell, right, wrong = (words[name].format(a=solution) for name in ("tell", "right", "wrong"))
    if half == "training":
        give_up, guess = words["give_up"], words["guess"]
    else:
        give_up, guess = words["give_up_heldout"][half], words["guess_heldout"][half]
    others = [word for word in (*one.solutions, *words["wrong_guesses"]) if word != solution]
    miss: Turn = (typed(rng.choice(words["guess"]).format(a=rng.choice(others)), rng), wrong)
    hit: Turn = (typed(rng.choice(guess).format(a=solution), rng), right)
    told: Turn = (typed(rng.choice(give_up), rng), tell)
    return rng.choices(([hit], [told], [miss, hit], [miss, told]), weights=(3, 4, 2, 2))[0]


def _chains(one: Series, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Conversations that ask for another one.

    Together they have every step from answer to answer.
    """
    an_answer = NUM_FAVOURITE_CHAINS if one.name in FAVOURITES else NUM_CHAINS_AN_ANSWER
    for number in range(round(an_answer * len(one.answers))):
        num_more = (NUM_FIRST, 1, 2, 1, 3, 1)[number // one.num_first % 6]  # short ones fit behind other turns
        yield record(chain(one, number % len(one.ask), num_more, rng), kind="turns")


def _heldout_chains(one: Series, number: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """A held-out opening, then another one in a held-out wording. All but the first answer are
    right."""
    half: Half = "validation" if one.heldout["validation"] else "test"
    again = _table()["all"]["again_heldout"][half]
    for index, opening in enumerate(one.heldout[half]):
        position = one.first(index)
        turns: list[Turn] = [(typed(opening, rng), one.answers[position])]
        if one.solutions:
            turns += guesses(one, position, rng, half)
            accepted = []
        else:
            then = (position + 1) % len(one.answers)
            turns.append((again[(number + index) % len(again)], one.answers[then]))
            accepted = [answer for i, answer in enumerate(one.answers) if i not in (position, then)]
        name = f"turns:{one.name}"
        yield record(turns, kind="turns", split=half, cluster=name, group=f"{name}:{index}", accepted=accepted or None)


# --- games ----------------------------------------------------------------------------------------


@cache
def idioms() -> tuple[str, ...]:
    """The idioms of the game, in the order of the list."""
    return tuple(idiom for line in lines(IDIOMS_FILE) for idiom in line.split())


def idiom_reply(idiom: str) -> str:
    """The first idiom of the list that begins with the last character, else the end of the game."""
    found = next((other for other in idioms() if other[0] == idiom[-1] and other != idiom), None)
    return f"{found}。" if found else GAME_END


def idiom_game(opening: str, num_turns: int, rng: random.Random) -> list[Turn]:
    """A game of `num_turns` idioms of the user.

    It is shorter if nobody finds one. None comes twice.
    """
    turns: list[Turn] = [(opening, GAME_START)]
    said = {"一心一意"}
    last = "一心一意"
    for _ in range(num_turns):
        fitting = [idiom for idiom in idioms() if idiom[0] == last[-1] and idiom not in said]
        if not fitting:
            turns.append(
                (rng.choice(("接不上了", "我输了", "我不会了", "接不下去了")), "没关系，歇一会儿，下一局再来。")
            )
            break
        mine = rng.choice(fitting)
        reply = idiom_reply(mine)
        if bare(reply) in said:
            break
        turns.append((mine, reply))
        if reply == GAME_END:
            break
        said |= {mine, bare(reply)}
        last = bare(reply)
    return turns


def _games(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Chains of idioms, and rock, paper, scissors."""
    for opening in GAME_OPENERS["training"]:
        yield record([(typed(opening, rng, "do"), GAME_START)], kind="chat")
    for opening in GAME_OPENERS["validation"]:
        yield record([(opening, GAME_START)], kind="chat", split="validation", cluster="chat:idioms")
    for idiom in idioms():
        yield record(
            [(rng.choice(("成语接龙：{}", "我先来：{}", "接龙，{}")).format(idiom), idiom_reply(idiom))],
            kind="chat",
        )
    for number in range(NUM_IDIOM_GAMES):
        opening = typed(GAME_OPENERS["training"][number % len(GAME_OPENERS["training"])], rng, "do")
        yield record(idiom_game(opening, rng.randint(2, 5), rng), kind="turns")
    for opening in FIST_OPENERS:
        yield record([(typed(opening, rng), FIST_START)], kind="chat")
        fist = rng.choice(list(FISTS))
        said = rng.choice((fist, f"我出{fist}", f"{fist}！"))
        yield record([(typed(opening, rng), FIST_START), (said, FISTS[fist])], kind="turns")
    for fist, answer in FISTS.items():
        for said in (f"我出{fist}", f"我出{fist}！", f"出{fist}"):
            yield record([(said, answer)], kind="chat")


def distinct(records: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The records without those whose conversation has come before."""
    seen: set[str] = set()
    for one in records:
        said = str(one["conversations"])
        if said not in seen:
            seen.add(said)
            yield one


def records() -> Iterator[dict[str, Any]]:
    """Chat records of kind `chat` (one turn) and `turns` (several), all different."""
    rng = random.Random(4402)
    made: list[dict[str, Any]] = []
    for number, one in enumerate(series()):
        made += [*_single(one, rng), *_by_topic(one, rng), *_chains(one, rng), *_heldout_chains(one, number, rng)]
    made += _games(rng)
    yield from distinct(made)
