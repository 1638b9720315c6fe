/* The list of backends. */
#include "transport/transport.h"

#include <string.h>

#include "test_end.h"

Test(registry, backends_are_found_by_name)
{
	const struct kvx_transport_ops *const *all = kvx_transport_registry();

	for (unsigned n = 0; all[n] != NULL; n++)
		cr_assert_eq(kvx_transport_find(all[n]->name), all[n]);
	cr_assert_eq(kvx_transport_find("copy"), &kvx_copy_ops);
	cr_assert_eq(kvx_transport_find("fabric"), &kvx_fabric_ops);
	KVX_TEST_END();
}

Test(registry, the_fake_and_strangers_are_not_in_it)
{
	cr_assert_null(kvx_transport_find("fake"));
	cr_assert_null(kvx_transport_find(""));
	cr_assert_null(kvx_transport_find("Copy"));
	KVX_TEST_END();
}

Test(registry, same_node_comes_first)
{
	cr_assert(kvx_transport_registry()[0]->caps & KVX_CAP_SAME_NODE);
	KVX_TEST_END();
}

/* RDMA, where there is some, is preferred to what every node has. */
Test(registry, verbs_comes_before_fabric)
{
	const struct kvx_transport_ops *const *all = kvx_transport_registry();
	bool fabric_seen = false;

	for (; *all != NULL; all++) {
		fabric_seen |= *all == &kvx_fabric_ops;
		cr_assert_not(fabric_seen && strcmp((*all)->name, "verbs") == 0);
	}
	cr_assert(fabric_seen);
	KVX_TEST_END();
}
