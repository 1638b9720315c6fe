/* A property of the wire: any sequence of frames, with and without fds, through sockets of any
 * buffer size and in any interleaving of sending and receiving, comes as it was sent. */
#include "proto/kvx_wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "test_end.h"
#include "wire_fixture.h"

#define MANY_TYPE 77 /* its frames may carry many fds */

/* What was sent, to compare with what comes. */
struct sent_frame {
	uint16_t type;
	uint32_t len;
	uint8_t fill;
	unsigned n_fds;
	unsigned fd_numbers[KVX_WIRE_MAX_FDS];
};

static uint32_t random_length(void)
{
	switch (rand() % 8) {
	case 0:
		return 0;
	case 1:
		return (uint32_t)rand() % 200000;
	case 2:
		return 8192 - 16 + (uint32_t)rand() % 32;
	default:
		return (uint32_t)rand() % 300;
	}
}

static void random_put(struct kvx_writer *writer, struct sent_frame *frame)
{
	static unsigned next_number;
	static uint8_t body[200000];
	int fds[KVX_WIRE_MAX_FDS];

	*frame = (struct sent_frame){.type = (uint16_t)rand(),
				     .len = random_length(),
				     .fill = (uint8_t)rand(),
				     .n_fds = rand() % 4 != 0 ? 0 : 1 + (unsigned)rand() % 4};
	if (rand() % 16 == 0) {
		frame->type = MANY_TYPE;
		frame->n_fds = (unsigned)rand() % (KVX_WIRE_MAX_FDS + 1);
	}
	if (frame->n_fds == 0 && rand() % 2 == 0) {
		uint8_t *place = kvx_writer_reserve(writer, frame->type, frame->len);

		cr_assert_not_null(place);
		memset(place, frame->fill, frame->len);
		return;
	}
	for (unsigned i = 0; i < frame->n_fds; i++) {
		frame->fd_numbers[i] = next_number++;
		fds[i] = memfd_new(frame->fd_numbers[i]);
	}
	memset(body, frame->fill, frame->len);
	cr_assert_eq(kvx_writer_put(writer, frame->type, body, frame->len, fds, frame->n_fds), 0);
	for (unsigned i = 0; i < frame->n_fds; i++)
		close(fds[i]);
}

static void frame_check(struct kvx_msg *msg, const struct sent_frame *frame)
{
	cr_assert_eq(msg->type, frame->type);
	cr_assert_eq(msg->len_bytes, frame->len);
	cr_assert_eq(msg->n_fds, frame->n_fds);
	for (uint32_t i = 0; i < msg->len_bytes; i++)
		if (msg->body[i] != frame->fill)
			cr_assert_fail("byte %u differs", i);
	for (unsigned i = 0; i < msg->n_fds; i++)
		cr_assert_eq(memfd_number(msg->fds[i]), frame->fd_numbers[i]);
	kvx_msg_fini(msg);
}

static void random_sequence(unsigned seed, unsigned n_frames)
{
	struct sent_frame *frames = calloc(n_frames, sizeof(*frames));
	unsigned n_put = 0, n_got = 0;
	int sndbuf = 4096 << (seed % 6);
	struct fixture f;

	srand(seed);
	fixture_open(&f);
	kvx_reader_allow_fds(f.reader, MANY_TYPE);
	setsockopt(f.sockets[0], SOL_SOCKET, SO_SNDBUF, &sndbuf, sizeof(sndbuf));
	while (n_got < n_frames) {
		struct kvx_msg msg;
		int err;

		for (int i = rand() % 6; i > 0 && n_put < n_frames; i--)
			random_put(f.writer, &frames[n_put++]);
		if (rand() % 3 != 0) {
			err = kvx_writer_flush(f.writer, f.sockets[0]);
			cr_assert(err == 0 || err == -EAGAIN, "flush: %d", err);
		}
		for (int i = rand() % 4; i > 0; i--) {
			err = kvx_reader_fill(f.reader, f.sockets[1]);
			cr_assert(err > 0 || err == -EAGAIN, "fill: %d", err);
			while ((err = kvx_reader_next(f.reader, &msg)) == 1)
				frame_check(&msg, &frames[n_got++]);
			cr_assert_eq(err, 0, "seed %u frame %u: %d", seed, n_got, err);
		}
	}
	cr_assert_eq(kvx_writer_pending_bytes(f.writer), 0);
	fixture_close(&f);
	free(frames);
}

Test(wire_random, random_sequences_come_as_they_were_sent)
{
	for (unsigned seed = 1; seed <= 12; seed++)
		random_sequence(seed, 400);
	KVX_TEST_END();
}
