/* Rules about rails that need no device: kept apart for their tests. Pure functions of what is
 * handed in. Any thread. */
#include "transport/verbs/verbs_rail.h"

#include <stdlib.h>
#include <string.h>

#define SEPARATORS ", \t"

/* One item "DEVICE" or "DEVICE:PORT". */
static bool item_names(const char *item, size_t len, const char *device, uint32_t port, bool whole)
{
	size_t n = strlen(device);

	if (len < n || strncmp(item, device, n) != 0)
		return false;
	if (len == n)
		return true;
	if (item[n] != ':')
		return false;
	/* Some port of it: enough to want the device, not to leave it out. */
	return port == 0 ? !whole : strtoul(item + n + 1, NULL, 10) == port;
}

bool verbs_devices_want(const char *list, const char *device, uint32_t port)
{
	bool but_these;

	list += strspn(list, SEPARATORS);
	but_these = *list == '^';
	if (but_these)
		list++;
	list += strspn(list, SEPARATORS);
	if (*list == '\0')
		return true;
	while (*list != '\0') {
		size_t len = strcspn(list, SEPARATORS);

		if (item_names(list, len, device, port, but_these))
			return !but_these;
		list += len;
		list += strspn(list, SEPARATORS);
	}
	return but_these;
}

void verbs_devices_each(const char *list, void (*each)(void *arg, const char *name), void *arg)
{
	char name[KVX_RAIL_NAME_BYTES];

	list += strspn(list, SEPARATORS "^");
	while (*list != '\0') {
		size_t len = strcspn(list, SEPARATORS);
		size_t n = strcspn(list, SEPARATORS ":");

		if (n > 0 && n < sizeof(name)) {
			memcpy(name, list, n);
			name[n] = '\0';
			each(arg, name);
		}
		list += len;
		list += strspn(list, SEPARATORS);
	}
}

uint64_t verbs_link_mbps(uint8_t active_width, uint8_t active_speed)
{
	static const uint8_t lanes[] = {[1] = 1, [2] = 4, [4] = 8, [8] = 12, [16] = 2};
	uint64_t mbps;

	if (active_width >= sizeof(lanes))
		return 0;
	switch (active_speed) {
	case 1: /* SDR */
		mbps = 2500;
		break;
	case 2: /* DDR */
		mbps = 5000;
		break;
	case 4: /* QDR, FDR10 */
	case 8:
		mbps = 10000;
		break;
	case 16: /* FDR */
		mbps = 14000;
		break;
	case 32: /* EDR */
		mbps = 25000;
		break;
	case 64: /* HDR */
		mbps = 50000;
		break;
	case 128: /* NDR */
		mbps = 100000;
		break;
	default:
		return 0;
	}
	return mbps * lanes[active_width];
}

uint64_t verbs_rate_mbps(const char *rate)
{
	char *end;
	double gbps = strtod(rate, &end);

	if (end == rate || strncmp(end, " Gb/sec", 7) != 0 || !(gbps > 0) || gbps > 1e6)
		return 0;
	return (uint64_t)(gbps * 1000 + 0.5);
}

static int rail_rank(const struct kvx_rail *rail)
{
	if (!rail->usable)
		return 2;
	return rail->reason[0] != '\0'; /* it waits */
}

static int rail_order(const void *a, const void *b)
{
	const struct kvx_rail *left = a, *right = b;
	int ranks = rail_rank(left) - rail_rank(right);

	if (ranks != 0)
		return ranks;
	return strverscmp(left->name, right->name);
}

void verbs_rails_sort(struct kvx_rail *rails, unsigned n)
{
	qsort(rails, n, sizeof(rails[0]), rail_order);
}
