"""Small benchmark files in their original formats, written by the tests."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUMS = [(a, b) for a in range(1, 6) for b in range(1, 9)]


def write_csv(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A CSV with a line of names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *rows])


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def write_benchmarks(folder: Path) -> Path:
    """All seven benchmarks, a few items each."""
    rows = [
        [f"计算{a}加{b}的结果是", a + b - 1, a + b, f"{a + b}点五", f"大约{a + b + 20}", "ABCD"[1]] for a, b in SUMS
    ]
    for subject in ("arithmetic", "counting"):
        names = ["", "Question", "A", "B", "C", "D", "Answer"]
        write_csv(folder / f"cmmlu/test/{subject}.csv", names, [[n, *row] for n, row in enumerate(rows)])
        write_csv(folder / f"cmmlu/dev/{subject}.csv", names, [[n, *row] for n, row in enumerate(rows[:5])])
        names = ["id", "question", "A", "B", "C", "D", "answer"]
        write_csv(folder / f"ceval/{subject}_val.csv", names, [[n, *row] for n, row in enumerate(rows)])
        dev = [[n, *row, "加法。"] for n, row in enumerate(rows[:5])]
        write_csv(folder / f"ceval/{subject}_dev.csv", [*names, "explanation"], dev)
    problems = [
        {
            "grade": 1 + n % 2,
            "input": f"小明有{a}个苹果，小红有{b}个，一共有几个？",
            "golden": str(a + b),
            "reasoning_step": 1,
            "num_digits": 1,
        }
        for n, (a, b) in enumerate(SUMS)
    ]
    write_lines(folder / "cmath/cmath_dev.jsonl", problems)
    causes = [
        {
            "premise": f"他跑了{n}公里。",
            "choice1": "他很累。",
            "choice2": "他是一名老师。",
            "question": "effect",
            "label": n % 2,
            "idx": n,
            "changed": False,
        }
        for n in range(10)
    ]
    write_lines(folder / "xcopa_zh/test.zh.jsonl", causes)
    write_lines(folder / "xcopa_zh/val.zh.jsonl", [one | {"premise": f"她走了{one['idx']}里路。"} for one in causes])
    pairs = [
        {
            "UID": "BA_1",
            "phenomenon": phenomenon,
            "sentence_good": f"我把第{n}本书看完了。",
            "sentence_bad": f"我看完了把第{n}本书。",
            "pairID": n,
        }
        for n, phenomenon in enumerate(["BA", "passive", "question"] * 5)
    ]
    write_lines(folder / "zhoblimp/BA_1.jsonl", pairs)
    exam = [
        {
            "passage": "甲比乙高，乙比丙高。" if n % 2 else None,
            "question": f"第{n}题：谁最高？",
            "options": ["(A)甲", "(B)乙", "(C)丙", "(D)无法判断"],
            "label": "A",
            "answer": None,
            "other": None,
        }
        for n in range(6)
    ]
    write_lines(folder / "agieval/logiqa-zh.jsonl", exam)
    write_lines(folder / "agieval/gaokao-physics.jsonl", [exam[0] | {"label": "['A', 'C']"}, exam[2]])
    write_lines(folder / "agieval/gaokao-mathcloze.jsonl", [exam[0] | {"options": None, "label": None, "answer": "2"}])
    write_gaokao(folder / "gaokao_bench/2010-2022_History_MCQs.json")
    return folder


SINGLE = (
    "1．（ 4分）西周分封制影响深远。下列其简称源自西周封国的是（ 　） \n"
    "A．河南、河北  B．湖南、湖北  C．山东、山西  D．广东、广西\n"
)
PASSAGE = (
    "阅读下文，完成 1～2 题。\n书法是一种艺术。\n1．（4 分）书法是（ ） A．艺术 B．科学 C．体育 D．数学\n"
    "2．（4 分）下列正确的是（ ）\nA．甲 \nB．乙丙 \nC．丁 \nD．戊己庚\n"
)


def write_gaokao(path: Path) -> None:
    """A question alone, a passage with two, one with several right options, one without options."""
    answers = [(SINGLE, ["C"]), (PASSAGE, ["A", "D"]), (SINGLE, ["AC"]), ("1．简述其影响。", ["A"])]
    examples = [
        {"year": "2010", "category": "", "question": text, "answer": answer, "analysis": "", "index": n, "score": 4}
        for n, (text, answer) in enumerate(answers)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"keywords": [], "example": examples}, ensure_ascii=False), encoding="utf-8")
