"""Counters of the server in the text format of Prometheus."""

from collections.abc import Iterator
from itertools import accumulate

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds, in seconds."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """How many values lie below each bound."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count a value."""
        place = next((place for place, bound in enumerate(BUCKETS) if seconds <= bound), len(BUCKETS))
        self._counts[place] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        """Its lines: the counts add up from bound to bound."""
        for bound, count in zip((*BUCKETS, "+Inf"), accumulate(self._counts), strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {sum(self._counts)}"


class Metrics:
    """What the server counts. Only the event loop writes."""

    def __init__(self) -> None:
        self.generated_tokens = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.first_token = Histogram()
        self.requests: dict[int, int] = {}
        """HTTP status -> requests that ended with it."""

    def text(self, *, running: int, waiting: int) -> str:
        """All of them. Args: answers that run, and that wait for a slot."""
        lines = [
            *_lines("minillm_requests_running", "gauge", "Answers that are being made", running),
            *_lines("minillm_requests_waiting", "gauge", "Answers that wait for a slot", waiting),
            *_lines("minillm_generated_tokens_total", "counter", "Tokens generated", self.generated_tokens),
            *_lines("minillm_prompt_tokens_total", "counter", "Tokens of prompts", self.prompt_tokens),
            *_lines(
                "minillm_prompt_tokens_cached_total",
                "counter",
                "Tokens of prompts that were in the cache",
                self.cached_tokens,
            ),
            *_comments("minillm_time_to_first_token_seconds", "histogram", "From the request to its first token"),
            *self.first_token.lines("minillm_time_to_first_token_seconds"),
            *_comments("minillm_requests_total", "counter", "Requests by HTTP status"),
            *(f'minillm_requests_total{{status="{key}"}} {count}' for key, count in sorted(self.requests.items())),
        ]
        return "\n".join(lines) + "\n"


def _comments(name: str, kind: str, what: str) -> Iterator[str]:
    yield f"# HELP {name} {what}."
    yield f"# TYPE {name} {kind}"


def _lines(name: str, kind: str, what: str, value: int) -> Iterator[str]:
    yield from _comments(name, kind, what)
    yield f"{name} {value}"
