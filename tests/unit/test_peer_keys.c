/* Peers: keys of regions as long as they may be, one for each leg: how they travel, and what
 * becomes of those that do not fit into a frame, or that no daemon would send. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "fault_alloc.h"
#include "peer_pair.h"
#include "test_end.h"
#include "xfer/peer_priv.h"

#define N_LEGS    8
#define OWN_BYTES 24 /* of the fake transport's key */

static size_t key_bytes;
static unsigned n_unpacked;

static int long_pack(const struct kvx_mr *mr, void *buf, size_t buf_bytes)
{
	if (buf_bytes < key_bytes)
		return -ENOSPC;
	memset(buf, 0x5a, key_bytes);
	cr_assert_eq(kvx_fake_ops.mkey_pack(mr, buf, buf_bytes), OWN_BYTES);
	return (int)key_bytes;
}

static int long_unpack(struct kvx_ep *ep, const void *mkey, size_t len, struct kvx_rkey **out_rkey)
{
	n_unpacked++;
	if (len < OWN_BYTES)
		return -EINVAL;
	for (size_t i = OWN_BYTES; i < len; i++)
		if (((const uint8_t *)mkey)[i] != 0x5a)
			return -EINVAL;
	return kvx_fake_ops.rkey_unpack(ep, mkey, OWN_BYTES, out_rkey);
}

static KVX_ON_LOOP void init_legs(unsigned n_legs)
{
	rig_init(&rig);
	rig.a.n_rails = rig.b.n_rails = n_legs;
	test_fake_ops.mkey_pack = test_best_ops.mkey_pack = long_pack;
	test_fake_ops.rkey_unpack = test_best_ops.rkey_unpack = long_unpack;
	n_unpacked = 0;
}

Test(peer_keys, of_eight_legs_are_as_long_as_they_may_be)
{
	key_bytes = KVX_TRANSPORT_MKEY_MAX;
	init_legs(N_LEGS);
	pair_start();
	cr_assert(rig_lanes_are(&rig, "default", "fake", N_LEGS));
	cr_assert_geq(n_unpacked, N_LEGS);
	rig.script.limits.max_op_bytes = rig.script.limits.batch_bytes = 4096;
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

/* The region is refused, with the rails' names; the connection and other regions are not. */
Test(peer_keys, that_do_not_fit_into_a_frame_are_refused_by_name)
{
	struct kvx_peer_row row;
	struct rig_answer answer;
	struct kvx_desc desc;

	key_bytes = OWN_BYTES;
	init_legs(N_LEGS);
	rig.a.conf.max_frame_bytes = rig.b.conf.max_frame_bytes = 65536;
	pair_start();
	key_bytes = KVX_TRANSPORT_MKEY_MAX;
	desc = rig_desc(&rig.b, rig_region(&rig.b, LEN, RW, NULL));
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -EMSGSIZE, "%s", answer.text);
	cr_assert_not_null(strstr(answer.text, "fake0 fake1"), "%s", answer.text);
	cr_assert_not_null(strstr(answer.text, "limits.frame_bytes"), "%s", answer.text);
	cr_assert(rig_row(&rig.a, &row));
	cr_assert(rig_is_up(&rig.a));
	key_bytes = 65536 / N_LEGS - 64;
	desc = rig_desc(&rig.b, rig_region(&rig.b, LEN, RW, NULL));
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, 0, "%s", answer.text);
	kvx_target_unref(answer.target);
	key_bytes = OWN_BYTES;
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

/* A layout takes room, too; what is sent instead of an answer is short. */
Test(peer_keys, with_a_layout_that_does_not_fit_are_refused)
{
	struct kvx_layout *layout = kvx_layout_create(4000);
	struct rig_answer answer;
	struct kvx_desc desc;

	for (unsigned i = 0; i < 4000; i++)
		layout->planes[i] = (struct kvx_plane){i * 16, 16, 16, 1, "a plane with a name"};
	key_bytes = OWN_BYTES;
	init_legs(1);
	rig.a.conf.max_frame_bytes = rig.b.conf.max_frame_bytes = 65536;
	pair_start();
	desc = rig_desc(&rig.b, rig_region(&rig.b, LEN, RW, layout));
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -EMSGSIZE, "%s", answer.text);
	cr_assert(rig_is_up(&rig.a));
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

/* ---- what a peer could send */

static uint8_t junk[KVX_TRANSPORT_MKEY_MAX + 1];

static KVX_ON_LOOP struct peer_target *target_without_keys(void)
{
	struct peer_target *t = (struct peer_target *)target;

	keys_free(t);
	cr_assert(RIG_UNTIL(&rig, !keys_are_busy(t), 1000));
	return t;
}

static KVX_ON_LOOP int unpack(struct peer_target *t, size_t n, const size_t *lens)
{
	Kvxp__PeerResolved msg = KVXP__PEER_RESOLVED__INIT;
	ProtobufCBinaryData keys[N_LEGS + 1];

	for (size_t i = 0; i < n; i++)
		keys[i] = (ProtobufCBinaryData){lens[i], junk};
	msg.rkeys = keys;
	msg.n_rkeys = n;
	return keys_unpack(t, &msg);
}

Test(peer_keys, of_hostile_length_are_refused_before_anything_is_made)
{
	static const size_t lens[][2] = {{24, KVX_TRANSPORT_MKEY_MAX + 1},
					 {KVX_TRANSPORT_MKEY_MAX + 1, 24},
					 {24, SIZE_MAX},
					 {24, (size_t)UINT32_MAX + 25},
					 {0, 0}};
	static const size_t three[] = {24, 24, 24};

	key_bytes = OWN_BYTES;
	init_legs(2);
	pair_start();
	struct peer_target *t = target_without_keys();
	unsigned before = n_unpacked;
	for (unsigned i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		fault_alloc_arm(1);
		cr_assert_eq(unpack(t, 2, lens[i]), -EPROTO, "case %u", i);
		cr_assert_not(fault_alloc_disarm(), "case %u: an allocation", i);
	}
	cr_assert_eq(unpack(t, 0, NULL), -EPROTO);
	cr_assert_eq(unpack(t, 1, three), -EPROTO);
	cr_assert_eq(unpack(t, 3, three), -EPROTO);
	cr_assert_eq(n_unpacked, before);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_keys, without_memory_for_them_none_is_unpacked)
{
	static const size_t lens[N_LEGS] = {4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096};
	unsigned n = 0;
	bool failed;

	key_bytes = OWN_BYTES;
	init_legs(N_LEGS);
	pair_start();
	struct peer_target *t = target_without_keys();
	keys_fini(t); /* so that they are made anew */
	unsigned before = n_unpacked;
	do {
		fault_alloc_arm(++n);
		int err = unpack(t, N_LEGS, lens);
		failed = fault_alloc_disarm();
		cr_assert_eq(err, failed ? -ENOMEM : 0, "allocation %u: %d", n, err);
		cr_assert_eq(n_unpacked, before);
		cr_assert_not(failed && (keys_are_busy(t) || keys_are_there(t)));
	} while (failed);
	cr_assert_geq(n, N_LEGS);
	target_move(t, TARGET_NEW); /* what an answer that was waited for leads to */
	target_move(t, TARGET_ASKED);
	target_move(t, TARGET_UNPACKING);
	cr_assert(RIG_UNTIL(&rig, !keys_are_busy(t), 1000));
	cr_assert_eq(n_unpacked, before + N_LEGS, "each was tried, and is junk");
	cr_assert_not(keys_are_there(t));
	pair_stop();
	KVX_TEST_END();
}
