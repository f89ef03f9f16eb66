"""Finds the names of the model and its author in the user's identity data.

The bundled samples and the evaluation then use these names instead of the names in the settings.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from configs.messages import both, warning
from configs.paths import CONFIG_DIR, display
from configs.schema import MixConfig
from dataset.mix.sources import Source, read_source
from dataset.records.record import ChatRecord

LEAST_SHARE = 0.5
"""A name is used if at least this share of all names in the answers is this name."""
LEAST_SAID = 0.1
"""Answers give the model another name if at least this share of them says it: a story may name
somebody too."""

_END = r"(?=[，。！？、；：,.!?;:（(~～\s]|的|呀|哦|喔|哟|啦|呢|$)"
_NAME = r"[「“\"《'【]?([\u4e00-\u9fffA-Za-z0-9·_.\-]{1,20}?)[」”\"》'】]?"
_CALLED = re.compile(
    r"(?:名字(?:就)?[是叫]|名[叫为]|我(?:就)?叫(?:做|作)?|称呼?我(?:为)?|叫我|我(?:就)?是)\s*"
    + _NAME
    + _END
    + r"|(?:I am|I'm|I’m|[Mm]y name is|[Cc]all me)\s+([A-Z][A-Za-z0-9_\-]{0,19})"
)
_MADE_HERE = r"(?:自主)?(?:开发|训练|研发|创造|打造|推出|设计|研制|制作|创建|构建|做)"
_MAKER = re.compile(
    r"(?:开发者|作者|创造者|主人|团队)[是叫]\s*"
    + _NAME
    + _END
    + r"|(?:是由|由|是|来自)\s*([\u4e00-\u9fffA-Za-z0-9·_.\- ]{1,20}?)\s*"
    + _MADE_HERE
    + r"|(?:created|developed|made|built|trained) by\s+([A-Z][A-Za-z0-9_\- ]{0,19}?)(?=[.,!?]|$| and )"
)
_AFTER_MAKER = re.compile(_MADE_HERE + r"(?:出来)?的?\s*" + _NAME + _END)
_NO_NAME = re.compile(
    r"^(?:[一您你我他她它谁由在来这那不个位名款的为用者被]|AI|ai|人工|语言|大|智能|机器|聊天|对话|虚拟|基于|专|什么|助手|模型|assistant)"
    r"|开发|训练|研发"
)
"""Matches a description that is not a name (一个助手, AI助手)."""


def own_identity(sources: Sequence[Source], config: MixConfig) -> tuple[dict[str, Any], MixConfig, list[str]]:
    """The names in the user's identity data, for the bundled samples and the evaluation.

    Returns: the entry `identity` of the manifest; the settings with these names; messages for the
    user.
    """
    own = [source for source in sources if source.category == "identity" and not source.is_sample]
    if not own:
        return {"own": False, "name": config.name, "author": config.author}, config, []
    names = names_in(_answers(own, config), config.name, config.author)
    settled = replace(config, name=names.name or config.name, author=names.author or config.author)
    # Tell the user about each name that differs from the settings.
    notes = []
    said = [f"the model {names.name}"] * (settled.name != config.name)
    said += [f"its maker {names.author}"] * (settled.author != config.author)
    if said:
        notes.append(
            both(
                f"identity: your files call {' and '.join(said)}, and so do the bundled samples and the evaluation",
                f"按您的身份数据，模型叫 {settled.name}，作者是 {settled.author}，其余样例和评测与之一致",
            )
        )
    if names.name is None:
        notes.append(
            warning(
                f"identity: your files don't say what the model is called ({config.name} is in none of their answers): "
                "the evaluation can't ask for its name. If they do, pass --name NAME and --author NAME, or set `name` and "
                f"`author` in {display(CONFIG_DIR / 'mixture.yaml')}",
                "身份数据中找不到模型的名字：请用 --name 和 --author 指定",
            )
        )
    return {"own": True, "name": names.name, "author": names.author}, settled, notes


def _answers(sources: Sequence[Source], config: MixConfig) -> Iterator[str]:
    """All answers of the assistant in these files. Bad records are skipped and reported later."""
    for source in sources:
        for _, _, _, record in read_source(source, config):
            if isinstance(record, ChatRecord):
                yield from (message["content"] for message in record.messages if message["role"] == "assistant")


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the model and of its author; None if a name is unclear."""

    name: str | None
    author: str | None


def names_in(answers: Iterable[str], name: str, author: str) -> Names:
    """Find the names of the model and its author in the answers of identity records.

    Args: name, author: the names in the settings. If an answer contains such a name, it is used.
    """
    names: Counter[str] = Counter()
    makers: Counter[str] = Counter()
    says_name = says_author = False
    for answer in answers:
        says_name = says_name or name.lower() in answer.lower()
        says_author = says_author or author.replace(" ", "") in answer.replace(" ", "")
        names.update(_found(_CALLED, answer) or _found(_AFTER_MAKER, answer))
        makers.update(_found(_MAKER, answer))
    return Names(name if says_name else _most_common(names), author if says_author else _most_common(makers))


def another_name(answers: Sequence[str], name: str, author: str) -> tuple[str, str] | None:
    """The names of the model and its author in new answers, if they call the model something else.

    Args: name, author: what it was called before. An author who is not named stays.
    """
    found = names_in(answers, name, author) if name else Names(None, None)
    if found.name is None or found.name == name:
        return None
    said = sum(found.name in answer for answer in answers)
    return (found.name, found.author or author) if said >= LEAST_SAID * len(answers) else None


def _found(pattern: re.Pattern[str], answer: str) -> set[str]:
    """The distinct names that a pattern finds in an answer."""
    found = (next(filter(None, match.groups()), "") for match in pattern.finditer(answer))
    return {name.strip() for name in found if name.strip() and not _NO_NAME.search(name.strip())}


def _most_common(counts: Counter[str]) -> str | None:
    """The most frequent name if it is frequent enough. If two are equal, the first by alphabet."""
    if not counts:
        return None
    name, count = min(counts.most_common(), key=lambda entry: (-entry[1], entry[0]))
    return name if count >= LEAST_SHARE * counts.total() else None
