/* What is in memory instead of what should be, in words: for the line that a run prints when
 * content is wrong, so that it need not be seen a second time to be understood. No state of its
 * own. */
#include "drv_mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "drv.h"

#define SHOWN_BYTES 16u

struct diff {
	size_t first, last; /* byte that is wrong */
	uint64_t n, n_canary, n_spent, n_zero;
};

static struct diff diff_make(const uint8_t *got, const uint8_t *want, size_t len)
{
	struct diff diff = {.first = len};

	for (size_t i = 0; i < len; i++) {
		if (got[i] == want[i])
			continue;
		if (diff.n++ == 0)
			diff.first = i;
		diff.last = i;
		diff.n_canary += got[i] == DRV_CANARY;
		diff.n_spent += got[i] == DRV_SPENT;
		diff.n_zero += got[i] == 0;
	}
	return diff;
}

static void hex(char *out, const uint8_t *at, size_t n)
{
	for (size_t i = 0; i < n; i++)
		snprintf(out + 2 * i, 3, "%02x", at[i]);
}

/* Both as they are now, which may be other than when the verdict was found. */
static size_t tell(char *buf, size_t size, const uint8_t *got, const uint8_t *want, size_t len)
{
	struct diff diff = diff_make(got, want, len);
	size_t n = len - diff.first < SHOWN_BYTES ? len - diff.first : SHOWN_BYTES;
	char got_hex[2 * SHOWN_BYTES + 1] = "";
	char want_hex[2 * SHOWN_BYTES + 1] = "";
	int used;

	if (diff.n == 0)
		return (size_t)snprintf(buf, size, "bad_bytes=0 (right by now)");
	hex(got_hex, got + diff.first, n);
	hex(want_hex, want + diff.first, n);
	used = snprintf(buf, size,
			"bad_bytes=%llu first=%zu last=%zu canary=%llu spent=%llu zero=%llu got=%s "
			"want=%s",
			(unsigned long long)diff.n, diff.first, diff.last,
			(unsigned long long)diff.n_canary, (unsigned long long)diff.n_spent,
			(unsigned long long)diff.n_zero, got_hex, want_hex);
	return used > 0 && (size_t)used < size ? (size_t)used : size - 1;
}

void drv_extent_tell(char *buf, size_t size, const void *at, size_t len, uint64_t tag,
		     uint64_t offset)
{
	const uint8_t *got = at;
	uint8_t *want = malloc(len);
	uint64_t other_tag, other_offset;
	size_t used;

	if (want == NULL)
		drv_die("no memory for %zu bytes", len);
	drv_extent_fill(want, len, tag, offset);
	used = tell(buf, size, got, want, len);
	free(want);
	for (size_t i = 0; i + DRV_EXTENT_MIN <= len; i += 8) {
		if (!drv_extent_named(got + i, &other_tag, &other_offset) ||
		    (i == 0 && other_tag == tag && other_offset == offset))
			continue;
		snprintf(buf + used, size - used, " holds_tag=%llx holds_offset=%llu holds_at=%zu",
			 (unsigned long long)other_tag, (unsigned long long)other_offset, i);
		return;
	}
}

void drv_source_tell(char *buf, size_t size, const void *at, size_t len, uint64_t seed,
		     uint64_t offset)
{
	const uint8_t *got = at;
	uint8_t *want = malloc(len);
	size_t used, first = 0;
	uint64_t other;

	if (want == NULL)
		drv_die("no memory for %zu bytes", len);
	drv_source_fill(want, len, seed, offset);
	used = tell(buf, size, got, want, len);
	while (first + 8 <= len && memcmp(got + first, want + first, 8) == 0)
		first += 8;
	free(want);
	if (first + 8 <= len && drv_source_named(got + first, seed, &other))
		snprintf(buf + used, size - used, " holds_source_offset=%llu holds_at=%zu",
			 (unsigned long long)other, first);
}
