"""Is a question answered as well in the middle of a conversation as it is alone?

    python benchmarks/conversation.py --model_mode 1
    python benchmarks/conversation.py --weight out/rlhf_192.pth --turns 0 1 2 4 8 --json talk.json

Draws conversations of 20 questions that the model was taught: half of what a person types first
(the list `core` of dataset/first_minutes.jsonl), half of facts (trained questions, and held-out
wordings of trained facts). Each question is asked alone and in its conversation, greedily, through
`inference/conversation.py` and `inference/replies.py`, as chat asks it.
"""

import itertools
import random
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.report import add_json_flag
from configs.artifacts import write_json
from configs.cli import Parser, run
from configs.load import load_profile
from configs.paths import DATA_DIR, ROOT, display, env_path
from configs.progress import progress_bar
from configs.schema import UserError
from configs.stage_table import continues_text
from dataset.records.files import read_records
from dataset.records.keys import normalised_question
from dataset.tokenizer import RustBPETokenizer
from evaluation.answers import AnswerRule, Said
from evaluation.first_minutes import fault_of, judge, load_prompts
from evaluation.intervals import share
from evaluation.provenance import mixture_of, names_of
from evaluation.questions import question_of
from inference.conversation import Conversation, context_tokens
from inference.engine import Answer, Engine
from inference.loading import WEIGHTS_OF_MODE, open_model, weights_to_talk_to
from inference.replies import Reply
from inference.sampling import Sampling
from model.device import choose_device
from model.model_minillm import MiniLLM

FIRST_MINUTES = ROOT / "dataset" / "first_minutes.jsonl"
TRAINED, HELDOUT = "sft_chinese.jsonl", "sft_chinese_heldout.jsonl"
POSITIONS = 4
"""Parts of a conversation that are counted separately."""
ALL_THAT_FITS = -1
"""Stands for the number of turns that chat keeps."""

Talker: TypeAlias = Callable[[Sequence[str], int], list[Answer]]
"""Asks questions one after the other; before each question at most so many turns are kept."""


@dataclass(frozen=True)
class Known:
    """A question that the model was taught."""

    text: str
    kind: str
    fault: Callable[[Answer], str]
    """What is wrong with an answer; empty when nothing is."""


@dataclass(frozen=True)
class Asked:
    """One question of one conversation, and what came of it."""

    conversation: int
    place: int
    """Counted from 0."""
    question: Known
    alone: Answer
    within: Answer

    @property
    def right(self) -> tuple[bool, bool]:
        """Whether the answer is right alone, and in the conversation."""
        return not self.question.fault(self.alone), not self.question.fault(self.within)


# --- questions ------------------------------------------------------------------------------------


def core_questions(path: Path, names: tuple[str, str]) -> list[Known]:
    """What a person types first, as far as it is a single turn."""

    def fault(prompt: Any) -> Callable[[Answer], str]:
        return lambda said: judge(prompt, [said])

    return [
        Known(prompt.turns[0], f"core {prompt.kind}", fault(prompt))
        for prompt in load_prompts(path, names)
        if prompt.is_core and len(prompt.turns) == 1
    ]


def fact_questions(path: Path, names: tuple[str, str], kind: str) -> list[Known]:
    """The facts of a file that are asked in a single turn; of held-out ones the half `test`."""

    def fault(rule: AnswerRule) -> Callable[[Answer], str]:
        return lambda said: fault_of(said) or rule.broken(Said(said.text))

    found = []
    for record in read_records(path):
        if record.get("category") != "knowledge" or record.get("kind") or record.get("split", "test") != "test":
            continue
        question = question_of(record)
        if len(question.messages) == 1:
            found.append(Known(question.asked, kind, fault(AnswerRule(question, names))))
    return found


def draw(pools: Sequence[Sequence[Known]], *, conversations: int, length: int, seed: int) -> list[list[Known]]:
    """Conversations that take turns between the pools, in random order; none asks a thing twice.

    Raises: UserError where a pool has too few questions for one conversation.
    """
    choose = random.Random(seed)
    drawn = []
    for _ in range(conversations):
        questions: list[Known] = []
        seen: set[str] = set()
        left = [choose.sample(pool, len(pool)) for pool in pools]
        while len(questions) < length:
            pool = left[len(questions) % len(left)]
            if not pool:
                raise UserError(f"too few questions for conversations of {length}. Lower --questions.")
            known = pool.pop()
            if (key := normalised_question(known.text)) not in seen:
                seen.add(key)
                questions.append(known)
        choose.shuffle(questions)
        drawn.append(questions)
    return drawn


# --- asking ---------------------------------------------------------------------------------------


def talker(model: MiniLLM, tokenizer: RustBPETokenizer, max_new_tokens: int) -> Talker:
    """A talker that does what chat does."""
    engine, room = Engine(model, tokenizer), context_tokens(model)
    sampling = Sampling(max_new_tokens=max_new_tokens)

    def talk(questions: Sequence[str], turns: int) -> list[Answer]:
        conversation = Conversation(tokenizer, room)
        answers = []
        for question in questions:
            if turns != ALL_THAT_FITS:
                del conversation.messages[: max(0, len(conversation.messages) - 2 * turns)]
            reply = Reply(engine, conversation.ask(question), sampling)
            conversation.hear("".join(reply))
            answers.append(Answer(reply.text, reply.ended, len(reply.request.ids)))
        return answers

    return talk


def measure(conversations: Sequence[Sequence[Known]], talk: Talker, turns: Sequence[int]) -> dict[int, list[Asked]]:
    """Turns kept -> every question with its two answers."""
    distinct = list({known.text: None for questions in conversations for known in questions})
    total = len(distinct) + len(turns) * sum(map(len, conversations))
    found: dict[int, list[Asked]] = {}
    with progress_bar(total, desc="answers", unit="answers") as bar:
        alone = {}
        for text in distinct:
            alone[text] = talk([text], ALL_THAT_FITS)[0]
            bar.update(1)
        for kept in turns:
            found[kept] = []
            for number, questions in enumerate(conversations):
                answers = talk([known.text for known in questions], kept)
                bar.update(len(answers))
                for place, (known, said) in enumerate(zip(questions, answers, strict=True)):
                    found[kept].append(Asked(number, place, known, alone[known.text], said))
    return found


# --- figures --------------------------------------------------------------------------------------


def shares(asked: Sequence[Asked]) -> dict[str, Any]:
    """Share right alone, share right in the conversation, and the second over the first.

    The intervals count conversations, because questions of one conversation depend on each other.
    """
    clusters = [one.conversation for one in asked]
    alone, within = ([one.right[place] for one in asked] for place in (0, 1))
    kept = sum(within) / sum(alone) if any(alone) else None
    return {
        "n": len(asked),
        "alone": share(alone, clusters).as_json(),
        "within": share(within, clusters).as_json(),
        "ratio": kept,
    }


def parts(asked: Sequence[Asked], length: int) -> Iterator[tuple[str, list[Asked]]]:
    """All, the parts of the conversation, and the kinds of questions."""
    yield "all", list(asked)
    bounds = [round(length * part / POSITIONS) for part in range(POSITIONS + 1)]
    for first, end in itertools.pairwise(bounds):
        if part := [one for one in asked if first <= one.place < end]:
            yield f"{first + 1}-{end}", part
    for kind in sorted({one.question.kind for one in asked}):
        yield kind, [one for one in asked if one.question.kind == kind]


def table(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A header, and one line for each part."""
    lines = [f"  {'':<20}{'n':>6}{'alone':>9}{'within':>9}  {'95% interval':<16}{'ratio':>7}"]
    for name, part in figures.items():
        low, high = part["within"]["ci95"]
        ratio = "-" if part["ratio"] is None else f"{part['ratio']:.1%}"
        lines.append(
            f"  {name:<20}{part['n']:>6}{part['alone']['value']:>9.1%}{part['within']['value']:>9.1%}  "
            f"{f'[{low:.1%}, {high:.1%}]':<16}{ratio:>7}"
        )
    return lines


def turns_name(turns: int) -> str:
    """The name of a number of turns kept."""
    return "what chat keeps" if turns == ALL_THAT_FITS else f"{turns} turns"


def spoilt(asked: Sequence[Asked], limit: int) -> list[str]:
    """Questions that are right alone and wrong in the conversation."""
    wrong = [one for one in asked if one.right == (True, False)]
    return [
        f"  {one.conversation + 1}.{one.place + 1} {one.question.kind}: {one.question.text}\n"
        f"    alone: {one.alone.text}\n    within: {one.within.text} ({one.question.fault(one.within)})"
        for one in wrong[:limit]
    ]


# --- command line ---------------------------------------------------------------------------------


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--weight", type=Path, metavar="PATH", help="weights 权重文件 (those that chat takes)")
    parser.add_argument("--model_mode", type=int, choices=sorted(WEIGHTS_OF_MODE), help="as in eval_model.py 阶段")
    parser.add_argument("--out_dir", type=Path, metavar="DIR", help="where the weights are 权重所在目录 (out)")
    parser.add_argument("--hidden_size", type=int, metavar="N", help="which size, if there are several 隐藏层宽度")
    parser.add_argument("--tokenizer_dir", type=Path, metavar="DIR", help="tokenizer folder 分词器目录")
    parser.add_argument(
        "--data_dir", type=Path, metavar="DIR", help="the mix it was trained on 训练数据目录 (data/processed)"
    )
    parser.add_argument("--conversations", type=int, default=20, metavar="N", help="how many 对话数 (%(default)s)")
    parser.add_argument("--questions", type=int, default=20, metavar="N", help="in each 每段对话的问题数 (%(default)s)")
    turns_help = "also with only the last K turns kept 另测只保留最近 K 轮"
    parser.add_argument("--turns", type=int, nargs="+", default=[], metavar="K", help=turns_help)
    parser.add_argument("--max_new_tokens", type=int, default=128, metavar="N", help="longest answer 最长回答 (128)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw 抽样种子 (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps 设备 (%(default)s)")
    parser.add_argument(
        "--show_spoilt", type=int, default=0, metavar="N", help="print N questions spoilt 打印变错的问题"
    )
    add_json_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Weights -> a table, and a JSON file."""
    arguments = build_parser().parse_args(argv)
    if min(arguments.conversations, arguments.questions) < 1 or any(kept < 0 for kept in arguments.turns):
        raise UserError("--conversations and --questions must be 1 or more, --turns 0 or more.")
    path, model, tokenizer, names = open_chat(arguments)
    data_dir = arguments.data_dir or env_path("DATA_DIR", DATA_DIR)
    pools = [
        core_questions(FIRST_MINUTES, names),
        fact_questions(data_dir / TRAINED, names, "facts, trained"),
        core_questions(FIRST_MINUTES, names),
        fact_questions(data_dir / HELDOUT, names, "facts, reworded"),
    ]
    length = arguments.questions
    drawn = draw(pools, conversations=arguments.conversations, length=length, seed=arguments.seed)
    found = measure(
        drawn, talker(model, tokenizer, arguments.max_new_tokens), [ALL_THAT_FITS, *sorted(set(arguments.turns))]
    )
    chat_keeps = {name: shares(part) for name, part in parts(found[ALL_THAT_FITS], length)}
    by_turns = {turns_name(kept): shares(asked) for kept, asked in found.items()}
    print(f"{display(path)}: {len(drawn)} conversations of {length} known questions, each asked alone and within")
    print("\n".join(table(chat_keeps)))
    if arguments.turns:
        print("\n".join(["", *table(by_turns)]))
    print("\n".join(spoilt(found[ALL_THAT_FITS], arguments.show_spoilt)), end="\n" * bool(arguments.show_spoilt))
    if arguments.json:
        settings = {name: getattr(arguments, name) for name in ("conversations", "questions", "seed", "max_new_tokens")}
        figures = {"weight": display(path), "settings": settings, "parts": chat_keeps, "turns": by_turns}
        write_json(arguments.json, figures)
        print(f"-> {display(arguments.json)}")
    return 0


def open_chat(arguments: Namespace) -> tuple[Path, MiniLLM, RustBPETokenizer, tuple[str, str]]:
    """The model that chat would take, and the names that the mix filled in."""
    path = weights_to_talk_to(
        arguments.weight, mode=arguments.model_mode, out_dir=arguments.out_dir, hidden_size=arguments.hidden_size
    )
    opened = open_model(path, device=choose_device(arguments.device), tokenizer_dir=arguments.tokenizer_dir)
    if continues_text(opened.manifest.stage):
        raise UserError(f"{display(path)}: pretrained weights don't answer. Give weights of SFT or DPO.")
    mix = load_profile("default").mix
    data_dir = arguments.data_dir or env_path("DATA_DIR", DATA_DIR)
    names = names_of(mixture_of(data_dir, opened.manifest.training_data), (mix.name, mix.author))
    return path, opened.model, opened.tokenizer, names


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run(main)
