"""Times encoding: each encoder behind one interface, in the process that calls this."""

import hashlib
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tokenizer.arms import our_trainer, package_version

CALL_TEXTS = 1000
"""Texts in one call of an encoder, as many as `datasets.map` hands over."""

Encoder = tuple[Callable[[list[str]], Any], Callable[[Any], list[list[int]]]]
"""Encodes texts, and turns what it returns into lists of ids."""


def measure_encoding(task: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """Seconds of the calls alone and until ids are lists, the number of ids, their fingerprint."""
    call, to_lists = encoder_of(task, texts)
    to_lists(call(texts[:2]))  # threads and tables that are made at the first call
    seconds = seconds_to_lists = 0.0
    num_tokens = 0
    digest = hashlib.sha256()
    for first in range(0, len(texts), CALL_TEXTS):
        group = texts[first : first + CALL_TEXTS]
        start = time.perf_counter()
        encoded = call(group)
        called = time.perf_counter()
        ids = to_lists(encoded)
        seconds_to_lists += time.perf_counter() - start
        seconds += called - start
        for of_text in ids:
            num_tokens += len(of_text)
            digest.update(array("I", [len(of_text), *of_text]).tobytes())
        del encoded, ids  # else they would be freed in the next call's time
    return {
        "seconds": seconds,
        "seconds_to_lists": seconds_to_lists,
        "num_tokens": num_tokens,
        "ids_sha256": digest.hexdigest(),
        "version": "" if task["arm"] == "ours" else package_version(task["arm"]),
    }


def encoder_of(task: dict[str, Any], texts: list[str]) -> Encoder:
    """The arm's encoder, loaded with the tokenizer folder of the task."""
    folder = Path(task["tokenizer"])
    if task["arm"].startswith("tokenizers"):
        from tokenizers import Tokenizer

        reader = Tokenizer.from_file(str(folder / "tokenizer.json"))
        reader.encode_special_tokens = True  # names of special tokens in a text are text, as in ours
        call = reader.encode_batch_fast if task["arm"] == "tokenizers_fast" else reader.encode_batch
        return lambda group: call(group, add_special_tokens=False), lambda encoded: [one.ids for one in encoded]
    if task["arm"] == "crate":
        crate = our_trainer()  # it can't be loaded, but training gives the same again
        crate.train_from_iterator(iter(texts), task["vocab_size"], pattern=task["pattern"])
        return crate.batch_encode, list
    from dataset.tokenizer import RustBPETokenizer

    tokenizer = RustBPETokenizer.from_directory(folder)
    if task["arm"] == "ours":
        return tokenizer.encode_batch, list  # all cores it is given: RAYON_NUM_THREADS
    import tiktoken

    encoding = tiktoken.Encoding(
        "benchmark", pat_str=tokenizer.pattern, mergeable_ranks=tokenizer.mergeable_ranks, special_tokens={}
    )
    return lambda group: encoding.encode_ordinary_batch(group, num_threads=task["threads"]), list
