/* Byte streams that tell where a byte belongs. Word i of a stream is seed + i * odd: cheap enough
 * to fill and check at memory speed, and no two words of one stream are equal. */
#include "bench.h"

#include <string.h>

#define STEP 0x9e3779b97f4a7c15ull

uint64_t kvx_pattern_seed(uint64_t a, uint64_t b, uint64_t c)
{
	struct kvx_random random = {.state = a};

	random.state = kvx_random_next(&random) ^ b;
	random.state = kvx_random_next(&random) ^ c;
	return kvx_random_next(&random);
}

static uint64_t word_at(uint64_t seed, uint64_t index)
{
	return seed + index * STEP;
}

/* Bytes of one word of the stream, for ends that are no whole words. */
static void word_part(uint64_t seed, uint64_t from, uint64_t len, uint8_t *out)
{
	for (uint64_t i = 0; i < len; i++)
		out[i] = (uint8_t)(word_at(seed, (from + i) / 8) >> (8 * ((from + i) % 8)));
}

void kvx_pattern_fill(void *mem, uint64_t from, uint64_t len, uint64_t seed)
{
	uint8_t *at = mem;
	uint64_t head = (8 - from % 8) % 8;

	head = head < len ? head : len;
	word_part(seed, from, head, at);
	uint64_t n_words = (len - head) / 8, first = (from + head) / 8;

	at += head;
	for (uint64_t i = 0; i < n_words; i++) {
		uint64_t word = word_at(seed, first + i);

		memcpy(at + 8 * i, &word, 8);
	}
	word_part(seed, from + head + 8 * n_words, len - head - 8 * n_words, at + 8 * n_words);
}

static uint64_t bytes_check(const uint8_t *mem, uint64_t from, uint64_t len, uint64_t seed)
{
	for (uint64_t i = 0; i < len; i++) {
		uint8_t want;

		word_part(seed, from + i, 1, &want);
		if (mem[i] != want)
			return i;
	}
	return len;
}

uint64_t kvx_pattern_check(const void *mem, uint64_t from, uint64_t len, uint64_t seed)
{
	const uint8_t *at = mem;
	uint64_t head = (8 - from % 8) % 8, done;

	head = head < len ? head : len;
	done = bytes_check(at, from, head, seed);
	if (done < head)
		return done;
	uint64_t n_words = (len - head) / 8, first = (from + head) / 8, differ = 0;

	for (uint64_t i = 0; i < n_words; i++) {
		uint64_t word;

		memcpy(&word, at + head + 8 * i, 8);
		differ |= word ^ word_at(seed, first + i);
	}
	if (differ) /* rare: find it byte by byte */
		return head + bytes_check(at + head, from + head, 8 * n_words, seed);
	done = head + 8 * n_words;
	return done + bytes_check(at + done, from + done, len - done, seed);
}
