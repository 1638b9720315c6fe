"""Which blocks of a request belong to which of its tokens, per KV-cache group. Pure; the specs of
vLLM are told apart by what they have, so that this needs no vLLM.

A block table is a list of block ids per group; id 0 stands for a block that the group does not keep
any more (outside its window).
"""

from typing import Any, List, NamedTuple, Sequence, Tuple

__all__ = ["Rule", "offered", "rule_of", "stable", "wanted"]

NULL = 0  #: block id of what is not kept

Run = Tuple[int, List[int]]  #: first logical block, block ids


class Rule(NamedTuple):
    """How a group keeps the blocks of a request."""

    kind: str  #: "full": all; "window": the last tokens; "chunk": the last chunk; "state": one
    block_tokens: int
    tokens: int = 0  #: of the window or chunk
    scratch: int = 0  #: blocks for speculation behind the state's


def rule_of(spec: Any) -> Rule:
    """The rule for a KVCacheSpec of vLLM (a wrapper of several equal ones included)."""
    inner = getattr(spec, "kv_cache_specs", None)
    if inner:
        rules = {rule_of(one) for one in inner.values()}
        if len(rules) > 1:
            raise ValueError(f"one KV-cache group whose layers keep blocks differently: {rules}")
        return rules.pop()
    tokens = int(spec.block_size)
    if hasattr(spec, "mamba_type"):
        return Rule("state", tokens, scratch=int(spec.num_speculative_blocks))
    if type(spec).__name__ == "CircularBufferSpec":
        return Rule("state", tokens)
    names = {base.__name__ for base in type(spec).__mro__}
    if "SlidingWindowSpec" in names:
        return Rule("window", tokens, int(spec.sliding_window))
    if "ChunkedLocalAttentionSpec" in names:
        return Rule("chunk", tokens, int(spec.attention_chunk_size))
    return Rule("full", tokens)


def stable(rule: Rule) -> bool:
    """Whether a block stays the request's from when it is computed to the end of the request."""
    return rule.kind == "full"


def wanted(rule: Rule, ids: Sequence[int], start: int, end: int) -> Run:
    """The blocks that tokens [start, end) go to. ``end``: tokens that will have been computed."""
    if rule.kind == "state":
        return 0, _state(rule, ids)
    first = max(start // rule.block_tokens, _kept_from(rule, end))
    last = -(-end // rule.block_tokens)
    while first < last and first < len(ids) and ids[first] == NULL:
        first += 1
    return first, list(ids[first:last])


def offered(rule: Rule, ids: Sequence[int], done: int, computed: int, end: int) -> Run:
    """The blocks that can be sent, beyond the first ``done``, once ``computed`` tokens are.

    ``end``: tokens that will be sent in all. Of full attention whole blocks go as they are filled;
    what a group may give back while the prompt is computed goes at its end.
    """
    final = computed >= end
    if rule.kind == "state":
        return (0, _state(rule, ids)) if final else (0, [])
    if not final and not stable(rule):
        return done, []
    last = -(-end // rule.block_tokens) if final else computed // rule.block_tokens
    first = max(done, _kept_from(rule, end))
    return first, list(ids[first:last])


def _kept_from(rule: Rule, computed: int) -> int:
    """Index of the first block that a request keeps with so many tokens computed."""
    if rule.kind == "window":
        return max(0, computed - rule.tokens + 1) // rule.block_tokens
    if rule.kind == "chunk":
        return computed // rule.tokens * rule.tokens // rule.block_tokens
    return 0


def _state(rule: Rule, ids: Sequence[int]) -> List[int]:
    held = ids[:len(ids) - min(rule.scratch, len(ids) - 1)] if ids else ids
    return list(held[-1:])
