/* The stand-in for a GPU runtime between processes: memory and events of one that another uses, and
 * what is left of one that ended. The others are forked before this one uses a GPU. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "standin_rig.h"

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

	cr_assert_eq(pipe2(to, O_CLOEXEC), 0);
	cr_assert_eq(pipe2(from, O_CLOEXEC), 0);
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

/* Lets the streams of device 1 go on once something was noted. */
static void *let_go_main(void *arg)
{
	(void)arg;
	for (int i = 0; i < 5000 && standin_n_violations() == 0; i++)
		sleep_ms(1);
	standin_stall(1, false);
	return NULL;
}

/* The close waits for the copy, which waits for the word that it was noted. */
Test(standin, closing_a_mapping_under_a_copy_is_noted)
{
	uint8_t handle[TEST_GPU_HANDLE_BYTES];
	void *ptr = NULL, *own, *stream;
	pthread_t let_go;
	struct holder h;

	node_open();
	h = exporter_start(handle);
	own = test_gpu_alloc(1, MIB);
	stream = test_gpu_stream(1);
	cr_assert_eq(test_gpu_ipc_open(handle, &ptr), 0);
	standin_stall(1, true);
	cr_assert_eq(test_gpu_try_copy(own, ptr, MIB, stream), 0);
	cr_assert_eq(pthread_create(&let_go, NULL, let_go_main, NULL), 0);
	cr_assert_eq(test_gpu_ipc_close(ptr), 0);
	pthread_join(let_go, NULL);
	cr_assert_eq(standin_n_violations(), 1);
	standin_forgive();
	holder_end(&h, 0);
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
