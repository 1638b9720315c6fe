/* Resolving a descriptor at the node that owns the region: the target with its layout, refusals,
 * nodes that cannot be reached. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "fault_alloc.h"
#include "peer_rig.h"
#include "test_end.h"

#define RW (KVX_ACCESS_READ | KVX_ACCESS_WRITE)

static struct peer_rig rig;

static struct kvx_layout *test_layout(void)
{
	struct kvx_layout *layout = kvx_layout_create(2);
	struct kvx_why why;

	for (unsigned i = 0; i < 2; i++) {
		layout->planes[i].offset = i * 4096;
		layout->planes[i].block_stride = 1024;
		layout->planes[i].block_bytes = 512;
		layout->planes[i].n_blocks = 4;
		snprintf(layout->planes[i].name, KVX_PLANE_NAME_BYTES, "plane%u", i);
	}
	cr_assert_eq(kvx_layout_check(layout, 8192, &why), 0);
	return layout;
}

Test(peer_resolve, resolve_gives_one_shared_target_with_the_layout)
{
	struct rig_answer one, two;
	struct kvx_region *region;
	struct kvx_desc desc;

	rig_init(&rig);
	rig_start(&rig);
	region = rig_region(&rig.b, 8192, KVX_ACCESS_READ, test_layout());
	desc = rig_desc(&rig.b, region);
	one = rig_resolve(&rig.a, &desc);
	cr_assert_eq(one.status, 0, "%s", one.text);
	cr_assert_eq(one.target->len_bytes, 8192);
	cr_assert_eq(one.target->access, KVX_ACCESS_READ);
	cr_assert_not_null(one.target->peer);
	cr_assert_eq(one.target->layout->n_planes, 2);
	cr_assert_str_eq(one.target->layout->planes[1].name, "plane1");
	cr_assert_eq(one.target->layout->planes[1].offset, 4096);
	two = rig_resolve(&rig.a, &desc);
	cr_assert_eq(two.status, 0);
	cr_assert_eq(two.target, one.target);
	cr_assert(rig_lane_is_up(&rig.a));
	cr_assert(rig_lane_is_up(&rig.b));
	kvx_target_unref(one.target);
	kvx_target_unref(two.target);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_resolve, concurrent_resolves_are_all_answered_once)
{
	struct rig_answer answers[5] = {{0}};
	struct kvx_resolve *resolves[5];
	struct kvx_region *region;
	struct kvx_desc desc;
	struct kvx_why why;

	rig_init(&rig);
	rig_start(&rig);
	region = rig_region(&rig.b, 4096, RW, NULL);
	desc = rig_desc(&rig.b, region);
	for (unsigned i = 0; i < 5; i++)
		cr_assert_eq(kvx_peers_resolve(rig.a.peers, &desc, 0, KVX_SEC, rig_on_resolved,
					       &answers[i], &resolves[i], &why),
			     0);
	cr_assert_not(answers[0].done, "before the call returned");
	kvx_resolve_abandon(resolves[2]);
	rig_pass(&rig, 200);
	for (unsigned i = 0; i < 5; i++) {
		cr_assert_eq(answers[i].done, i != 2);
		cr_assert_eq(answers[i].status, 0, "%s", answers[i].text);
		kvx_target_unref(answers[i].target);
	}
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_resolve, refusals_of_the_owner_reach_the_importer)
{
	struct rig_answer answer;
	struct kvx_region *region, *closed;
	struct kvx_desc desc;

	rig_init(&rig);
	rig_start(&rig);
	region = rig_region(&rig.b, 4096, RW, NULL);
	desc = rig_desc(&rig.b, region);
	desc.token[3] ^= 1;
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -EACCES, "%d %s", answer.status, answer.text);

	closed = rig_region(&rig.b, 4096, RW, NULL);
	desc = rig_desc(&rig.b, closed);
	rig_region_close(&rig.b, closed);
	rig_pass(&rig, 50);
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -ENOENT, "%d %s", answer.status, answer.text);

	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, 0, NULL));
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -EACCES, "%d %s", answer.status, answer.text);

	desc = rig_desc(&rig.b, region);
	desc.epoch--;
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -ESTALE, "%d %s", answer.status, answer.text);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_resolve, descriptor_of_an_earlier_start_is_stale_before_there_is_a_connection)
{
	struct rig_answer answer;
	struct kvx_desc desc;

	rig_init(&rig);
	rig_start(&rig);
	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, RW, NULL));
	desc.epoch--;
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -ESTALE, "%d %s", answer.status, answer.text);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_resolve, nodes_that_cannot_be_reached_are_said_so)
{
	struct rig_answer answer;
	struct kvx_desc desc;

	rig_init(&rig);
	rig_start(&rig);
	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, RW, NULL));
	desc.node_id[0] = 0x77;
	answer = rig_resolve(&rig.a, &desc); /* b answers, but is another node */
	cr_assert_eq(answer.status, -ESTALE, "%d %s", answer.status, answer.text);
	desc.node_id[0] = 0x78;
	strcpy(desc.addr, "127.0.0.1:1");
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -EHOSTUNREACH, "%d %s", answer.status, answer.text);
	desc.node_id[0] = 0x79;
	strcpy(desc.addr, "192.0.2.1:7717");
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -EACCES, "%d %s", answer.status, answer.text);
	cr_assert_not_null(strstr(answer.text, "--insecure-peers"), "%s", answer.text);
	desc.node_id[0] = 0x7a;
	strcpy(desc.addr, "nonsense");
	cr_assert_lt(rig_resolve(&rig.a, &desc).status, 0);
	desc.node_id[0] = 0x7b;
	desc.addr[0] = '\0';
	cr_assert_eq(rig_resolve(&rig.a, &desc).status, -EHOSTUNREACH);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_resolve, resolve_times_out_when_the_wire_is_held)
{
	struct rig_answer answer;
	struct kvx_desc desc;

	rig_init(&rig);
	rig_wire_b(&rig);
	rig_start(&rig);
	rig.wire_held = true;
	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, RW, NULL));
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -ETIMEDOUT, "%d %s", answer.status, answer.text);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* Whatever allocation fails on the way, the resolve is answered once, nothing crashes, and the next
 * one succeeds. */
Test(peer_resolve, resolve_survives_every_failed_allocation)
{
	struct kvx_region *region;
	bool faulted = true;

	rig_init(&rig);
	rig_start(&rig);
	for (unsigned n = 1; faulted; n++) {
		struct rig_answer answer;
		struct kvx_desc desc;

		region = rig_region(&rig.b, 8192, RW, test_layout());
		desc = rig_desc(&rig.b, region);
		fault_alloc_arm(n);
		answer = rig_resolve(&rig.a, &desc);
		rig_pass(&rig, 20);
		faulted = fault_alloc_disarm();
		if (answer.status == 0)
			kvx_target_unref(answer.target);
		answer = rig_resolve(&rig.a, &desc);
		for (unsigned i = 0; i < 3 && answer.status != 0; i++) {
			rig_pass(&rig, 400);
			answer = rig_resolve(&rig.a, &desc);
		}
		cr_assert_eq(answer.status, 0, "allocation %u: %d %s", n, answer.status,
			     answer.text);
		kvx_target_unref(answer.target);
		rig_region_close(&rig.b, region);
		rig_pass(&rig, 50);
		if (n % 2 == 0) { /* also from scratch */
			rig_close_side(&rig.a);
			rig_start_side(&rig.a);
			rig_pass(&rig, 50);
		}
	}
	rig_stop(&rig);
	KVX_TEST_END();
}
