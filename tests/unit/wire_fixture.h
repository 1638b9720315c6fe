/* A writer and a reader on the two ends of a Unix socket, and fds that can be told apart. */
#ifndef KVX_WIRE_FIXTURE_H
#define KVX_WIRE_FIXTURE_H

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/kvx_wire.h"
#include "test_end.h"

#define MAX_BODY (1u << 20)

struct fixture {
	int sockets[2];
	struct kvx_writer *writer; /* sends on sockets[0] */
	struct kvx_reader *reader; /* reads from sockets[1] */
};

static inline void fixture_open(struct fixture *f)
{
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, f->sockets), 0);
	cr_assert_eq(kvx_writer_create(&f->writer), 0);
	cr_assert_eq(kvx_reader_create(MAX_BODY, &f->reader), 0);
}

static inline void fixture_close(struct fixture *f)
{
	kvx_writer_destroy(f->writer);
	kvx_reader_destroy(f->reader);
	close(f->sockets[0]);
	close(f->sockets[1]);
}

static inline int memfd_new(unsigned number)
{
	int fd = memfd_create("kvx-test", MFD_CLOEXEC);

	cr_assert_geq(fd, 0);
	cr_assert_eq(write(fd, &number, sizeof(number)), sizeof(number));
	return fd;
}

static inline unsigned memfd_number(int fd)
{
	unsigned number = 0;

	cr_assert_eq(pread(fd, &number, sizeof(number), 0), sizeof(number));
	return number;
}

static inline void raw_header(uint8_t out[KVX_WIRE_HDR_BYTES], uint32_t len, uint16_t type,
			      uint16_t n_fds)
{
	kvx_wire_hdr_pack(&(struct kvx_wire_hdr){len, type, n_fds}, out);
}

/* Reads and drops all that comes; what the last read said. */
static inline int fixture_drain(struct fixture *f)
{
	struct kvx_msg msg;
	int err;

	while ((err = kvx_reader_fill(f->reader, f->sockets[1])) > 0)
		while (kvx_reader_next(f->reader, &msg) == 1)
			kvx_msg_fini(&msg);
	return err;
}

#endif
