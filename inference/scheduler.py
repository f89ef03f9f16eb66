"""Who generates next: a queue of requests, and the slots of the cache that they are given.

A slot keeps the tokens of the last request it had. A new prompt that begins with the same tokens
does not compute them again: the earlier turns of a conversation, or a system prompt that many
share.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from inference.request import Request
from model.decoder import CHUNK, Chunk, bucket_of, next_border


@dataclass(eq=False)
class Slot:
    """One slot of the cache, and what it holds."""

    number: int
    tokens: list[int] = field(default_factory=list)
    """The tokens whose keys and values it holds."""
    num_read: int = 0
    """The first so many of them were read as parts of a prompt. Only these are given to others: a
    generated token was computed in other shapes, so its last bits may differ."""
    request: Request | None = None
    """Whose it is; None: free."""
    since: int = 0
    """When its request came, or left. The larger, the later."""

    @property
    def is_reading(self) -> bool:
        """Whether a part of its prompt is still to be read."""
        return self.request is not None and self.num_read < len(self.request.prompt)

    @property
    def is_decoding(self) -> bool:
        """Whether its request gets a token in the next step."""
        return self.request is not None and not self.is_reading

    def next_chunk(self, start: int) -> Chunk:
        """The part of its prompt that begins at this place."""
        assert self.request is not None
        prompt = self.request.prompt
        end = min(next_border(start), len(prompt))
        return Chunk(self.number, start, prompt[start:end], is_last=end == len(prompt))

    def read(self, chunk: Chunk) -> None:
        """It holds this part of its prompt now."""
        self.tokens += chunk.ids
        self.num_read = len(self.tokens)


class Scheduler:
    """Gives slots to requests, in the order in which they came."""

    def __init__(
        self, max_slots: int, *, copy: Callable[[int, int, int], None], swap: Callable[[int, int, int], None]
    ) -> None:
        """Args: copy, swap: do it in the cache: (source, target, places), (one, other, places)."""
        self.max_slots, self._copy, self._swap = max_slots, copy, swap
        self.waiting: deque[Request] = deque()
        self.slots: list[Slot] = []
        self._now = 0

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self.waiting) or any(slot.request for slot in self.slots)

    def slot_of(self, request: Request) -> Slot | None:
        """The slot that a request has."""
        return next((slot for slot in self.slots if slot.request is request), None)

    def reading(self) -> list[Slot]:
        """Slots whose prompts are not read yet, the oldest request first."""
        return sorted((slot for slot in self.slots if slot.is_reading), key=lambda slot: slot.since)

    def decoding(self) -> list[Slot]:
        """Slots that take the next step."""
        return [slot for slot in self.slots if slot.is_decoding]

    # --- admission --------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether another request can get a slot."""
        return len(self.slots) < self.max_slots or any(slot.request is None for slot in self.slots)

    def admit(self) -> Slot:
        """Give the first waiting request a slot, with as much of its prompt as any slot holds."""
        request = self.waiting.popleft()
        # The last token is always read, since the first new token follows from its logits.
        source, common = self._longest_prefix(request.prompt[:-1])
        slot = source
        # A slot that holds much more than the common part is kept: it may be a conversation that
        # goes on.
        if slot is None or slot.request is not None or 2 * common < slot.num_read:
            slot = self._free_slot()
            if source is not None and slot is not source:
                self._copy(source.number, slot.number, common)
        return self._give(slot, request, common)

    def join(self, request: Request, first: Slot) -> Slot:
        """Give a request a slot with a prompt that another slot has read just now."""
        slot = self._free_slot()
        self._copy(first.number, slot.number, len(request.prompt))
        return self._give(slot, request, len(request.prompt))

    def _give(self, slot: Slot, request: Request, num_tokens: int) -> Slot:
        """A slot that holds so many tokens of a prompt belongs to its request now."""
        self._now += 1
        slot.request, slot.since = request, self._now
        slot.tokens, slot.num_read = request.prompt[:num_tokens], num_tokens
        request.cached_tokens = num_tokens
        return slot

    def _longest_prefix(self, tokens: Sequence[int]) -> tuple[Slot | None, int]:
        """The slot that holds most of these tokens, in whole chunks; and how many."""
        best: tuple[Slot | None, int] = (None, 0)
        for slot in self.slots:
            common, most = 0, min(slot.num_read, len(tokens))
            while common + CHUNK <= most and slot.tokens[common : common + CHUNK] == tokens[common : common + CHUNK]:
                common += CHUNK
            # Of two equal ones a free slot is better: nothing need be copied.
            if common > best[1] or (common and common == best[1] and slot.request is None):
                best = (slot, common)
        return best

    def _free_slot(self) -> Slot:
        """A new slot, else the one that has been free for longest."""
        if len(self.slots) < self.max_slots:
            self.slots.append(Slot(len(self.slots)))
            return self.slots[-1]
        return min((slot for slot in self.slots if slot.request is None), key=lambda slot: slot.since)

    def release(self, slot: Slot, *, keep: bool = True) -> None:
        """The request of a slot is finished. Args: keep: others may use what the slot holds."""
        self._now += 1
        slot.request, slot.since = None, self._now
        del slot.tokens[slot.num_read if keep else 0 :]
        slot.num_read = len(slot.tokens)

    # --- order ------------------------------------------------------------------------------------

    def gather(self) -> int:
        """Move the slots that take a step to the front.

        Returns: how many slots the step computes (`bucket_of`).
        """
        decoding = self.decoding()
        count = bucket_of(len(decoding))
        for slot in decoding:
            if slot.number >= count:
                self._exchange(slot, next(other for other in self.slots if not other.is_decoding))
        return count

    def _exchange(self, one: Slot, other: Slot) -> None:
        self._swap(one.number, other.number, max(len(one.tokens), len(other.tokens)))
        one.number, other.number = other.number, one.number
        self.slots[one.number], self.slots[other.number] = one, other
