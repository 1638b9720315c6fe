/* Frames with many fds: which type may carry them, how many may wait, and what becomes of them when
 * a process has no room left. */
#include "proto/kvx_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fault_alloc.h"
#include "test_end.h"
#include "test_fds.h"
#include "wire_fixture.h"

#define MANY  20 /* the type that may carry many */
#define OTHER 21

static int numbered[TEST_SCM_MAX];

static void numbered_open(void)
{
	for (unsigned i = 0; i < TEST_SCM_MAX; i++)
		numbered[i] = memfd_new(i);
}

static void numbered_close(void)
{
	for (unsigned i = 0; i < TEST_SCM_MAX; i++)
		close(numbered[i]);
}

static void many_open(struct fixture *f)
{
	fixture_open(f);
	kvx_reader_allow_fds(f->reader, MANY);
}

/* A header that says n_says, and n_sent fds. */
static void raw_frame(const struct fixture *f, uint16_t type, unsigned n_says, unsigned n_sent)
{
	uint8_t bytes[KVX_WIRE_HDR_BYTES];

	raw_header(bytes, 0, type, (uint16_t)n_says);
	test_send_fds(f->sockets[0], bytes, sizeof(bytes), numbered, n_sent);
}

static void put_and_flush(struct fixture *f, unsigned n_fds)
{
	cr_assert_eq(kvx_writer_put(f->writer, MANY, "x", 1, numbered, n_fds), 0);
	cr_assert_eq(kvx_writer_flush(f->writer, f->sockets[0]), 0);
}

static void expect_frame(struct fixture *f, unsigned n_fds)
{
	struct kvx_msg msg;

	cr_assert_eq(kvx_reader_next(f->reader, &msg), 1);
	cr_assert_not(msg.fds_lost);
	cr_assert_eq(msg.n_fds, n_fds);
	for (unsigned i = 0; i < n_fds; i++)
		cr_assert_eq(memfd_number(msg.fds[i]), i);
	kvx_msg_fini(&msg);
}

Test(wire_fds, as_many_as_a_frame_may_carry_come_in_order)
{
	struct fixture f;

	numbered_open();
	many_open(&f);
	for (unsigned n = 0; n <= KVX_WIRE_MAX_FDS; n += 50) {
		put_and_flush(&f, n);
		cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
		expect_frame(&f, n);
	}
	cr_assert_eq(kvx_writer_put(f.writer, MANY, "x", 1, numbered, KVX_WIRE_MAX_FDS + 1),
		     -EINVAL);
	fixture_close(&f);
	numbered_close();
	KVX_TEST_END();
}

Test(wire_fds, frames_of_other_types_carry_few)
{
	struct fixture f;

	numbered_open();
	many_open(&f);
	raw_frame(&f, OTHER, KVX_WIRE_FEW_FDS, KVX_WIRE_FEW_FDS);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	expect_frame(&f, KVX_WIRE_FEW_FDS);
	raw_frame(&f, OTHER, KVX_WIRE_FEW_FDS + 1, KVX_WIRE_FEW_FDS + 1);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	cr_assert_eq(kvx_reader_next(f.reader, &(struct kvx_msg){0}), -EPROTO);
	fixture_close(&f);
	numbered_close();
	KVX_TEST_END();
}

Test(wire_fds, none_may_carry_many_before_that_was_allowed)
{
	struct fixture f;

	numbered_open();
	fixture_open(&f);
	raw_frame(&f, MANY, KVX_WIRE_FEW_FDS, KVX_WIRE_FEW_FDS + 1);
	cr_assert_eq(kvx_reader_fill(f.reader, f.sockets[1]), -EPROTO);
	fixture_close(&f);
	numbered_close();
	KVX_TEST_END();
}

Test(wire_fds, more_than_the_most_are_refused_and_closed)
{
	static const unsigned says[] = {KVX_WIRE_MAX_FDS, KVX_WIRE_MAX_FDS + 1, TEST_SCM_MAX,
					65535};
	struct fixture f;

	numbered_open();
	for (unsigned i = 0; i < 4; i++) {
		many_open(&f);
		raw_frame(&f, MANY, says[i], KVX_WIRE_MAX_FDS + 1);
		cr_assert_eq(kvx_reader_fill(f.reader, f.sockets[1]), -EPROTO);
		fixture_close(&f);
	}
	many_open(&f);
	raw_frame(&f, MANY, KVX_WIRE_MAX_FDS + 1, 0);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	cr_assert_eq(kvx_reader_next(f.reader, &(struct kvx_msg){0}), -EPROTO);
	fixture_close(&f);
	numbered_close();
	KVX_TEST_END();
}

static unsigned n_discarded;

static void discard(void *arg, int fd)
{
	n_discarded++;
	close(fd);
}

/* The frames are whole, but nobody takes them. */
Test(wire_fds, as_many_wait_as_two_frames_carry)
{
	struct fixture f;

	numbered_open();
	many_open(&f);
	kvx_reader_set_discard(f.reader, discard, NULL);
	for (unsigned i = 0; i < 2; i++) {
		put_and_flush(&f, KVX_WIRE_MAX_FDS);
		cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	}
	expect_frame(&f, KVX_WIRE_MAX_FDS);
	put_and_flush(&f, KVX_WIRE_MAX_FDS);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	put_and_flush(&f, 1);
	cr_assert_eq(kvx_reader_fill(f.reader, f.sockets[1]), -EDQUOT);
	cr_assert_eq(n_discarded, 2 * KVX_WIRE_MAX_FDS + 1);
	cr_assert_eq(kvx_reader_next(f.reader, &(struct kvx_msg){0}), -EDQUOT);
	fixture_close(&f);
	numbered_close();
	KVX_TEST_END();
}

/* Nobody has to send another frame for that to be seen. */
Test(wire_fds, more_than_were_announced_are_found_out_at_once)
{
	struct fixture f;

	numbered_open();
	many_open(&f);
	kvx_reader_set_discard(f.reader, discard, NULL);
	raw_frame(&f, MANY, 1, 200);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	expect_frame(&f, 1);
	cr_assert_eq(kvx_reader_next(f.reader, &(struct kvx_msg){0}), -EPROTO);
	cr_assert_eq(n_discarded, 199);
	fixture_close(&f);
	numbered_close();
	KVX_TEST_END();
}

/* ---- no room in this process */

Test(wire_fds, frames_whose_fds_found_no_room_come_without_them)
{
	static const unsigned room[] = {0, 1, 7, 39};
	struct fixture f;

	for (unsigned i = 0; i < 4; i++) {
		struct rlimit limit;
		struct kvx_msg msg;

		numbered_open();
		many_open(&f);
		put_and_flush(&f, 40);
		limit = test_leave_fds(room[i]);
		cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
		cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
		cr_assert_eq(kvx_reader_next(f.reader, &msg), 1);
		cr_assert(msg.fds_lost);
		cr_assert_eq(msg.n_fds, 0);
		cr_assert_eq(msg.len_bytes, 1);
		kvx_msg_fini(&msg);
		put_and_flush(&f, 40); /* and the next ones with */
		cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
		expect_frame(&f, 40);
		fixture_close(&f);
		numbered_close();
		KVX_TEST_END();
	}
}

/* Small frames without fds may come in the same call as the one that loses its own. */
Test(wire_fds, only_the_frame_that_had_them_is_without)
{
	struct rlimit limit;
	struct fixture f;
	struct kvx_msg msg;

	numbered_open();
	many_open(&f);
	for (unsigned i = 0; i < 3; i++) {
		put_and_flush(&f, 0);
		put_and_flush(&f, 2);
	}
	limit = test_leave_fds(3); /* enough for one, too few for two */
	for (unsigned n = 0; n < 3 * 2 * (KVX_WIRE_HDR_BYTES + 1);) {
		int got = kvx_reader_fill(f.reader, f.sockets[1]);

		cr_assert_gt(got, 0);
		n += (unsigned)got;
	}
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	for (unsigned i = 0; i < 3; i++) {
		expect_frame(&f, 0);
		cr_assert_eq(kvx_reader_next(f.reader, &msg), 1);
		cr_assert_eq(msg.fds_lost, i > 0);
		cr_assert_eq(msg.n_fds, i > 0 ? 0 : 2);
		kvx_msg_fini(&msg);
	}
	fixture_close(&f);
	numbered_close();
	KVX_TEST_END();
}

/* What was lost still has to be announced by a frame. */
Test(wire_fds, lost_fds_that_no_frame_announced_are_an_error)
{
	struct rlimit limit;
	struct fixture f;

	numbered_open();
	many_open(&f);
	raw_frame(&f, MANY, 0, 5);
	limit = test_leave_fds(0);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	expect_frame(&f, 0);
	raw_frame(&f, MANY, 0, 0);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	cr_assert_eq(kvx_reader_next(f.reader, &(struct kvx_msg){0}), -EPROTO);
	fixture_close(&f);
	numbered_close();
	KVX_TEST_END();
}

Test(wire_fds, without_room_for_duplicates_nothing_is_queued)
{
	struct rlimit limit;
	struct fixture f;

	numbered_open();
	many_open(&f);
	limit = test_leave_fds(10);
	cr_assert_eq(kvx_writer_put(f.writer, MANY, "x", 1, numbered, 11), -EMFILE);
	cr_assert_eq(kvx_writer_pending_bytes(f.writer), 0);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	put_and_flush(&f, 11);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	expect_frame(&f, 11);
	fixture_close(&f);
	numbered_close();
	KVX_TEST_END();
}

/* ---- taken back */

Test(wire_fds, only_the_last_unsent_frame_with_fds_is_taken_back)
{
	struct fixture f;

	numbered_open();
	many_open(&f);
	cr_assert_not(kvx_writer_unput(f.writer), "there is none");
	cr_assert_eq(kvx_writer_put(f.writer, MANY, "x", 1, NULL, 0), 0);
	cr_assert_not(kvx_writer_unput(f.writer), "it has no fds");
	cr_assert_eq(kvx_writer_put(f.writer, MANY, "x", 1, numbered, 200), 0);
	cr_assert_eq(kvx_writer_put(f.writer, MANY, "x", 1, NULL, 0), 0);
	cr_assert_not(kvx_writer_unput(f.writer), "there is one behind it");
	cr_assert_eq(kvx_writer_put(f.writer, MANY, "x", 1, numbered, 100), 0);
	cr_assert(kvx_writer_unput(f.writer));
	cr_assert_not(kvx_writer_unput(f.writer));
	cr_assert_eq(kvx_writer_pending_bytes(f.writer), 3 * (KVX_WIRE_HDR_BYTES + 1));
	cr_assert_eq(kvx_writer_put(f.writer, MANY, "x", 1, numbered, 3), 0);
	cr_assert_eq(kvx_writer_flush(f.writer, f.sockets[0]), 0);
	cr_assert_not(kvx_writer_unput(f.writer), "it was sent");
	while (kvx_reader_fill(f.reader, f.sockets[1]) > 0)
		;
	expect_frame(&f, 0);
	expect_frame(&f, 200);
	expect_frame(&f, 0);
	expect_frame(&f, 3);
	cr_assert_eq(kvx_writer_put(f.writer, MANY, "x", 1, numbered, 5), 0);
	cr_assert(kvx_writer_unput(f.writer), "the only one there is");
	cr_assert_eq(kvx_writer_flush(f.writer, f.sockets[0]), 0);
	cr_assert_eq(kvx_reader_fill(f.reader, f.sockets[1]), -EAGAIN);
	fixture_close(&f);
	numbered_close();
	KVX_TEST_END();
}

/* A user may have only so many fds under way between processes. Root may have more, and with
 * another user's count no other program interferes. */
Test(wire_fds, frames_wait_while_too_many_fds_are_under_way)
{
	struct rlimit limit;
	struct fixture f;
	int err = 0;
	unsigned n = 0;

	numbered_open();
	many_open(&f);
	if (setresuid(65432, 65432, 65432) != 0)
		cr_skip_test("only root can become a user of its own");
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = 400; /* of them, 253 are those that are sent */
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	for (; err == 0 && n < 30; n++) {
		cr_assert_eq(kvx_writer_put(f.writer, MANY, "x", 1, numbered, 20), 0);
		err = kvx_writer_flush(f.writer, f.sockets[0]);
	}
	cr_assert_eq(err, -ETOOMANYREFS, "after %u frames: %d", n, err);
	cr_assert_eq(kvx_writer_pending_bytes(f.writer), KVX_WIRE_HDR_BYTES + 1);
	cr_assert(kvx_writer_unput(f.writer));
	cr_assert_eq(kvx_writer_put(f.writer, MANY, "x", 1, numbered, 20), 0);
	for (unsigned i = 0; i + 1 < n; i++) {
		cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
		expect_frame(&f, 20);
	}
	cr_assert_eq(kvx_writer_flush(f.writer, f.sockets[0]), 0);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	expect_frame(&f, 20);
	fixture_close(&f);
	numbered_close();
	KVX_TEST_END();
}

Test(wire_fds, failing_allocations_lose_no_fds)
{
	bool failed;
	unsigned n = 0;

	numbered_open();
	do {
		struct fixture f;
		int err;

		many_open(&f);
		fault_alloc_arm(++n);
		err = kvx_writer_put(f.writer, MANY, "x", 1, numbered, 100);
		if (err == 0)
			err = kvx_writer_flush(f.writer, f.sockets[0]);
		if (err == 0)
			err = fixture_drain(&f);
		failed = fault_alloc_disarm();
		cr_assert_eq(err, failed ? -ENOMEM : -EAGAIN);
		fixture_close(&f);
	} while (failed);
	cr_assert_geq(n, 5, "the sweep met no allocation");
	numbered_close();
	KVX_TEST_END();
}
