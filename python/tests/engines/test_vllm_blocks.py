"""Which blocks belong to which tokens, per kind of KV-cache group; needs no vLLM and no daemon."""

import pytest

from kvxfer.vllm.blocks import Rule, offered, wanted

FULL = Rule("full", 16)
WINDOW = Rule("window", 16, 40)
CHUNK = Rule("chunk", 16, 64)
STATE = Rule("state", 1024, scratch=2)
TABLE = list(range(1, 11))


@pytest.mark.parametrize("start, end, run", [
    (0, 50, (0, [1, 2, 3, 4])), (0, 48, (0, [1, 2, 3])), (32, 50, (2, [3, 4])),
    (48, 49, (3, [4])), (0, 1, (0, [1]))])
def test_full_attention_wants_all_blocks_behind_the_local_prefix(start, end, run):
    assert wanted(FULL, TABLE, start, end) == run


@pytest.mark.parametrize("end, first", [(39, 0), (40, 0), (54, 0), (55, 1), (71, 2), (100, 3)])
def test_a_window_wants_what_its_next_token_sees(end, first):
    """The token behind ``end`` sees 39 tokens before it."""
    assert wanted(WINDOW, TABLE, 0, end) == (first, TABLE[first:-(-end // 16)])


def test_blocks_that_the_table_has_given_up_are_not_wanted():
    assert wanted(WINDOW, [0, 0, 0, 4, 5], 0, 71) == (3, [4, 5])


@pytest.mark.parametrize("end, first", [(63, 0), (64, 4), (100, 4), (128, 8)])
def test_a_chunk_wants_its_own_tokens(end, first):
    assert wanted(CHUNK, TABLE, 0, end) == (first, TABLE[first:-(-end // 16)])


@pytest.mark.parametrize("table, slot", [([7], 7), ([7, 8, 9], 7), ([0, 0, 7, 8, 9], 7)])
def test_a_state_is_the_last_block_before_the_scratch_ones(table, slot):
    assert wanted(STATE, table, 0, 50) == (0, [slot])


@pytest.mark.parametrize("computed, run", [(15, (0, [])), (16, (0, [1])), (40, (0, [1, 2])),
                                           (100, (0, TABLE[:7]))])
def test_full_attention_offers_blocks_as_they_are_filled(computed, run):
    assert offered(FULL, TABLE, 0, computed, 100) == run


def test_no_block_is_offered_twice():
    done = 0
    seen = []
    for computed in (10, 30, 31, 64, 100):
        first, run = offered(FULL, TABLE, done, computed, 100)
        seen += run
        done = first + len(run) if run else done
    assert seen == TABLE[:7]


@pytest.mark.parametrize("rule", [WINDOW, CHUNK, STATE], ids=lambda rule: rule.kind)
def test_what_may_be_given_up_is_offered_at_the_end(rule):
    assert offered(rule, TABLE, 0, 99, 100)[1] == []
    assert offered(rule, TABLE, 0, 100, 100) == wanted(rule, TABLE, 0, 100)
