/* What the stand-in for a GPU runtime promises within one process: that it behaves as one where
 * kvxfer could go wrong, and that it sees and counts what a program holds. Each test makes a node
 * of its own. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "standin_rig.h"

Test(standin, device_memory_is_counted_and_given_back)
{
	void *a, *b;

	node_open();
	a = test_gpu_alloc(0, 8 * MIB);
	b = test_gpu_alloc(1, 4096);
	cr_assert_eq(standin_usage(0).alloc_bytes, 8 * MIB);
	cr_assert_eq(standin_usage(1).alloc_bytes, 4096);
	test_gpu_free(a);
	test_gpu_free(b);
	cr_assert_eq(standin_usage(0).alloc_bytes + standin_usage(1).alloc_bytes, 0);
	test_gpu_use(0);
	cr_assert_eq(test_gpu_try_alloc(65 * MIB, &a), STANDIN_OUT_OF_MEMORY);
	node_close();
}

Test(standin, the_cpu_cannot_touch_device_memory, .signal = SIGSEGV)
{
	uint8_t *ptr;

	node_open();
	ptr = test_gpu_alloc(0, 4096);
	standin_destroy();
	signal(SIGSEGV, SIG_DFL); /* a sanitizer would end it in its own way */
	*(volatile uint8_t *)ptr = 1;
}

Test(standin, copies_land_later_and_in_order)
{
	void *a, *b, *c, *stream;

	node_open();
	a = test_gpu_alloc(0, MIB);
	b = test_gpu_alloc(0, MIB);
	c = test_gpu_alloc(0, MIB);
	test_gpu_fill(a, 1, MIB);
	test_gpu_fill(b, 2, MIB);
	test_gpu_fill(c, 3, MIB);
	stream = test_gpu_stream(0);
	standin_set_delay(20000, 20000, 1);
	standin_stall(0, true); /* however long the looks below take */
	cr_assert_eq(test_gpu_try_copy(b, a, MIB, stream), 0);
	cr_assert_eq(test_gpu_try_copy(c, b, MIB, stream), 0);
	cr_assert_eq(test_gpu_stream_query(stream), TEST_GPU_NOT_READY);
	cr_assert(all_are(b, 2, MIB), "it landed at once");
	standin_stall(0, false);
	cr_assert_eq(test_gpu_stream_sync(stream), 0);
	cr_assert(all_are(c, 1, MIB), "the second copy was first");
	test_gpu_stream_end(stream);
	node_close();
}

/* Two buffers of a page, full of these, with two streams and an event. */
struct queues {
	void *a, *b, *one, *two, *event;
};

static struct queues queues_make(uint8_t of_a, uint8_t of_b)
{
	struct queues q = {.a = test_gpu_alloc(0, 4096), .b = test_gpu_alloc(0, 4096)};

	test_gpu_fill(q.a, of_a, 4096);
	test_gpu_fill(q.b, of_b, 4096);
	q.one = test_gpu_stream(0);
	q.two = test_gpu_stream(0);
	q.event = test_gpu_event(false);
	return q;
}

/* Without an event between them the second stream reads what is there now; with one it waits. */
Test(standin, streams_are_ordered_by_events_only)
{
	struct queues q;

	node_open();
	q = queues_make(7, 0);
	standin_stall(0, true);
	cr_assert_eq(test_gpu_try_copy(q.b, q.a, 4096, q.one), 0);
	cr_assert_eq(test_gpu_record(q.event, q.one), 0);
	cr_assert_eq(test_gpu_event_query(q.event), TEST_GPU_NOT_READY);
	cr_assert_eq(test_gpu_stream_wait(q.two, q.event), 0);
	cr_assert_eq(test_gpu_try_copy(q.a, q.b, 4096, q.two), 0);
	standin_stall(0, false);
	cr_assert_eq(test_gpu_stream_sync(q.two), 0);
	cr_assert(all_are(q.a, 7, 4096));
	cr_assert_eq(test_gpu_event_query(q.event), 0);
	test_gpu_event_end(q.event);
	test_gpu_stream_end(q.one);
	test_gpu_stream_end(q.two);
	node_close();
}

Test(standin, copies_between_devices_need_peer_access)
{
	void *a, *b, *stream;

	node_open();
	a = test_gpu_alloc(0, 4096);
	b = test_gpu_alloc(1, 4096);
	test_gpu_fill(b, 9, 4096);
	stream = test_gpu_stream(0);
	cr_assert_eq(test_gpu_try_copy(a, b, 4096, stream), STANDIN_PEER_NOT_ENABLED);
	cr_assert_eq(test_gpu_peer(0, 1), 0);
	cr_assert_eq(test_gpu_peer(0, 1), STANDIN_PEER_ALREADY);
	cr_assert_eq(test_gpu_try_copy(a, b, 4096, stream), 0);
	cr_assert_eq(test_gpu_stream_sync(stream), 0);
	cr_assert(all_are(a, 9, 4096));
	standin_set_reach(1, 0, false);
	cr_assert_eq(test_gpu_peer(1, 0), STANDIN_PEER_UNSUPPORTED);
	test_gpu_stream_end(stream);
	node_close();
}

Test(standin, rectangles_keep_what_is_between_their_rows)
{
	uint8_t host[64 * 16];
	void *a, *b, *stream;

	node_open();
	for (size_t i = 0; i < sizeof(host); i++)
		host[i] = (uint8_t)i;
	a = test_gpu_alloc(0, sizeof(host));
	b = test_gpu_alloc(0, sizeof(host));
	test_gpu_put(a, host, sizeof(host));
	test_gpu_fill(b, 0xee, sizeof(host));
	stream = test_gpu_stream(0);
	cr_assert_eq(test_gpu_try_rect(b, 64, a, 32, 16, 8, stream), 0);
	cr_assert_eq(test_gpu_stream_sync(stream), 0);
	test_gpu_get(host, b, sizeof(host));
	for (unsigned row = 0; row < 8; row++) {
		cr_assert_eq(host[row * 64], (uint8_t)(row * 32));
		cr_assert_eq(host[row * 64 + 15], (uint8_t)(row * 32 + 15));
		cr_assert_eq(host[row * 64 + 16], 0xee);
	}
	test_gpu_stream_end(stream);
	node_close();
}

Test(standin, a_copy_over_the_end_is_refused_and_noted)
{
	void *a, *b;

	node_open();
	a = test_gpu_alloc(0, 4096);
	b = test_gpu_alloc(0, 8192);
	cr_assert_eq(test_gpu_try_copy(a, b, 4097, NULL), STANDIN_INVALID_VALUE);
	cr_assert_eq(standin_n_violations(), 1);
	standin_forgive();
	node_close();
}

Test(standin, the_nth_call_fails_once)
{
	void *a;

	node_open();
	test_gpu_use(0);
	standin_fail(STANDIN_MALLOC, getpid(), 2, STANDIN_UNKNOWN);
	cr_assert_eq(test_gpu_try_alloc(4096, &a), 0);
	cr_assert_eq(test_gpu_try_alloc(4096, &a), STANDIN_UNKNOWN);
	cr_assert(standin_fired(STANDIN_MALLOC));
	cr_assert_eq(test_gpu_try_alloc(4096, &a), 0);
	standin_fail(STANDIN_MALLOC, getpid() + 1, 1, STANDIN_UNKNOWN);
	cr_assert_eq(test_gpu_try_alloc(4096, &a), 0, "another process was meant");
	cr_assert_eq(standin_calls(getpid(), STANDIN_MALLOC), 4);
	node_close();
}

Test(standin, a_lost_device_says_so_for_good_and_the_others_work)
{
	void *a, *b, *stream, *event, *other;

	node_open();
	a = test_gpu_alloc(0, 4096);
	b = test_gpu_alloc(0, 4096);
	stream = test_gpu_stream(0);
	event = test_gpu_event(false);
	standin_stall(0, true);
	cr_assert_eq(test_gpu_try_copy(a, b, 4096, stream), 0);
	cr_assert_eq(test_gpu_record(event, stream), 0);
	standin_lose(0, STANDIN_LAUNCH_FAILURE);
	cr_assert_eq(test_gpu_event_query(event), STANDIN_LAUNCH_FAILURE);
	cr_assert_eq(test_gpu_try_copy(a, b, 4096, stream), STANDIN_LAUNCH_FAILURE);
	cr_assert_eq(test_gpu_stream_query(stream), STANDIN_LAUNCH_FAILURE);
	standin_reset(0);
	standin_stall(0, false);
	cr_assert_eq(test_gpu_try_copy(a, b, 4096, stream), STANDIN_LAUNCH_FAILURE,
		     "for this process it stays lost");
	other = test_gpu_alloc(1, 4096);
	test_gpu_fill(other, 4, 4096);
	cr_assert(all_are(other, 4, 4096));
	cr_assert_eq(standin_usage(0).alloc_bytes, 0);
	node_close();
}

/* A stream is a thread: one that went on would use what is there no more. */
Test(standin, a_node_that_ends_drops_what_is_queued)
{
	struct queues q;

	node_open();
	q = queues_make(1, 2);
	standin_stall(0, true);
	for (unsigned i = 0; i < 100; i++)
		cr_assert_eq(test_gpu_try_copy(q.b, q.a, 4096, q.one), 0);
	cr_assert_eq(test_gpu_record(q.event, q.one), 0);
	cr_assert_eq(test_gpu_stream_wait(q.two, q.event), 0);
	cr_assert_eq(test_gpu_try_copy(q.b, q.a, 4096, q.two), 0);
	test_gpu_stream_end(q.one);
	node_close();
	sleep_ms(20);
	cr_assert(all_are(q.b, 2, 4096), "a copy was made after the end");
}

Test(standin, memory_of_the_virtual_memory_calls_cannot_be_exported)
{
	uint8_t handle[TEST_GPU_HANDLE_BYTES];
	void *ptr;

	node_open();
	test_gpu_use(0);
	ptr = standin_vmm_alloc(0, MIB);
	cr_assert_neq(ptr, NULL);
	test_gpu_fill(ptr, 3, MIB);
	cr_assert_neq(test_gpu_ipc_get(ptr, handle), 0);
	test_gpu_free(ptr);
	node_close();
}

Test(standin, use_of_what_was_destroyed_is_noted)
{
	void *stream;

	node_open();
	stream = test_gpu_stream(0);
	test_gpu_stream_end(stream);
	cr_assert_eq(test_gpu_stream_query(stream), STANDIN_INVALID_HANDLE);
	cr_assert_eq(standin_n_violations(), 1);
	standin_forgive();
	node_close();
}

Test(standin, host_memory_that_is_not_page_locked_makes_the_call_wait)
{
	struct standin_process self;
	void *ptr, *stream, *locked = NULL;
	char host[4096] = {1};

	node_open();
	ptr = test_gpu_alloc(0, 4096);
	stream = test_gpu_stream(0);
	cr_assert_eq(test_gpu_host_alloc(4096, &locked), 0);
	cr_assert_eq(test_gpu_try_copy(ptr, locked, 4096, stream), 0);
	cr_assert(standin_process(getpid(), &self));
	cr_assert_eq(self.pageable_copies, 0);
	cr_assert_eq(self.host_bytes, 4096);
	cr_assert_eq(test_gpu_try_copy(ptr, host, 4096, stream), 0);
	cr_assert(standin_process(getpid(), &self));
	cr_assert_eq(self.pageable_copies, 1);
	cr_assert_eq(test_gpu_host_free(locked), 0);
	test_gpu_stream_end(stream);
	node_close();
}
