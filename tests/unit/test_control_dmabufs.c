/* GPU memory that comes with many fds: taken where a rail has a use for them, never kept longer
 * than that, and refused when they are something else. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "control_talk.h"
#include "test_linger.h"

Test(control_dmabufs, are_taken_and_closed_when_the_region_is_live)
{
	struct talk t;
	char text[256];

	open_rig(&t, USE);
	dmabufs_open();
	unsigned before = count_fds();
	for (unsigned n = 1; n <= MANY; n += 83) {
		cr_assert_eq(register_gpu(&t, n, dmabufs, n, text), 0, "%s", text);
		cr_assert_eq(n_seen, n);
		cr_assert_eq(count_fds(), before);
	}
	cr_assert_eq(register_gpu(&t, MANY + 50, dmabufs, MANY, text), 0, "%s", text);
	cr_assert_eq(n_seen, MANY, "further allocations have none");
	dmabufs_close();
	close_rig(&t);
}

Test(control_dmabufs, are_closed_when_the_region_is_refused)
{
	struct talk t;
	char text[256];

	open_rig(&t, USE);
	dmabufs_open();
	unsigned before = count_fds();
	home_error = -EFAULT;
	cr_assert_eq(register_gpu(&t, MANY, dmabufs, MANY, text), -EFAULT);
	cr_assert_eq(n_seen, MANY);
	cr_assert_eq(count_fds(), before);
	dmabufs_close();
	close_rig(&t);
}

Test(control_dmabufs, are_not_taken_where_no_rail_has_a_use_for_them)
{
	struct talk t;
	char text[256];

	open_rig(&t, NO_USE);
	dmabufs_open();
	unsigned before = count_fds();
	cr_assert_eq(register_gpu(&t, MANY, dmabufs, MANY, text), 0, "%s", text);
	cr_assert_eq(n_seen, 0);
	wait_for_fds(before);
	dmabufs_close();
	close_rig(&t);
}

/* The client goes while its region is being registered. */
Test(control_dmabufs, are_closed_when_their_client_is_gone)
{
	struct talk t, other;

	open_rig(&t, USE);
	dmabufs_open();
	talk_open(&other);
	unsigned before = count_fds();
	send_register(&other, MANY, dmabufs, MANY);
	shutdown(other.fd, SHUT_RDWR);
	rig_turn(&rig);
	cr_assert_eq(kvx_control_clients(rig.control), 1);
	cr_assert_eq(kvx_regions_count(kvx_node_regions(rig.node)), 0);
	cr_assert_leq(count_fds(), before);
	talk_close(&other);
	dmabufs_close();
	close_rig(&t);
}

/* The same fd twice, one that did not come, and one of each kind that is no dma-buf. */
Test(control_dmabufs, what_is_something_else_is_refused_by_name)
{
	struct talk t;
	char text[256];
	int pipes[2], strange[4];

	open_rig(&t, USE);
	cr_assert_eq(pipe2(pipes, O_CLOEXEC), 0);
	strange[0] = pipes[0];
	strange[1] = t.fd;
	strange[2] = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	strange[3] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	unsigned before = count_fds();
	for (unsigned i = 0; i < 4; i++) {
		cr_assert_eq(register_gpu(&t, 1, &strange[i], 1, text), -EBADF);
		cr_assert_not_null(strstr(text, "no dma-buf"), "%s", text);
		cr_assert_eq(n_seen, 0);
	}
	wait_for_fds(before);
	for (unsigned i = 0; i < 2; i++)
		close(pipes[i]);
	close(strange[2]);
	close(strange[3]);
	close_rig(&t);
}

/* Its close blocks: the loop and the job thread do not wait for it. */
Test(control_dmabufs, a_stranger_among_them_holds_up_nobody)
{
	static struct linger_pair lingering;
	struct talk t;
	char text[256];
	uint64_t start;

	open_rig(&t, USE);
	dmabufs_open();
	test_linger_open(&lingering, 8);
	close(dmabufs[MANY - 1]);
	dmabufs[MANY - 1] = test_linger_take(&lingering);
	start = kvx_now_ns();
	send_register(&t, MANY, dmabufs, MANY);
	close(dmabufs[MANY - 1]); /* not the last one of it */
	dmabufs[MANY - 1] = -1;
	uint64_t id;
	cr_assert_eq(hear_reply(&t, &id, text), -EBADF);
	cr_assert_not_null(strstr(text, "allocation 249"), "%s", text);
	cr_assert_eq(register_gpu(&t, 10, dmabufs, 10, text), 0, "%s", text);
	cr_assert_lt(kvx_now_ns() - start, 5 * KVX_SEC);
	test_linger_close(&lingering);
	dmabufs_close();
	close_rig(&t);
}

/* Three of a hundred and more at once: those of the first two are with their regions when the third
 * comes. */
Test(control_dmabufs, of_a_client_only_so_many_are_held_at_once)
{
	struct talk t;
	char text[256];
	uint64_t id;

	open_rig(&t, USE);
	dmabufs_open();
	unsigned before = count_fds();
	for (unsigned i = 0; i < 3; i++)
		send_register(&t, 200, dmabufs, 200);
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(hear_reply(&t, &id, text), 0, "%s", text);
	cr_assert_eq(n_seen, 0, "the last one went on without");
	wait_for_fds(before);
	cr_assert_eq(register_gpu(&t, 200, dmabufs, 200, text), 0, "%s", text);
	cr_assert_eq(n_seen, 200, "they are free again");
	dmabufs_close();
	close_rig(&t);
}

Test(control_dmabufs, memory_of_which_nothing_is_shown_is_refused)
{
	struct talk t;
	char text[256];

	open_rig(&t, USE);
	n_witnesses = 0;
	cr_assert_eq(register_gpu(&t, 1, NULL, 0, text), -EINVAL);
	cr_assert_not_null(strstr(text, "comparison"), "%s", text);
	close_rig(&t);
}
