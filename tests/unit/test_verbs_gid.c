/* The rule that picks a port's GID: what it takes, in which order, and what it says when there is
 * nothing to take. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "test_end.h"
#include "transport/verbs/verbs_gid.h"

static struct verbs_gid gid_of(uint32_t index, const char *ip, enum verbs_gid_kind kind)
{
	struct verbs_gid gid = {.index = index, .kind = kind, .netdev = "eth7"};

	cr_assert_eq(inet_pton(AF_INET6, ip, gid.raw), 1, "%s", ip);
	return gid;
}

/* The index that the rule picks of RoCE v2 entries with these addresses; -1: none. */
static int pick(const char *const *ips, unsigned n, struct kvx_why *why)
{
	struct verbs_gid gids[16];
	const struct verbs_gid *gid;

	for (unsigned i = 0; i < n; i++)
		gids[i] = gid_of(i, ips[i], VERBS_GID_ROCE_V2);
	return verbs_gid_choose(gids, n, false, -1, &gid, why) == 0 ? (int)gid->index : -1;
}

Test(verbs_gid, ipv4_goes_before_ipv6)
{
	static const char *const ips[] = {"fe80::1", "2001:db8::1", "::ffff:10.0.0.1",
					  "::ffff:10.0.0.2"};

	cr_assert_eq(pick(ips, 4, NULL), 2);
	KVX_TEST_END();
}

Test(verbs_gid, ipv6_is_taken_where_there_is_no_ipv4)
{
	static const char *const ips[] = {"fe80::1", "::ffff:169.254.3.4", "fd00::5",
					  "2001:db8::1"};

	cr_assert_eq(pick(ips, 4, NULL), 2);
	KVX_TEST_END();
}

Test(verbs_gid, addresses_of_this_node_come_last)
{
	static const char *const ips[] = {"::ffff:127.0.0.1", "::1", "2001:db8::1"};

	cr_assert_eq(pick(ips, 3, NULL), 2);
	cr_assert_eq(pick(ips, 2, NULL), 0);
	KVX_TEST_END();
}

Test(verbs_gid, link_local_and_multicast_are_never_picked)
{
	static const char *const ips[] = {"fe80::1",          "febf::1",
					  "ff02::1",          "::ffff:169.254.0.1",
					  "::ffff:224.0.0.1", "::ffff:0.0.0.0"};
	struct kvx_why why;

	cr_assert_eq(pick(ips, 6, &why), -1);
	cr_assert_not_null(strstr(why.text, "give eth7 an IPv4"), "%s", why.text);
	KVX_TEST_END();
}

Test(verbs_gid, roce_v1_is_not_picked_but_named)
{
	struct verbs_gid gids[] = {gid_of(0, "fe80::1", VERBS_GID_ROCE_V1),
				   gid_of(4, "::ffff:10.0.0.1", VERBS_GID_ROCE_V1)};
	const struct verbs_gid *gid = NULL;
	struct kvx_why why;

	cr_assert_eq(verbs_gid_choose(gids, 2, false, -1, &gid, &why), -EADDRNOTAVAIL);
	cr_assert_not_null(strstr(why.text, "RoCE v1 only"), "%s", why.text);
	cr_assert_null(gid);
	KVX_TEST_END();
}

Test(verbs_gid, the_lowest_index_of_equals_wins_in_any_order)
{
	struct verbs_gid gids[] = {gid_of(9, "::ffff:10.0.0.1", VERBS_GID_ROCE_V2),
				   gid_of(3, "::ffff:10.0.0.2", VERBS_GID_ROCE_V2),
				   gid_of(5, "::ffff:10.0.0.3", VERBS_GID_ROCE_V2)};
	const struct verbs_gid *gid;

	cr_assert_eq(verbs_gid_choose(gids, 3, false, -1, &gid, NULL), 0);
	cr_assert_eq(gid->index, 3);
	KVX_TEST_END();
}

Test(verbs_gid, an_entry_of_an_interface_that_is_not_here_is_the_last_choice)
{
	struct verbs_gid gids[] = {gid_of(1, "::ffff:10.0.0.1", VERBS_GID_ROCE_V2),
				   gid_of(3, "2001:db8::1", VERBS_GID_ROCE_V2)};
	const struct verbs_gid *gid;

	gids[0].netdev[0] = '\0';
	cr_assert_eq(verbs_gid_choose(gids, 2, false, -1, &gid, NULL), 0);
	cr_assert_eq(gid->index, 3);
	cr_assert_eq(verbs_gid_choose(gids, 1, false, -1, &gid, NULL), 0);
	cr_assert_eq(gid->index, 1);
	KVX_TEST_END();
}

Test(verbs_gid, a_forced_index_is_taken_whatever_it_is)
{
	struct verbs_gid gids[] = {gid_of(0, "fe80::1", VERBS_GID_ROCE_V1),
				   gid_of(3, "::ffff:10.0.0.1", VERBS_GID_ROCE_V2)};
	const struct verbs_gid *gid;

	cr_assert_eq(verbs_gid_choose(gids, 2, false, 0, &gid, NULL), 0);
	cr_assert_eq(gid->index, 0);
	KVX_TEST_END();
}

Test(verbs_gid, a_forced_index_that_is_empty_is_refused)
{
	struct verbs_gid gids[] = {gid_of(0, "fe80::1", VERBS_GID_ROCE_V2),
				   gid_of(2, "::", VERBS_GID_ROCE_V2)};
	const struct verbs_gid *gid;
	struct kvx_why why;

	cr_assert_eq(verbs_gid_choose(gids, 2, false, 1, &gid, &why), -EADDRNOTAVAIL);
	cr_assert_not_null(strstr(why.text, "verbs.gid_index = 1"), "%s", why.text);
	cr_assert_eq(verbs_gid_choose(gids, 2, false, 2, &gid, &why), -EADDRNOTAVAIL);
	KVX_TEST_END();
}

/* The field of an address handle has 8 bits. */
Test(verbs_gid, an_index_that_no_packet_can_name_is_refused)
{
	struct verbs_gid gids[] = {gid_of(256, "::ffff:10.0.0.1", VERBS_GID_ROCE_V2)};
	const struct verbs_gid *gid;

	cr_assert_eq(verbs_gid_choose(gids, 1, false, -1, &gid, NULL), -EADDRNOTAVAIL);
	cr_assert_eq(verbs_gid_choose(gids, 1, false, 256, &gid, NULL), -EADDRNOTAVAIL);
	KVX_TEST_END();
}

Test(verbs_gid, infiniband_takes_index_0)
{
	struct verbs_gid gids[] = {gid_of(1, "fe80::2", VERBS_GID_IB),
				   gid_of(0, "fe80::1", VERBS_GID_IB)};
	const struct verbs_gid *gid;
	struct kvx_why why;

	cr_assert_eq(verbs_gid_choose(gids, 2, true, -1, &gid, NULL), 0);
	cr_assert_eq(gid->index, 0);
	cr_assert_eq(verbs_gid_choose(gids, 1, true, -1, &gid, &why), -EADDRNOTAVAIL);
	cr_assert_not_null(strstr(why.text, "subnet manager"), "%s", why.text);
	KVX_TEST_END();
}

Test(verbs_gid, an_empty_table_says_so)
{
	const struct verbs_gid *gid;
	struct kvx_why why;

	cr_assert_eq(verbs_gid_choose(NULL, 0, false, -1, &gid, &why), -EADDRNOTAVAIL);
	cr_assert_not_null(strstr(why.text, "table is empty"), "%s", why.text);
	KVX_TEST_END();
}

Test(verbs_gid, text_is_what_people_know)
{
	struct verbs_gid gid = gid_of(0, "::ffff:192.168.7.9", VERBS_GID_ROCE_V2);
	char text[VERBS_GID_TEXT_BYTES];

	cr_assert_str_eq(verbs_gid_text(gid.raw, text), "::ffff:192.168.7.9");
	KVX_TEST_END();
}
