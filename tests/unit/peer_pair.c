/* See peer_pair.h. */
#include "peer_pair.h"

#include <criterion/criterion.h>
#include <string.h>

struct peer_rig rig;
struct kvx_region *here, *there;
struct kvx_target *target;

void pair_start(void)
{
	struct rig_answer answer;
	struct kvx_desc desc;

	rig_start(&rig);
	here = rig_region(&rig.a, LEN, RW, NULL);
	there = rig_region(&rig.b, LEN, RW, NULL);
	memset(here->mem.addr, 0x11, LEN);
	memset(there->mem.addr, 0x22, LEN);
	desc = rig_desc(&rig.b, there);
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, 0, "%s", answer.text);
	target = answer.target;
}

bool pair_all_are(const uint8_t *p, uint8_t value)
{
	for (unsigned i = 0; i < LEN; i++)
		if (p[i] != value)
			return false;
	return true;
}

void pair_stop(void)
{
	kvx_target_unref(target);
	target = NULL;
	rig_stop(&rig);
}

void pair_resolve_again(void)
{
	struct kvx_desc desc = rig_desc(&rig.b, there);
	struct rig_answer answer;

	kvx_target_unref(target);
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, 0, "%s", answer.text);
	target = answer.target;
}

void pair_assert_write_works(void)
{
	unsigned n = rig.a.n_ends;

	memset(there->mem.addr, 0x33, LEN);
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 1000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends > n, 2000), "no end");
	cr_assert_eq(rig.a.ends[n].end.status, 0, "%s", rig.a.ends[n].text);
	cr_assert(pair_all_are(there->mem.addr, 0x11));
}

void pair_init_slow(void)
{
	rig_init(&rig);
	rig.a.conf.heartbeat_ms = rig.b.conf.heartbeat_ms = 5000;
	rig.a.conf.lost_ms = rig.b.conf.lost_ms = 20000;
}

void pair_leap(unsigned seconds)
{
	while (seconds-- > 0) {
		kvx_fake_advance(&rig.script, 990 * KVX_MS);
		rig_pass(&rig, 10);
	}
}
