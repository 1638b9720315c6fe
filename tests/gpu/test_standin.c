/* What the stand-in for a GPU runtime promises: that it behaves as one where kvxfer could go wrong,
 * and that it sees and counts what a program holds. Each test makes a node of its own; other
 * processes are forked before this one uses a GPU. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "gpu/gpu.h"
#include "standin.h"
#include "test_gpu.h"

#define MIB (1ull << 20)

static void sleep_ms(long ms)
{
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&ts, NULL);
}

static void node_open(void)
{
	standin_create(2, 64 * MIB);
}

static void node_close(void)
{
	cr_expect_eq(standin_n_violations(), 0, "%s", standin_violation());
	standin_destroy();
}

static bool all_are(const void *device_pointer, uint8_t value, size_t bytes)
{
	const uint8_t *at = standin_bytes(device_pointer);

	return at != NULL && at[0] == value && memcmp(at, at + 1, bytes - 1) == 0;
}

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
	cr_assert_eq(test_gpu_try_copy(b, a, MIB, stream), 0);
	cr_assert_eq(test_gpu_try_copy(c, b, MIB, stream), 0);
	cr_assert_eq(test_gpu_stream_query(stream), TEST_GPU_NOT_READY);
	cr_assert(all_are(b, 2, MIB), "it landed at once");
	cr_assert_eq(test_gpu_stream_sync(stream), 0);
	cr_assert(all_are(c, 1, MIB), "the second copy was first");
	test_gpu_stream_end(stream);
	node_close();
}

/* Without an event between them the second stream reads what is there now; with one it waits. */
Test(standin, streams_are_ordered_by_events_only)
{
	void *a, *b, *one, *two, *event;

	node_open();
	a = test_gpu_alloc(0, 4096);
	b = test_gpu_alloc(0, 4096);
	test_gpu_fill(a, 7, 4096);
	test_gpu_fill(b, 0, 4096);
	one = test_gpu_stream(0);
	two = test_gpu_stream(0);
	event = test_gpu_event(false);
	standin_stall(0, true);
	cr_assert_eq(test_gpu_try_copy(b, a, 4096, one), 0);
	cr_assert_eq(test_gpu_record(event, one), 0);
	cr_assert_eq(test_gpu_event_query(event), TEST_GPU_NOT_READY);
	cr_assert_eq(test_gpu_stream_wait(two, event), 0);
	cr_assert_eq(test_gpu_try_copy(a, b, 4096, two), 0);
	standin_stall(0, false);
	cr_assert_eq(test_gpu_stream_sync(two), 0);
	cr_assert(all_are(a, 7, 4096));
	cr_assert_eq(test_gpu_event_query(event), 0);
	test_gpu_event_end(event);
	test_gpu_stream_end(one);
	test_gpu_stream_end(two);
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

/* A process that holds memory until it is told (by the end of its pipe), or is killed. */
struct holder {
	pid_t pid;
	int to, from;
};

/* Both sides use these: an assertion would be no business of the process that is no test. */
static void holder_say(int fd, const void *bytes, size_t n)
{
	if (write(fd, bytes, n) != (ssize_t)n)
		abort();
}

static void holder_hear(int fd, void *bytes, size_t n)
{
	if (read(fd, bytes, n) != (ssize_t)n)
		abort();
}

/* Runs body in a process of its own; it talks over two pipes. */
static struct holder holder_start(void (*body)(int in, int out))
{
	struct holder h;
	int to[2], from[2];

	cr_assert_eq(pipe(to), 0);
	cr_assert_eq(pipe(from), 0);
	h.pid = fork();
	if (h.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(to[1]);
		close(from[0]);
		body(to[0], from[1]);
		_exit(0);
	}
	close(to[0]);
	close(from[1]);
	h.to = to[1];
	h.from = from[0];
	return h;
}

static void holder_end(struct holder *h, int signo)
{
	if (signo != 0)
		kill(h->pid, signo);
	close(h->to);
	close(h->from);
	waitpid(h->pid, NULL, 0);
}

/* Exports 1 MiB of 5s on device 1, with an interprocess event, until its pipe ends; "f" frees it.
 */
static void export_body(int in, int out)
{
	uint8_t handle[TEST_GPU_HANDLE_BYTES];
	void *ptr = test_gpu_alloc(1, MIB);
	char word;

	test_gpu_fill(ptr, 5, MIB);
	if (test_gpu_ipc_get(ptr, handle) != 0)
		_exit(1);
	holder_say(out, handle, sizeof(handle));
	while (read(in, &word, 1) == 1) {
		test_gpu_free(ptr);
		holder_say(out, "f", 1);
	}
}

static struct holder exporter_start(uint8_t handle[TEST_GPU_HANDLE_BYTES])
{
	struct holder h = holder_start(export_body);

	holder_hear(h.from, handle, TEST_GPU_HANDLE_BYTES);
	return h;
}

Test(standin, memory_of_another_process_is_the_same_memory)
{
	uint8_t handle[TEST_GPU_HANDLE_BYTES];
	struct holder h;
	void *ptr = NULL;

	node_open();
	h = exporter_start(handle);
	test_gpu_use(1);
	cr_assert_eq(test_gpu_ipc_open(handle, &ptr), 0);
	cr_assert(all_are(ptr, 5, MIB));
	cr_assert_eq(standin_usage(1).mapped_bytes, MIB);
	cr_assert_eq(standin_usage(1).n_maps, 1);
	cr_assert_eq(test_gpu_ipc_close(ptr), 0);
	cr_assert_eq(standin_usage(1).n_maps, 0);
	cr_assert_eq(standin_usage(1).alloc_bytes, MIB);
	holder_end(&h, 0);
	cr_assert_eq(standin_usage(1).alloc_bytes, 0);
	node_close();
}

Test(standin, mapped_memory_of_a_killed_process_stays_until_it_is_closed)
{
	uint8_t handle[TEST_GPU_HANDLE_BYTES];
	struct holder h;
	void *ptr = NULL;

	node_open();
	h = exporter_start(handle);
	test_gpu_use(1);
	cr_assert_eq(test_gpu_ipc_open(handle, &ptr), 0);
	holder_end(&h, SIGKILL);
	cr_assert_eq(standin_usage(1).alloc_bytes, 0);
	cr_assert_eq(standin_usage(1).orphan_bytes, MIB);
	cr_assert(all_are(ptr, 5, MIB));
	cr_assert_eq(test_gpu_ipc_close(ptr), 0);
	cr_assert_eq(standin_usage(1).orphan_bytes, 0);
	cr_assert_neq(test_gpu_ipc_open(handle, &ptr), 0, "the memory is gone");
	node_close();
}

Test(standin, freed_memory_cannot_be_opened_and_is_kept_by_who_has_it)
{
	uint8_t handle[TEST_GPU_HANDLE_BYTES];
	void *ptr = NULL, *again = NULL;
	struct holder h;
	char word;

	node_open();
	h = exporter_start(handle);
	test_gpu_use(1);
	cr_assert_eq(test_gpu_ipc_open(handle, &ptr), 0);
	holder_say(h.to, "f", 1);
	holder_hear(h.from, &word, 1);
	cr_assert_eq(standin_usage(1).orphan_bytes, MIB);
	cr_assert(all_are(ptr, 5, MIB));
	cr_assert_eq(test_gpu_ipc_close(ptr), 0);
	cr_assert_eq(test_gpu_ipc_open(handle, &again), STANDIN_INVALID_VALUE);
	cr_assert_eq(standin_usage(1).orphan_bytes, 0);
	holder_end(&h, 0);
	node_close();
}

/* Records an event behind a copy that waits for the other process's word. */
static void event_body(int in, int out)
{
	uint8_t handle[TEST_GPU_HANDLE_BYTES];
	void *a, *b, *stream, *event;
	char word;

	a = test_gpu_alloc(0, 4096);
	b = test_gpu_alloc(0, 4096);
	stream = test_gpu_stream(0);
	event = test_gpu_event(true);
	standin_stall(0, true);
	if (test_gpu_try_copy(b, a, 4096, stream) != 0 || test_gpu_record(event, stream) != 0 ||
	    test_gpu_event_handle(event, handle) != 0)
		_exit(1);
	holder_say(out, handle, sizeof(handle));
	holder_hear(in, &word, 1);
	standin_stall(0, false);
	test_gpu_stream_sync(stream);
	holder_say(out, "d", 1);
	while (read(in, &word, 1) == 1)
		;
}

Test(standin, an_event_of_another_process_is_reached_when_its_stream_gets_there)
{
	struct holder h;
	uint8_t handle[TEST_GPU_HANDLE_BYTES];
	void *event = NULL;
	char word;

	node_open();
	h = holder_start(event_body);
	holder_hear(h.from, handle, sizeof(handle));
	test_gpu_use(0);
	cr_assert_eq(test_gpu_event_open(handle, &event), 0);
	cr_assert_eq(test_gpu_event_query(event), TEST_GPU_NOT_READY);
	holder_say(h.to, "g", 1);
	holder_hear(h.from, &word, 1);
	cr_assert_eq(test_gpu_event_query(event), 0);
	test_gpu_event_end(event);
	holder_end(&h, 0);
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

static void blocked_body(int in, int out)
{
	uint8_t handle[TEST_GPU_HANDLE_BYTES];
	void *ptr;
	char word;

	test_gpu_use(1);
	holder_hear(in, handle, sizeof(handle));
	word = test_gpu_ipc_open(handle, &ptr) == 0 ? 'y' : 'n';
	holder_say(out, &word, 1);
}

Test(standin, a_blocked_call_returns_when_it_is_let_go)
{
	uint8_t handle[TEST_GPU_HANDLE_BYTES];
	struct holder exporter, opener;
	char word = 0;

	node_open();
	exporter = exporter_start(handle);
	opener = holder_start(blocked_body);
	standin_block(STANDIN_IPC_OPEN, opener.pid, true);
	holder_say(opener.to, handle, sizeof(handle));
	for (int i = 0; i < 2000 && standin_blocked(STANDIN_IPC_OPEN) == 0; i++)
		sleep_ms(1);
	cr_assert_eq(standin_blocked(STANDIN_IPC_OPEN), 1);
	standin_block(STANDIN_IPC_OPEN, 0, false);
	holder_hear(opener.from, &word, 1);
	cr_assert_eq(word, 'y');
	holder_end(&opener, 0);
	holder_end(&exporter, 0);
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
	void *a, *b, *one, *two, *event;

	node_open();
	a = test_gpu_alloc(0, 4096);
	b = test_gpu_alloc(0, 4096);
	test_gpu_fill(a, 1, 4096);
	test_gpu_fill(b, 2, 4096);
	one = test_gpu_stream(0);
	two = test_gpu_stream(0);
	event = test_gpu_event(false);
	standin_stall(0, true);
	for (unsigned i = 0; i < 100; i++)
		cr_assert_eq(test_gpu_try_copy(b, a, 4096, one), 0);
	cr_assert_eq(test_gpu_record(event, one), 0);
	cr_assert_eq(test_gpu_stream_wait(two, event), 0);
	cr_assert_eq(test_gpu_try_copy(b, a, 4096, two), 0);
	test_gpu_stream_end(one);
	node_close();
	sleep_ms(20);
	cr_assert(all_are(b, 2, 4096), "a copy was made after the end");
}

static void count_body(int in, int out)
{
	char pci[32] = "";
	int n;

	(void)in;
	setenv("HIP_VISIBLE_DEVICES", "1", 1);
	setenv("CUDA_VISIBLE_DEVICES", "1", 1);
	n = test_gpu_count();
	if (n > 0)
		test_gpu_pci(0, pci);
	holder_say(out, &n, sizeof(n));
	holder_say(out, pci, sizeof(pci));
}

Test(standin, a_hidden_device_is_not_counted_and_the_rest_is_numbered_anew)
{
	struct holder h;
	char pci[32];
	int n;

	node_open();
	h = holder_start(count_body);
	holder_hear(h.from, &n, sizeof(n));
	holder_hear(h.from, pci, sizeof(pci));
	cr_assert_eq(n, 1);
	cr_assert_str_eq(pci, standin_pci(1));
	holder_end(&h, 0);
	node_close();
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

Test(standin, closing_a_mapping_under_a_copy_is_noted)
{
	uint8_t handle[TEST_GPU_HANDLE_BYTES];
	void *ptr = NULL, *own, *stream;
	struct holder h;

	node_open();
	h = exporter_start(handle);
	own = test_gpu_alloc(1, MIB);
	stream = test_gpu_stream(1);
	cr_assert_eq(test_gpu_ipc_open(handle, &ptr), 0);
	standin_set_delay(100000, 100000, 1);
	cr_assert_eq(test_gpu_try_copy(own, ptr, MIB, stream), 0);
	cr_assert_eq(test_gpu_ipc_close(ptr), 0);
	cr_assert_eq(standin_n_violations(), 1);
	standin_forgive();
	holder_end(&h, 0);
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

Test(standin, what_a_process_holds_goes_with_it)
{
	uint8_t handle[TEST_GPU_HANDLE_BYTES];

	node_open();
	for (int i = 0; i < 100; i++) {
		struct holder h = exporter_start(handle);

		holder_end(&h, i % 2 ? SIGKILL : 0);
	}
	cr_assert_eq(standin_usage(1).n_allocs, 0);
	node_close();
}

/* ---- what the daemon uses beyond the above, by the table that it calls a runtime with */

static struct kvx_gpu *open_table(void)
{
	struct kvx_gpu_find find = {.kind = strcmp(test_gpu_runtime(), "hip") == 0 ? KVX_GPU_HIP
										   : KVX_GPU_CUDA};
	struct kvx_gpu *gpu = NULL;
	struct kvx_why why = {0};

	cr_assert_eq(kvx_gpu_open(&find, &gpu, &why), 0, "%s", why.text);
	cr_assert_eq(gpu->ops->open(gpu, 0), 0);
	cr_assert_eq(gpu->ops->bind(gpu, 0, NULL), 0);
	return gpu;
}

static void close_table(struct kvx_gpu *gpu)
{
	gpu->ops->close(gpu, 0);
	kvx_gpu_close(gpu);
	node_close();
}

Test(standin, a_batch_moves_all_its_copies)
{
	uint64_t src, dst, dsts[3], srcs[3];
	size_t lens[3] = {100, 200, 300};
	struct kvx_gpu *gpu;
	void *stream;

	node_open();
	gpu = open_table();
	if (!(gpu->caps & KVX_GPU_CAP_BATCH)) {
		close_table(gpu);
		cr_skip_test("this release has no batched copies");
	}
	cr_assert_eq(gpu->ops->mem_alloc(gpu, 4096, &src), 0);
	cr_assert_eq(gpu->ops->mem_alloc(gpu, 4096, &dst), 0);
	cr_assert_eq(gpu->ops->stream_create(gpu, &stream), 0);
	memset(standin_bytes((void *)src), 0x11, 4096);
	for (unsigned i = 0; i < 3; i++) {
		srcs[i] = src + 1000 * i;
		dsts[i] = dst + 1000 * i;
	}
	cr_assert_eq(gpu->ops->copy_batch(gpu, dsts, srcs, lens, 3, stream), 0);
	cr_assert_eq(gpu->ops->stream_sync(gpu, stream), 0);
	for (unsigned i = 0; i < 3; i++) {
		const uint8_t *at = standin_bytes((void *)dsts[i]);

		cr_assert_eq(at[0], 0x11);
		cr_assert_eq(at[lens[i] - 1], 0x11);
		cr_assert_eq(at[lens[i]], 0);
	}
	gpu->ops->stream_destroy(gpu, stream);
	close_table(gpu);
}

Test(standin, the_kernel_copies_what_its_list_says)
{
	struct kvx_gpu_piece *list = NULL;
	uint64_t src, dst;
	struct kvx_gpu *gpu;
	void *stream, *kernel;

	node_open();
	gpu = open_table();
	cr_assert_eq(gpu->ops->mem_alloc(gpu, 4096, &src), 0);
	cr_assert_eq(gpu->ops->mem_alloc(gpu, 4096, &dst), 0);
	cr_assert_eq(gpu->ops->stream_create(gpu, &stream), 0);
	cr_assert_eq(gpu->ops->kernel_load(gpu, &kernel), 0);
	cr_assert_eq(gpu->ops->host_alloc(gpu, 4096, (void **)&list), 0);
	memset(standin_bytes((void *)src), 0x22, 4096);
	list[0] = (struct kvx_gpu_piece){dst, src, 16};
	list[1] = (struct kvx_gpu_piece){dst + 64, src + 100, 8};
	cr_assert_eq(gpu->ops->kernel_run(gpu, kernel, (uintptr_t)list, 2, stream), 0);
	cr_assert_eq(gpu->ops->stream_sync(gpu, stream), 0);
	cr_assert_eq(standin_bytes((void *)dst)[15], 0x22);
	cr_assert_eq(standin_bytes((void *)dst)[16], 0);
	cr_assert_eq(standin_bytes((void *)dst)[71], 0x22);
	/* An address that is none ends the device for this process, as it does on a real one. */
	list[0].dst = 4096;
	cr_assert_eq(gpu->ops->kernel_run(gpu, kernel, (uintptr_t)list, 1, stream), 0);
	cr_assert_eq(gpu->ops->stream_sync(gpu, stream), -ENODEV);
	close_table(gpu);
}

Test(standin, a_dma_buf_is_the_memory_itself)
{
	uint64_t addr, offset;
	struct kvx_gpu *gpu;
	uint8_t *map;
	int fd = -1, rc;

	node_open();
	gpu = open_table();
	cr_assert_eq(gpu->ops->mem_alloc(gpu, 8192, &addr), 0);
	rc = gpu->ops->dmabuf_export(gpu, addr, 8192, &fd, &offset);
	if (rc == -EOPNOTSUPP) {
		close_table(gpu);
		cr_skip_test("this release exports no dma-buf");
	}
	cr_assert_eq(rc, 0);
	map = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, (off_t)offset);
	cr_assert_neq(map, MAP_FAILED);
	memset(standin_bytes((void *)addr), 0x33, 8192);
	cr_assert_eq(map[8191], 0x33);
	munmap(map, 8192);
	close(fd);
	close_table(gpu);
}

Test(standin, a_reset_ends_what_is_queued_and_takes_all_that_was_held)
{
	uint64_t src, dst;
	struct kvx_gpu *gpu;
	void *stream, *event;

	node_open();
	gpu = open_table();
	cr_assert_eq(gpu->ops->mem_alloc(gpu, MIB, &src), 0);
	cr_assert_eq(gpu->ops->mem_alloc(gpu, MIB, &dst), 0);
	cr_assert_eq(gpu->ops->stream_create(gpu, &stream), 0);
	cr_assert_eq(gpu->ops->event_create(gpu, &event), 0);
	standin_stall(0, true);
	cr_assert_eq(gpu->ops->copy(gpu, dst, src, MIB, stream), 0);
	cr_assert_eq(gpu->ops->event_record(gpu, event, stream), 0);
	cr_assert_eq(gpu->ops->event_query(gpu, event), -EAGAIN);
	cr_assert_eq(gpu->ops->reset(gpu, 0), 0);
	cr_assert_eq(standin_usage(0).n_allocs, 0);
	cr_assert_neq(gpu->ops->event_query(gpu, event), 0, "the copy was never made");
	standin_stall(0, false);
	close_table(gpu);
}
