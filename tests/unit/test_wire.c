/* Frames over real socket pairs: pieces, limits, buffers, and TCP. */
#include "proto/kvx_wire.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fault_alloc.h"
#include "test_end.h"
#include "test_fds.h"
#include "wire_fixture.h"

Test(wire, header_is_little_endian)
{
	struct kvx_wire_hdr in = {.len_bytes = 0x04030201, .type = 0x0605, .n_fds = 0x0807}, out;
	uint8_t bytes[KVX_WIRE_HDR_BYTES];

	kvx_wire_hdr_pack(&in, bytes);
	for (uint8_t i = 0; i < sizeof(bytes); i++)
		cr_assert_eq(bytes[i], i + 1);
	kvx_wire_hdr_unpack(bytes, &out);
	cr_assert_eq(out.len_bytes, in.len_bytes);
	cr_assert_eq(out.type, in.type);
	cr_assert_eq(out.n_fds, in.n_fds);
	KVX_TEST_END();
}

Test(wire, frame_comes_whole_from_single_bytes)
{
	struct kvx_reader *reader;
	struct kvx_msg msg;
	uint8_t bytes[KVX_WIRE_HDR_BYTES + 5];

	raw_header(bytes, 5, 77, 0);
	memcpy(bytes + KVX_WIRE_HDR_BYTES, "hello", 5);
	cr_assert_eq(kvx_reader_create(100, &reader), 0);
	for (unsigned round = 0; round < 3; round++) {
		for (size_t i = 0; i < sizeof(bytes); i++) {
			cr_assert_eq(kvx_reader_next(reader, &msg), 0);
			cr_assert_eq(kvx_reader_feed(reader, bytes + i, 1), 0);
		}
		cr_assert_eq(kvx_reader_next(reader, &msg), 1);
		cr_assert_eq(msg.type, 77);
		cr_assert_eq(msg.len_bytes, 5);
		cr_assert_eq(msg.n_fds, 0);
		cr_assert_arr_eq(msg.body, "hello", 5);
		kvx_msg_fini(&msg);
	}
	kvx_reader_destroy(reader);
	KVX_TEST_END();
}

Test(wire, empty_socket_says_again_and_closed_one_says_end)
{
	struct fixture f;

	fixture_open(&f);
	cr_assert_eq(kvx_reader_fill(f.reader, f.sockets[1]), -EAGAIN);
	shutdown(f.sockets[0], SHUT_WR);
	cr_assert_eq(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	cr_assert_eq(kvx_reader_fill(f.reader, -1), -EBADF);
	fixture_close(&f);
	KVX_TEST_END();
}

Test(wire, over_long_frame_is_refused_before_memory_is_made_for_it)
{
	struct fixture f;
	struct kvx_msg msg;
	uint8_t bytes[KVX_WIRE_HDR_BYTES];

	fixture_open(&f);
	raw_header(bytes, 0xfffffff0, 1, 0);
	test_send_fds(f.sockets[0], bytes, sizeof(bytes), NULL, 0);
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	fault_alloc_arm(UINT32_MAX);
	cr_assert_eq(kvx_reader_fill(f.reader, f.sockets[1]), -EMSGSIZE);
	cr_assert_eq(kvx_reader_next(f.reader, &msg), -EMSGSIZE);
	cr_assert_eq(fault_alloc_count(), 0);
	fault_alloc_disarm();
	fixture_close(&f);
	KVX_TEST_END();
}

Test(wire, limit_can_be_raised)
{
	struct kvx_reader *reader;
	struct kvx_msg msg;
	uint8_t bytes[KVX_WIRE_HDR_BYTES + 20] = {0};

	raw_header(bytes, 20, 1, 0);
	cr_assert_eq(kvx_reader_create(10, &reader), 0);
	kvx_reader_set_max(reader, 20);
	cr_assert_eq(kvx_reader_feed(reader, bytes, sizeof(bytes)), 0);
	cr_assert_eq(kvx_reader_next(reader, &msg), 1);
	kvx_reader_destroy(reader);
	KVX_TEST_END();
}

Test(wire, writer_reports_a_closed_socket_without_a_signal)
{
	struct fixture f;

	fixture_open(&f);
	shutdown(f.sockets[1], SHUT_RD);
	cr_assert_eq(kvx_writer_put(f.writer, 1, "x", 1, NULL, 0), 0);
	cr_assert_eq(kvx_writer_flush(f.writer, f.sockets[0]), -EPIPE);
	fixture_close(&f);
	KVX_TEST_END();
}

Test(wire, small_frames_go_out_together)
{
	struct fixture f;
	uint8_t bytes[8192];

	fixture_open(&f);
	for (unsigned i = 0; i < 100; i++)
		cr_assert_eq(kvx_writer_put(f.writer, 1, "abcd", 4, NULL, 0), 0);
	cr_assert_eq(kvx_writer_pending_bytes(f.writer), 1200);
	cr_assert_eq(kvx_writer_flush(f.writer, f.sockets[0]), 0);
	cr_assert_eq(kvx_writer_pending_bytes(f.writer), 0);
	cr_assert_eq(recv(f.sockets[1], bytes, sizeof(bytes), 0), 1200);
	fixture_close(&f);
	KVX_TEST_END();
}

Test(wire, full_socket_keeps_the_rest)
{
	enum { BODY = 400000, N = 5 };
	struct fixture f;
	struct kvx_msg msg;
	unsigned n_got = 0;
	int err;

	fixture_open(&f);
	for (unsigned i = 0; i < N; i++) {
		uint8_t *place = kvx_writer_reserve(f.writer, (uint16_t)i, BODY);

		cr_assert_not_null(place);
		memset(place, (int)i + 1, BODY);
	}
	cr_assert_eq(kvx_writer_flush(f.writer, f.sockets[0]), -EAGAIN);
	cr_assert_gt(kvx_writer_pending_bytes(f.writer), 0);
	do {
		err = kvx_writer_flush(f.writer, f.sockets[0]);
		cr_assert(err == 0 || err == -EAGAIN);
		while (kvx_reader_fill(f.reader, f.sockets[1]) > 0)
			for (; kvx_reader_next(f.reader, &msg) == 1; n_got++) {
				cr_assert_eq(msg.type, n_got);
				cr_assert_eq(msg.len_bytes, BODY);
				cr_assert_eq(msg.body[0], n_got + 1);
				cr_assert_eq(msg.body[BODY - 1], n_got + 1);
			}
	} while (n_got < N);
	cr_assert_eq(err, 0);
	fixture_close(&f);
	KVX_TEST_END();
}

Test(wire, reader_gives_the_large_buffer_back)
{
	struct fixture f;

	fixture_open(&f);
	fault_alloc_arm(UINT32_MAX);
	for (unsigned i = 0; i < 200; i++) {
		cr_assert_eq(kvx_writer_put(f.writer, 1, "x", 1, NULL, 0), 0);
		if (i == 3)
			cr_assert_not_null(
			    memset(kvx_writer_reserve(f.writer, 2, 100000), 0, 100000));
		do {
			int err = kvx_writer_flush(f.writer, f.sockets[0]);

			cr_assert(err == 0 || err == -EAGAIN);
			fixture_drain(&f);
		} while (kvx_writer_pending_bytes(f.writer) > 0);
		if (i == 10)
			fault_alloc_arm(UINT32_MAX);
	}
	cr_assert_eq(fault_alloc_count(), 1,
		     "one realloc gives the buffer back, then nothing moves");
	fault_alloc_disarm();
	fixture_close(&f);
	KVX_TEST_END();
}

Test(wire, whole_frames_must_be_taken_before_more_is_read)
{
	struct fixture f;
	struct kvx_msg msg;
	int n = 0;

	fixture_open(&f);
	for (unsigned i = 0; i < 3000; i++)
		cr_assert_eq(kvx_writer_put(f.writer, 1, "0123456789", 10, NULL, 0), 0);
	cr_assert_eq(kvx_writer_flush(f.writer, f.sockets[0]), 0);
	while (n >= 0)
		n = kvx_reader_fill(f.reader, f.sockets[1]);
	cr_assert_eq(n, -ENOBUFS);
	cr_assert_eq(kvx_reader_next(f.reader, &msg), 1);
	while (kvx_reader_next(f.reader, &msg) == 1)
		;
	cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	fixture_close(&f);
	KVX_TEST_END();
}

/* A connected pair of TCP sockets on loopback. */
static void tcp_pair(int out_sockets[2])
{
	struct sockaddr_in addr = {.sin_family = AF_INET,
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(addr);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	cr_assert_eq(bind(listener, (struct sockaddr *)&addr, len), 0);
	cr_assert_eq(listen(listener, 1), 0);
	cr_assert_eq(getsockname(listener, (struct sockaddr *)&addr, &len), 0);
	out_sockets[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert_eq(connect(out_sockets[0], (struct sockaddr *)&addr, len), 0);
	out_sockets[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	cr_assert_geq(out_sockets[1], 0);
	close(listener);
}

static void fixture_wait(const struct fixture *f)
{
	struct pollfd pollfd = {.fd = f->sockets[1], .events = POLLIN};

	cr_assert_eq(poll(&pollfd, 1, 10000), 1);
}

Test(wire, tcp_carries_frames_but_no_fds)
{
	struct fixture f;
	struct kvx_msg msg;
	int fd = memfd_new(1), err;

	fixture_open(&f);
	close(f.sockets[0]);
	close(f.sockets[1]);
	tcp_pair(f.sockets);
	for (uint16_t i = 0; i < 100; i++)
		cr_assert_eq(kvx_writer_put(f.writer, i, &i, sizeof(i), NULL, 0), 0);
	cr_assert_eq(kvx_writer_put(f.writer, 100, NULL, 0, &fd, 1), 0);
	cr_assert_eq(kvx_writer_flush(f.writer, f.sockets[0]), 0);
	for (uint16_t i = 0; i < 100; i++) {
		while ((err = kvx_reader_next(f.reader, &msg)) == 0) {
			fixture_wait(&f);
			cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
		}
		cr_assert_eq(err, 1);
		cr_assert_eq(msg.type, i);
		cr_assert_arr_eq(msg.body, &i, sizeof(i));
	}
	while ((err = kvx_reader_next(f.reader, &msg)) == 0) {
		fixture_wait(&f);
		cr_assert_gt(kvx_reader_fill(f.reader, f.sockets[1]), 0);
	}
	cr_assert_eq(err, -EPROTO);
	close(fd);
	fixture_close(&f);
	KVX_TEST_END();
}

Test(wire, failing_allocations_are_reported_and_leave_nothing)
{
	int fd = memfd_new(1), err = 0;
	bool failed;
	unsigned n = 0;

	do {
		struct fixture f = {.sockets = {-1, -1}};
		static uint8_t body[50000];

		cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, f.sockets), 0);
		fault_alloc_arm(++n);
		err = kvx_writer_create(&f.writer);
		if (err == 0)
			err = kvx_reader_create(MAX_BODY, &f.reader);
		if (err == 0)
			err = kvx_writer_put(f.writer, 1, "abc", 3, &fd, 1);
		if (err == 0)
			err = kvx_writer_put(f.writer, 2, body, sizeof(body), &fd, 1);
		if (err == 0)
			err = kvx_writer_flush(f.writer, f.sockets[0]);
		if (err == 0)
			err = fixture_drain(&f);
		failed = fault_alloc_disarm();
		cr_assert_eq(err, failed ? -ENOMEM : -EAGAIN);
		fixture_close(&f);
	} while (failed);
	cr_assert_geq(n, 6, "the sweep met no allocation");
	close(fd);
	KVX_TEST_END();
}
