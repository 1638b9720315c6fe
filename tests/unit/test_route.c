/* Route: the best usable transport, or a refusal that says what there is. */
#include "xfer/route.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "test_end.h"

static const struct kvx_transport_ops near_ops = {.name = "near", .caps = KVX_CAP_SAME_NODE};
static const struct kvx_transport_ops fast_ops = {.name = "fast", .caps = KVX_CAP_CROSS_NODE};
static const struct kvx_transport_ops slow_ops = {.name = "slow",
						  .caps = KVX_CAP_CROSS_NODE | KVX_CAP_SAME_NODE};
static const struct kvx_transport_ops *const all[] = {&near_ops, &fast_ops, &slow_ops, NULL};
static const struct kvx_transport_ops *const none[] = {NULL};

static const char *choose(const struct kvx_route_in *in, struct kvx_why *why, int *rc)
{
	const struct kvx_transport_ops *ops = NULL;
	*rc = kvx_route_choose(in, all, &ops, why);
	return ops != NULL ? ops->name : "";
}

Test(route, same_node_takes_the_first_that_reaches)
{
	struct kvx_route_in in = {.same_node = true, .require = ""};
	int rc;
	cr_assert_str_eq(choose(&in, NULL, &rc), "near");
	cr_assert_eq(rc, 0);
	in.require = "slow";
	cr_assert_str_eq(choose(&in, NULL, &rc), "slow");
	KVX_TEST_END();
}

Test(route, other_node_takes_the_best_in_common)
{
	const char *const both[] = {"slow", "fast", NULL}, *const some[] = {"near", "slow", NULL};
	struct kvx_route_in in = {.remote_transports = both, .require = ""};
	int rc;
	cr_assert_str_eq(choose(&in, NULL, &rc), "fast");
	in.remote_transports = some;
	cr_assert_str_eq(choose(&in, NULL, &rc), "slow");
	KVX_TEST_END();
}

Test(route, required_but_not_usable_says_what_is)
{
	const char *const some[] = {"slow", NULL};
	struct kvx_route_in in = {.remote_transports = some, .require = "fast"};
	struct kvx_why why = {""};
	int rc;
	cr_assert_str_eq(choose(&in, &why, &rc), "");
	cr_assert_eq(rc, -ENETUNREACH);
	cr_assert_not_null(strstr(why.text, "\"fast\""));
	cr_assert_not_null(strstr(why.text, "usable is slow"));
	KVX_TEST_END();
}

Test(route, nothing_in_common_is_refused)
{
	const char *const other[] = {"other", NULL};
	struct kvx_route_in in = {.remote_transports = other, .require = NULL};
	const struct kvx_transport_ops *ops = NULL;
	struct kvx_why why = {""};
	int rc;
	choose(&in, &why, &rc);
	cr_assert_eq(rc, -ENETUNREACH);
	cr_assert_not_null(strstr(why.text, "no transport in common"));
	cr_assert_eq(kvx_route_choose(&in, none, &ops, NULL), -ENETUNREACH);
	in.remote_transports = NULL;
	cr_assert_eq(kvx_route_choose(&in, all, &ops, NULL), -ENETUNREACH);
	cr_assert_null(ops);
	KVX_TEST_END();
}
