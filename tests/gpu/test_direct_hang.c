/* GPU memory over RDMA where the driver hangs in the registration with the RDMA device: it costs
 * that region the device, for as long as it hangs the memory of that GPU, and nobody anything else;
 * its owner's end and the daemon's do not wait. RDMA devices and GPUs are stand-ins. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "direct_rig.h"

#define CALL_MS     "400"
#define DEADLINE_MS 1600 /* of a registration: four such calls */
#define WAIT_MS     20000

static const struct gpu_engine_conf gpu_conf = {.name = "hang",
						.dev = 1,
						.n_segments = 3,
						.n_planes = 3,
						.n_blocks = 8,
						.block_bytes = 9216,
						.offset = 4096};
static const struct rig_victim_conf victim_conf = {
    .dev = 1, .n_planes = 3, .n_blocks = 8, .block_bytes = 9216, .fill = 7, .no_wait = true};

static void wait_told(struct direct_rig *d, const char *mark, char answer)
{
	long end = rig_now_ms() + WAIT_MS;

	while (direct_tell(d, mark) != answer && rig_now_ms() < end)
		rig_sleep_ms(5);
	cr_assert_eq(direct_tell(d, mark), answer, "%s", mark);
}

/* Registers, and gives the memory back; how long the first half took. */
static long life_ms(const struct test_node *node, int dev)
{
	struct gpu_engine_conf conf = gpu_conf;
	struct gpu_engine g;
	long begin = rig_now_ms();

	conf.dev = dev;
	conf.n_segments = dev < 0 ? 1 : 3;
	gpu_engine_open(&g, node, &conf);
	begin = rig_now_ms() - begin;
	gpu_engine_close(&g);
	return begin;
}

static bool begin(struct direct_rig *d)
{
	setenv("KVX_DIRECT_CALL_MS", CALL_MS, 1);
	return direct_start(d, NULL, "h");
}

Test(direct_hang, registration_that_hangs_costs_only_its_own_device)
{
	struct direct_rig d;
	struct rig_victim v;
	long ms;

	if (!begin(&d))
		return;
	const struct test_node *node = &d.nodes[1];
	rig_victim_start(&v, node, &victim_conf);
	wait_told(&d, "n", 'y');
	ms = life_ms(node, -1);
	cr_assert_lt(ms, DEADLINE_MS, "host memory waits %ld ms", ms);
	cr_assert_eq(direct_tell(&d, "n"), 'y', "that was no test");
	cr_assert(rig_victim_hear(&v, WAIT_MS), "it is registered without the device");
	cr_assert_eq(strncmp(v.answer, "desc ", 5), 0, "%s", v.answer);
	ms = life_ms(node, 1);
	cr_assert_lt(ms, DEADLINE_MS, "what comes later is refused at once: %ld ms", ms);
	/* Its owner ends, and its memory stays until the driver lets go of it. */
	rig_victim_end(&v, SIGKILL);
	ms = life_ms(node, -1);
	cr_assert_lt(ms, DEADLINE_MS);
	cr_assert_eq(direct_tell(&d, "n"), 'y');
	cr_assert_gt(standin_usage(1).n_maps, 0, "the driver is still at it");
	direct_tell(&d, "H");
	for (unsigned i = 0; i < 1000 && standin_usage(1).n_maps > 0; i++)
		rig_sleep_ms(10);
	cr_assert_eq(standin_usage(1).n_maps, 0);
	cr_assert_eq(standin_usage(1).orphan_bytes, 0);
	cr_assert_eq(direct_tell(&d, "l"), 'a', "a registration is left");
	direct_stop(&d);
}

/* It is taken again as soon as the late one is undone. */
Test(direct_hang, gpu_is_reached_again_when_the_driver_has_returned)
{
	struct gpu_engine g, again;
	struct direct_rig d;

	if (!begin(&d))
		return;
	gpu_engine_open(&g, &d.nodes[1], &gpu_conf);
	cr_assert_eq(direct_tell(&d, "l"), 'a');
	direct_tell(&d, "H");
	wait_told(&d, "n", 'a');
	for (long end = rig_now_ms() + WAIT_MS; rig_now_ms() < end; rig_sleep_ms(20)) {
		gpu_engine_open(&again, &d.nodes[1], &gpu_conf);
		if (direct_tell(&d, "l") == 'y')
			break;
		gpu_engine_close(&again);
	}
	cr_assert_eq(direct_tell(&d, "l"), 'y');
	gpu_engine_close(&again);
	gpu_engine_close(&g);
	direct_stop(&d);
}

Test(direct_hang, daemon_that_ends_does_not_wait_for_the_driver)
{
	struct gpu_engine g;
	struct direct_rig d;
	long ms;

	if (!begin(&d))
		return;
	gpu_engine_open(&g, &d.nodes[1], &gpu_conf);
	gpu_engine_close(&g);
	cr_assert_eq(direct_tell(&d, "n"), 'y');
	ms = rig_now_ms();
	direct_stop(&d);
	ms = rig_now_ms() - ms;
	cr_assert_lt(ms, 10000, "%ld ms", ms);
}
