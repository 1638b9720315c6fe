/* Small rules of the verbs backend that need no device: which devices are wanted, how fast a link
 * is, the order of rails. */
#include <criterion/criterion.h>
#include <string.h>

#include "test_end.h"
#include "transport/verbs/verbs_rail.h"

Test(verbs_rail, empty_list_wants_all)
{
	cr_assert(verbs_devices_want("", "mlx5_0", 1));
	cr_assert(verbs_devices_want("  , ", "mlx5_0", 0));
	KVX_TEST_END();
}

Test(verbs_rail, list_wants_what_it_names)
{
	const char *list = "mlx5_0, mlx5_1:2";

	cr_assert(verbs_devices_want(list, "mlx5_0", 1));
	cr_assert(verbs_devices_want(list, "mlx5_0", 2));
	cr_assert(verbs_devices_want(list, "mlx5_1", 2));
	cr_assert(!verbs_devices_want(list, "mlx5_1", 1));
	cr_assert(verbs_devices_want(list, "mlx5_1", 0), "one port of it is wanted");
	cr_assert(!verbs_devices_want(list, "mlx5_10", 1), "a longer name is another device");
	cr_assert(!verbs_devices_want(list, "mlx5", 1));
	KVX_TEST_END();
}

Test(verbs_rail, caret_wants_all_but_what_it_names)
{
	const char *list = "^mlx5_0,mlx5_1:2";

	cr_assert(!verbs_devices_want(list, "mlx5_0", 1));
	cr_assert(!verbs_devices_want(list, "mlx5_0", 0));
	cr_assert(!verbs_devices_want(list, "mlx5_1", 2));
	cr_assert(verbs_devices_want(list, "mlx5_1", 1));
	cr_assert(verbs_devices_want(list, "mlx5_1", 0), "its other ports are wanted");
	cr_assert(verbs_devices_want(list, "mlx5_2", 1));
	KVX_TEST_END();
}

static void name_add(void *arg, const char *name)
{
	strcat(strcat(arg, name), ";");
}

Test(verbs_rail, each_gives_the_names_without_ports)
{
	char names[128] = "";

	verbs_devices_each("^ mlx5_0 ,rxe0:1,", name_add, names);
	cr_assert_str_eq(names, "mlx5_0;rxe0;");
	KVX_TEST_END();
}

Test(verbs_rail, speed_is_lanes_times_rate)
{
	cr_assert_eq(verbs_link_mbps(2, 32), 100000, "4x EDR");
	cr_assert_eq(verbs_link_mbps(2, 128), 400000, "4x NDR");
	cr_assert_eq(verbs_link_mbps(1, 1), 2500, "1x SDR");
	cr_assert_eq(verbs_link_mbps(3, 32), 0, "no such width");
	cr_assert_eq(verbs_link_mbps(2, 3), 0, "no such speed");
	cr_assert_eq(verbs_rate_mbps("400 Gb/sec (4X NDR)"), 400000);
	cr_assert_eq(verbs_rate_mbps("2.5 Gb/sec (1X SDR)"), 2500);
	cr_assert_eq(verbs_rate_mbps("fast"), 0);
	cr_assert_eq(verbs_rate_mbps(""), 0);
	KVX_TEST_END();
}

Test(verbs_rail, usable_ones_come_first_by_number)
{
	struct kvx_rail rails[4] = {
	    {.name = "mlx5_10:1", .usable = true},
	    {.name = "mlx5_0:1"},
	    {.name = "mlx5_2:1", .usable = true},
	    {.name = "bnxt:1"},
	};

	verbs_rails_sort(rails, 4);
	cr_assert_str_eq(rails[0].name, "mlx5_2:1");
	cr_assert_str_eq(rails[1].name, "mlx5_10:1");
	cr_assert_str_eq(rails[2].name, "bnxt:1");
	cr_assert_str_eq(rails[3].name, "mlx5_0:1");
	KVX_TEST_END();
}
