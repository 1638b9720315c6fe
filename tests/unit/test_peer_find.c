/* Regions by name between nodes: asking at an address, answering for a tenant, and how an asking
 * ends that is not answered. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "fault_alloc.h"
#include "peer_find_rig.h"
#include "test_end.h"

Test(peer_find, published_region_is_found_with_its_note)
{
	struct kvx_region *region;
	struct answer first, again;
	struct kvx_peer_row row;

	start();
	region = publish(&rig.b, 0, "engine/tp0", "four heads");
	first = find(kvx_peers_address(rig.b.peers));
	cr_assert_eq(first.status, 0, "%s", first.text);
	cr_assert_eq(first.target->region_id, region->id);
	cr_assert_eq(first.target->len_bytes, 4096);
	cr_assert_str_eq(first.note, "four heads");
	again = find(kvx_peers_address(rig.b.peers));
	cr_assert_eq(again.target, first.target, "one target for all");
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_connects, 1);
	kvx_target_unref(first.target);
	kvx_target_unref(again.target);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, name_that_nobody_has_published_is_not_found)
{
	struct kvx_region *region;
	struct answer answer;

	start();
	publish(&rig.b, 0, "engine/tp1", "");
	answer = find(kvx_peers_address(rig.b.peers));
	cr_assert_eq(answer.status, -ENOENT);
	cr_assert_not_null(strstr(answer.text, "nobody has published"), "%s", answer.text);
	region = publish(&rig.b, 0, "engine/tp0", "");
	answer = find(kvx_peers_address(rig.b.peers));
	cr_assert_eq(answer.status, 0, "%s", answer.text);
	kvx_target_unref(answer.target);
	rig_region_close(&rig.b, region);
	answer = find(kvx_peers_address(rig.b.peers));
	cr_assert_eq(answer.status, -ENOENT, "a region that is closing");
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, own_address_by_any_name_is_told_as_such)
{
	char other_name[64];
	struct answer answer;

	start();
	cr_assert(kvx_peers_is_own(rig.a.peers, kvx_peers_address(rig.a.peers)));
	cr_assert_not(kvx_peers_is_own(rig.a.peers, kvx_peers_address(rig.b.peers)));
	answer = find(kvx_peers_address(rig.a.peers));
	cr_assert(answer.status == 0 && answer.own, "%d %s", answer.status, answer.text);
	snprintf(other_name, sizeof(other_name), "127.0.0.2%s",
		 strchr(kvx_peers_address(rig.a.peers), ':'));
	rig_close_side(&rig.a);
	rig.a.conf.listen = "0.0.0.0:0";
	rig.a.conf.advertise = "127.0.0.1";
	rig.a.conf.insecure = true;
	rig_start_side(&rig.a);
	snprintf(other_name, sizeof(other_name), "127.0.0.2%s",
		 strchr(kvx_peers_address(rig.a.peers), ':'));
	cr_assert_not(kvx_peers_is_own(rig.a.peers, other_name));
	answer = find(other_name);
	cr_assert(answer.status == 0 && answer.own, "%d %s", answer.status, answer.text);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, addresses_that_cannot_be_are_refused_at_once)
{
	static char endless[200];

	start();
	memset(endless, 'x', sizeof(endless) - 1);
	cr_assert_eq(find("::1").status, -EINVAL);
	cr_assert_eq(find("host:port").status, -EINVAL);
	cr_assert_eq(find(endless).status, -EINVAL);
	cr_assert_eq(find("127.0.0.1:1").status, -EHOSTUNREACH);
	cr_assert_eq(find("192.0.2.1:1").status, -EACCES, "beyond loopback, unauthenticated");
	rig_stop(&rig);
	KVX_TEST_END();
}

/* 7717 where none is named: nobody listens there but by chance, which is no peer then either. */
Test(peer_find, port_may_be_left_out)
{
	struct answer answer;

	start();
	answer = find("127.0.0.99");
	cr_assert_neq(answer.status, 0);
	cr_assert_not_null(strstr(answer.text, "127.0.0.99:7717"), "%s", answer.text);
	answer = find("[::1]");
	cr_assert_neq(answer.status, 0);
	cr_assert_not_null(strstr(answer.text, "[::1]:7717"), "%s", answer.text);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* More of them than connections may be dialed at once. */
Test(peer_find, finds_at_one_address_share_its_probe)
{
	static struct answer answers[200];
	struct kvx_find *one;

	start();
	publish(&rig.b, 0, "engine/tp0", "");
	for (unsigned i = 0; i < 200; i++)
		cr_assert_eq(start_find(kvx_peers_address(rig.b.peers), 0, &answers[i], &one), 0,
			     "find %u: %s", i, answers[i].text);
	for (unsigned i = 0; i < 200; i++) {
		cr_assert(RIG_UNTIL(&rig, answers[i].n > 0, 3000), "find %u", i);
		cr_assert_eq(answers[i].status, 0, "%s", answers[i].text);
		kvx_target_unref(answers[i].target);
	}
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, tenant_finds_what_its_own_clients_have_published)
{
	static const char *const ours[] = {"default", "blue", "green", NULL};
	static const char *const theirs[] = {"default", "blue", NULL};
	struct kvx_region *blue;
	struct answer answer;

	rig_init(&rig);
	rig.a.conf.tenants = ours;
	rig.b.conf.tenants = theirs;
	rig_start(&rig);
	blue = publish(&rig.b, 1, "engine/tp0", "blue");
	cr_assert_eq(find_as(kvx_peers_address(rig.b.peers), 0).status, -ENOENT);
	cr_assert_eq(find_as(kvx_peers_address(rig.b.peers), 2).status, -EACCES);
	answer = find_as(kvx_peers_address(rig.b.peers), 1);
	cr_assert_eq(answer.status, 0, "%s", answer.text);
	cr_assert_eq(answer.target->region_id, blue->id);
	kvx_target_unref(answer.target);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, time_is_over_when_nothing_answers)
{
	struct answer answer;

	rig_init(&rig);
	rig_wire_b(&rig);
	rig_start(&rig);
	publish(&rig.b, 0, "engine/tp0", "");
	rig.wire_held = true;
	answer = find(rig.wire_addr);
	cr_assert_eq(answer.status, -EHOSTUNREACH);
	cr_assert_not_null(strstr(answer.text, "no connection in time"), "%s", answer.text);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, abandoned_find_is_never_answered)
{
	struct answer answer = {0};
	struct kvx_find *one;

	start();
	publish(&rig.b, 0, "engine/tp0", "");
	for (unsigned turns = 0; turns < 12; turns++) { /* at every stage of it */
		cr_assert_eq(start_find(kvx_peers_address(rig.b.peers), 0, &answer, &one), 0);
		for (unsigned i = 0; i < turns && answer.n == 0; i++)
			rig_turn(&rig);
		if (answer.n > 0)
			break;
		kvx_find_abandon(one);
		rig_pass(&rig, 50);
		cr_assert_eq(answer.n, 0);
	}
	if (answer.n > 0)
		kvx_target_unref(answer.target);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, closing_ends_what_is_asked)
{
	struct answer answer = {0};
	struct kvx_find *one;

	rig_init(&rig);
	rig_wire_b(&rig);
	rig_start(&rig);
	rig.wire_held = true;
	cr_assert_eq(start_find(rig.wire_addr, 0, &answer, &one), 0);
	rig_pass(&rig, 5);
	rig_close_side(&rig.a);
	cr_assert_eq(answer.n, 1);
	cr_assert_eq(answer.status, -ESHUTDOWN);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, find_survives_every_failed_allocation)
{
	bool faulted = true;

	start();
	publish(&rig.b, 0, "engine/tp0", "a note");
	for (unsigned n = 1; faulted; n++) {
		struct answer answer;

		fault_alloc_arm(n);
		answer = find(kvx_peers_address(rig.b.peers));
		rig_pass(&rig, 20);
		faulted = fault_alloc_disarm();
		if (answer.status == 0)
			kvx_target_unref(answer.target);
		answer = find(kvx_peers_address(rig.b.peers));
		for (unsigned i = 0; i < 3 && answer.status != 0; i++) {
			rig_pass(&rig, 400);
			answer = find(kvx_peers_address(rig.b.peers));
		}
		cr_assert_eq(answer.status, 0, "allocation %u: %d %s", n, answer.status,
			     answer.text);
		cr_assert_str_eq(answer.note, "a note");
		kvx_target_unref(answer.target);
		if (n % 2 == 0) { /* also from scratch */
			rig_close_side(&rig.a);
			rig_start_side(&rig.a);
			rig_pass(&rig, 50);
		}
	}
	rig_stop(&rig);
	KVX_TEST_END();
}
