/* Frames with the few fds that each may carry: who closes them, and fds that lie. */
#include "proto/kvx_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "test_end.h"
#include "test_fds.h"
#include "wire_fixture.h"

Test(wire_few_fds, single_bytes_on_a_socket_keep_the_fds)
{
	struct fixture f;
	struct kvx_msg msg;
	uint8_t bytes[KVX_WIRE_HDR_BYTES + 3];
	int fd = memfd_new(42), got;

	fixture_open(&f);
	raw_header(bytes, 3, 1, 1);
	memcpy(bytes + KVX_WIRE_HDR_BYTES, "abc", 3);
	for (size_t i = 0; i < sizeof(bytes); i++) {
		test_send_fds(f.sockets[0], bytes + i, 1, &fd, i == 0 ? 1 : 0);
		cr_assert_eq(kvx_reader_fill(f.reader, f.sockets[1]), 1);
		if (i + 1 < sizeof(bytes))
			cr_assert_eq(kvx_reader_next(f.reader, &msg), 0);
	}
	cr_assert_eq(kvx_reader_next(f.reader, &msg), 1);
	cr_assert_eq(msg.n_fds, 1);
	got = kvx_msg_take_fd(&msg, 0);
	cr_assert_eq(memfd_number(got), 42);
	cr_assert(fcntl(got, F_GETFD) & FD_CLOEXEC);
	cr_assert_eq(kvx_msg_take_fd(&msg, 0), -1);
	cr_assert_eq(kvx_msg_take_fd(&msg, 1), -1);
	kvx_msg_fini(&msg);
	close(got);
	close(fd);
	fixture_close(&f);
	KVX_TEST_END();
}

Test(wire_few_fds, untaken_fds_are_closed_with_the_message_and_the_reader)
{
	struct fixture f;
	struct kvx_msg msg;
	int fds[2] = {memfd_new(1), memfd_new(2)};

	fixture_open(&f);
	for (unsigned i = 0; i < 2; i++) {
		cr_assert_eq(kvx_writer_put(f.writer, 9, "x", 1, fds, 2), 0);
		cr_assert_eq(kvx_writer_flush(f.writer, f.sockets[0]), 0);
		cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	}
	cr_assert_eq(kvx_reader_next(f.reader, &msg), 1);
	kvx_msg_fini(&msg);
	close(fds[0]);
	close(fds[1]);
	fixture_close(&f); /* the second frame was never taken */
	KVX_TEST_END();
}

static void discard_count(void *arg, int fd)
{
	++*(unsigned *)arg;
	close(fd);
}

/* Also those of a call that brought more than any frame may carry: none is closed on the way. */
Test(wire_few_fds, fds_that_no_message_took_go_to_who_wants_them)
{
	struct fixture f;
	uint8_t bytes[KVX_WIRE_HDR_BYTES];
	unsigned n_discarded = 0;
	int fds[200];

	fixture_open(&f);
	kvx_reader_set_discard(f.reader, discard_count, &n_discarded);
	for (unsigned i = 0; i < 200; i++)
		fds[i] = memfd_new(i);
	cr_assert_eq(kvx_writer_put(f.writer, 9, "x", 1, fds, 2), 0);
	cr_assert_eq(kvx_writer_flush(f.writer, f.sockets[0]), 0);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	raw_header(bytes, 0, 1, KVX_WIRE_FEW_FDS);
	test_send_fds(f.sockets[0], bytes, sizeof(bytes), fds, 200);
	cr_assert_eq(kvx_reader_fill(f.reader, f.sockets[1]), -EPROTO);
	cr_assert_eq(n_discarded, 202);
	for (unsigned i = 0; i < 200; i++)
		close(fds[i]);
	fixture_close(&f);
	KVX_TEST_END();
}

Test(wire_few_fds, queued_fds_are_closed_with_the_writer)
{
	struct fixture f;
	int fd = memfd_new(1);

	fixture_open(&f);
	cr_assert_eq(kvx_writer_put(f.writer, 9, "x", 1, &fd, 1), 0);
	cr_assert_eq(kvx_writer_pending_bytes(f.writer), KVX_WIRE_HDR_BYTES + 1);
	close(fd);
	fixture_close(&f);
	KVX_TEST_END();
}

Test(wire_few_fds, more_fds_than_a_frame_may_carry_are_all_closed)
{
	for (unsigned n = KVX_WIRE_FEW_FDS + 1; n <= 16; n++) {
		struct fixture f;
		struct kvx_msg msg;
		uint8_t bytes[KVX_WIRE_HDR_BYTES];
		int fds[16];

		fixture_open(&f);
		for (unsigned i = 0; i < n; i++)
			fds[i] = memfd_new(i);
		raw_header(bytes, 0, 1, KVX_WIRE_FEW_FDS);
		test_send_fds(f.sockets[0], bytes, sizeof(bytes), fds, n);
		cr_assert_eq(kvx_reader_fill(f.reader, f.sockets[1]), -EPROTO, "%u fds", n);
		cr_assert_eq(kvx_reader_next(f.reader, &msg), -EPROTO);
		cr_assert_eq(kvx_reader_fill(f.reader, f.sockets[1]), -EPROTO);
		for (unsigned i = 0; i < n; i++)
			close(fds[i]);
		/* before the reader is destroyed: nothing waits for that */
		close(f.sockets[0]);
		close(f.sockets[1]);
		kvx_writer_destroy(f.writer);
		KVX_TEST_END();
		kvx_reader_destroy(f.reader);
	}
	KVX_TEST_END();
}

Test(wire_few_fds, announced_fds_that_did_not_come_are_an_error)
{
	struct fixture f;
	struct kvx_msg msg;
	uint8_t bytes[KVX_WIRE_HDR_BYTES];
	int fd = memfd_new(1);

	fixture_open(&f);
	raw_header(bytes, 0, 1, 2);
	test_send_fds(f.sockets[0], bytes, sizeof(bytes), &fd, 1);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	cr_assert_eq(kvx_reader_next(f.reader, &msg), -EPROTO);
	close(fd);
	fixture_close(&f);
	KVX_TEST_END();
}

Test(wire_few_fds, fds_that_no_frame_announced_are_not_given_to_the_next)
{
	struct fixture f;
	struct kvx_msg msg;
	uint8_t bytes[KVX_WIRE_HDR_BYTES];
	int fd = memfd_new(1);

	fixture_open(&f);
	raw_header(bytes, 0, 1, 0);
	test_send_fds(f.sockets[0], bytes, sizeof(bytes), &fd, 1);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	cr_assert_eq(kvx_reader_next(f.reader, &msg), 1);
	kvx_msg_fini(&msg);
	raw_header(bytes, 0, 1, 1);
	test_send_fds(f.sockets[0], bytes, sizeof(bytes), NULL, 0);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	cr_assert_eq(kvx_reader_next(f.reader, &msg), -EPROTO);
	close(fd);
	fixture_close(&f);
	KVX_TEST_END();
}

Test(wire_few_fds, fds_that_come_late_are_an_error)
{
	struct fixture f;
	struct kvx_msg msg;
	uint8_t bytes[KVX_WIRE_HDR_BYTES + 1];
	int fd = memfd_new(1);

	fixture_open(&f);
	raw_header(bytes, 1, 1, 1);
	test_send_fds(f.sockets[0], bytes, KVX_WIRE_HDR_BYTES, NULL, 0);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	test_send_fds(f.sockets[0], bytes, 1, &fd, 1);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	cr_assert_eq(kvx_reader_next(f.reader, &msg), -EPROTO);
	close(fd);
	fixture_close(&f);
	KVX_TEST_END();
}

Test(wire_few_fds, too_many_announced_fds_are_refused_by_the_header)
{
	struct kvx_reader *reader;
	struct kvx_msg msg;
	uint8_t bytes[KVX_WIRE_HDR_BYTES];

	raw_header(bytes, 0, 1, KVX_WIRE_FEW_FDS + 1);
	cr_assert_eq(kvx_reader_create(100, &reader), 0);
	cr_assert_eq(kvx_reader_feed(reader, bytes, sizeof(bytes)), 0);
	cr_assert_eq(kvx_reader_next(reader, &msg), -EPROTO);
	cr_assert_eq(kvx_reader_next(reader, &msg), -EPROTO);
	kvx_reader_destroy(reader);
	KVX_TEST_END();
}

Test(wire_few_fds, writer_refuses_bad_fds)
{
	struct fixture f;
	int fd = memfd_new(1), bad[2] = {fd, -1};

	fixture_open(&f);
	cr_assert_eq(kvx_writer_put(f.writer, 1, "", 0, bad, 2), -EBADF);
	cr_assert_eq(kvx_writer_pending_bytes(f.writer), 0);
	cr_assert_eq(kvx_writer_flush(f.writer, f.sockets[0]), 0);
	close(fd);
	fixture_close(&f);
	KVX_TEST_END();
}
