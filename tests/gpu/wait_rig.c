/* See wait_rig.h. */
#include "wait_rig.h"

#include <criterion/criterion.h>

#define PLANE ((uint64_t)BLOCKS * BLOCK)

struct wait_rig rig;

static const uint32_t ids[BLOCKS] = {0, 1, 2, 3, 4, 5, 6, 7};

static void begin(const char *const *sets, int dev_a, int dev_b)
{
	struct gpu_engine_conf conf = {.name = "prefill",
				       .dev = dev_a,
				       .n_planes = PLANES,
				       .n_blocks = BLOCKS,
				       .block_bytes = BLOCK};
	void *host = NULL;

	test_node_start(&rig.node, sets);
	gpu_engine_open(&rig.prefill, &rig.node, &conf);
	conf.name = "decode";
	conf.dev = dev_b;
	gpu_engine_open(&rig.decode, &rig.node, &conf);
	rig.to_decode = test_engine_import(&rig.prefill.e, &rig.decode.e);
	test_gpu_use(dev_a < 0 ? 0 : dev_a);
	rig.stream = test_gpu_stream(dev_a < 0 ? 0 : dev_a);
	cr_assert_eq(test_gpu_host_alloc(PLANES * PLANE, &host), 0);
	rig.staged = host;
}

bool wait_begin(const char *const *sets, int dev_a, int dev_b)
{
	if (!rig_standin())
		return false;
	begin(sets, dev_a, dev_b);
	return true;
}

bool wait_begin_any(int dev_a)
{
	if (!rig_any())
		return false;
	begin(NULL, dev_a, rig_second());
	return true;
}

void wait_end(void)
{
	standin_set_delay(0, 0, 0);
	test_gpu_stream_end(rig.stream);
	test_gpu_host_free(rig.staged);
	gpu_engine_close(&rig.prefill);
	gpu_engine_close(&rig.decode);
	rig_expect_good_manners(&rig.node);
	test_node_fini(&rig.node);
	rig_end();
}

void wait_stage(uint64_t seed, uint32_t p)
{
	for (uint32_t b = 0; b < BLOCKS; b++)
		for (uint32_t i = 0; i < BLOCK; i++)
			rig.staged[p * PLANE + b * BLOCK + i] = test_pattern(seed, p, b, i);
}

void wait_launch(uint32_t p)
{
	for (uint32_t b = 0; b < BLOCKS; b++)
		cr_assert_eq(test_gpu_try_copy((char *)rig.prefill.segments[0].ptr + p * PLANE +
						   (uint64_t)b * BLOCK,
					       rig.staged + p * PLANE + (uint64_t)b * BLOCK, BLOCK,
					       rig.stream),
			     0);
}

void *wait_event_make(struct kvxfer_wait *out_wait)
{
	void *event = test_gpu_event(true);

	*out_wait = (struct kvxfer_wait){.struct_bytes = sizeof(*out_wait)};
	cr_assert_eq(kvxfer_wait_for_event(rig.prefill.e.client, event, out_wait), 0, "%s",
		     kvxfer_client_error(rig.prefill.e.client));
	return event;
}

struct kvxfer_blocks wait_planes(uint32_t from, uint32_t n)
{
	return (struct kvxfer_blocks){.local_plane = from,
				      .remote_plane = from,
				      .n_planes = n,
				      .n_blocks = BLOCKS,
				      .local_blocks = ids,
				      .remote_blocks = ids};
}

uint64_t wait_submit(const struct kvxfer_blocks *blocks, const struct kvxfer_wait *wait,
		     uint32_t deadline_ms)
{
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = KVXFER_WRITE,
				    .region = rig.prefill.e.region,
				    .import_ = rig.to_decode,
				    .blocks = blocks,
				    .streaming = blocks == NULL,
				    .deadline_ms = deadline_ms,
				    .wait = wait};
	uint64_t id = 0;

	cr_assert_eq(kvxfer_transfer_submit(rig.prefill.e.client, &t, &id), 0, "%s",
		     kvxfer_client_error(rig.prefill.e.client));
	return id;
}

struct test_event wait_expect_end(uint64_t id, int status)
{
	struct test_event ev = test_wait(&rig.prefill.e, KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);

	cr_assert_eq(ev.status, status, "%s %s", kvxfer_status_name(ev.status), ev.text);
	return ev;
}

void wait_expect_arrived(uint64_t seed, uint32_t from, uint32_t n)
{
	gpu_engine_get(&rig.decode);
	for (uint32_t p = from; p < from + n; p++)
		for (uint32_t b = 0; b < BLOCKS; b++)
			cr_assert(test_block_is(&rig.decode.e, seed, p, b, b), "plane %u block %u",
				  p, b);
}

void wait_expect_untouched(void)
{
	gpu_engine_get(&rig.decode);
	for (uint32_t p = 0; p < PLANES; p++)
		for (uint32_t b = 0; b < BLOCKS; b++)
			cr_assert(test_block_is_canary(&rig.decode.e, p, b), "plane %u block %u", p,
				  b);
}

void wait_until_waiting(int64_t n)
{
	cr_assert_eq(test_node_wait_number(&rig.node, "status", "waits", n, RIG_WAIT_MS), n);
}

void *wait_event_held(struct kvxfer_wait *out_wait)
{
	void *event = wait_event_make(out_wait);

	standin_stall(0, true);
	cr_assert_eq(test_gpu_record(event, rig.stream), 0);
	return event;
}

void *wait_kernel_held(uint64_t seed, struct kvxfer_wait *out_wait)
{
	void *event = wait_event_make(out_wait);

	wait_stage(seed, 0);
	standin_stall(0, true);
	wait_launch(0);
	cr_assert_eq(test_gpu_record(event, rig.stream), 0);
	return event;
}
