/* The list of backends. */
#include "transport/transport.h"

#include "test_end.h"

Test(registry, backends_are_found_by_name)
{
	const struct kvx_transport_ops *const *all = kvx_transport_registry();
	unsigned n = 0;

	for (; all[n] != NULL; n++)
		cr_assert_eq(kvx_transport_find(all[n]->name), all[n]);
	cr_assert_eq(n, 2);
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
