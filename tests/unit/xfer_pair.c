/* See xfer_pair.h. */
#include "xfer_pair.h"

#include <criterion/criterion.h>

struct pair pair;

void pair_open(uint64_t bytes)
{
	rig_start(&pair.rig);
	pair.local = rig_region(&pair.rig, ALICE, bytes, 0, NULL);
	pair.remote = rig_region(&pair.rig, BOB, bytes, 3, NULL);
	pair.target = rig_target(&pair.rig, pair.remote);
	for (uint64_t i = 0; i < bytes; i++)
		pair.local->mem.addr[i] = (uint8_t)(i * 7 + (i >> 8) + 1);
	pair.req = (struct kvx_xfer_req){.client = ALICE,
					 .number = 1,
					 .op = KVX_OP_WRITE,
					 .region = pair.local,
					 .target = pair.target,
					 .tag = 77,
					 .require = ""};
}

void pair_close(void)
{
	kvx_target_unref(pair.target);
	rig_region_close(&pair.rig, pair.local);
	rig_region_close(&pair.rig, pair.remote);
	rig_stop(&pair.rig);
}

struct kvx_xfers *pair_xfers(void)
{
	return kvx_node_xfers(pair.rig.node);
}

void pair_expect_end(unsigned i, int status)
{
	const struct kvx_xfer_end *end = &pair.rig.ends[i].end;
	cr_assert_gt(pair.rig.n_ends, i, "no terminal event");
	cr_assert_eq(end->status, status, "status %d \"%s\"", end->status, end->text);
	cr_assert_eq(end->text[0] == '\0', status == 0, "\"%s\"", end->text);
}
