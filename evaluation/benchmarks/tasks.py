"""The public benchmarks that we score: a row each, with where its parts lie and how it is asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.paths import display
from configs.schema import UserError
from evaluation.benchmarks.files import (
    Reader,
    read_agieval,
    read_ceval,
    read_cmath,
    read_cmmlu,
    read_files,
    read_gaokao,
    read_xcopa,
    read_zhoblimp,
)
from evaluation.benchmarks.items import Items

CHOICE, PAIR, PROBLEM = "choice", "pair", "problem"
"""How a benchmark is scored: by options, by the likelier of two texts, by a generated number."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A public benchmark."""

    name: str
    folder: str
    """Below the data folder."""
    kind: str
    read: Reader
    splits: Mapping[str, str]
    """Part -> pattern of its files. The first part is scored if none is asked for."""
    examples: str = ""
    """The part that few-shot examples come from; empty: there is none apart from the scored one."""
    measures: str = ""
    licence: str = ""
    origin: str = ""

    def files(self, data_dir: Path, split: str) -> list[Path]:
        """The files of a part. Raises: UserError if the part or its files are missing."""
        if split not in self.splits:
            raise UserError(
                f"--split {split}: {self.name} has {', '.join(self.splits)}. Give one of these.",
                "该基准没有这一部分：请换成所列的",
            )
        folder = data_dir / self.folder
        paths = sorted(folder.glob(self.splits[split]))
        if not paths:
            raise UserError(
                f"{display(folder)}: no file {self.splits[split]} of {self.name}. Put the original files of {self.origin} "
                "there, or give another --data_dir.",
                "找不到该基准的文件：请放入原始文件，或用 --data_dir 指定",
            )
        return paths

    def items(self, data_dir: Path, split: str) -> Items:
        """The items of a part. Raises: UserError if there are none."""
        return read_files(self.files(data_dir, split), self.read)


ALL = (
    Task(
        name="cmmlu", folder="cmmlu", kind=CHOICE, read=read_cmmlu, examples="dev",
        splits={"test": "test/*.csv", "dev": "dev/*.csv"},
        measures="school, university and professional knowledge 学科知识",
        licence="CC BY-NC-SA 4.0", origin="haonan-li/CMMLU",
    ),
    Task(
        name="ceval", folder="ceval", kind=CHOICE, read=read_ceval, examples="dev",
        splits={"val": "**/*_val.csv", "dev": "**/*_dev.csv"},
        measures="school, university and professional knowledge 学科知识",
        licence="CC BY-NC-SA 4.0", origin="hkust-nlp/ceval",
    ),
    Task(
        name="cmath", folder="cmath", kind=PROBLEM, read=read_cmath,
        splits={"dev": "cmath_dev.jsonl", "distractor": "distractor.jsonl"},
        measures="word problems of the six grades of primary school 小学应用题",
        licence="CC BY 4.0", origin="XiaoMi/cmath",
    ),
    Task(
        name="xcopa_zh", folder="xcopa_zh", kind=PAIR, read=read_xcopa, examples="val",
        splits={"test": "test*.jsonl", "val": "val*.jsonl"},
        measures="which cause or effect is more plausible 因果常识",
        licence="CC BY 4.0", origin="cambridgeltl/xcopa",
    ),
    Task(
        name="zhoblimp", folder="zhoblimp", kind=PAIR, read=read_zhoblimp,
        splits={"test": "*.jsonl"},
        measures="which of two sentences is grammatical 语法",
        licence="none stated 未注明", origin="sjtu-compling/ZhoBLiMP",
    ),
    Task(
        name="agieval", folder="agieval", kind=CHOICE, read=read_agieval,
        splits={"test": "*.jsonl"},
        measures="university entrance and logic exams 高考与逻辑题",
        licence="MIT", origin="ruixiangcui/AGIEval",
    ),
    Task(
        name="gaokao", folder="gaokao_bench", kind=CHOICE, read=read_gaokao,
        splits={"test": "*.json"},
        measures="university entrance exams of 2010 to 2022 高考选择题",
        licence="Apache-2.0", origin="OpenLMLab/GAOKAO-Bench",
    ),
)  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in ALL}
