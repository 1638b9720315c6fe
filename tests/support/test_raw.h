/* A client without the library: frames by hand, so that a test can say what the library never
 * would. */
#ifndef KVX_TEST_RAW_H
#define KVX_TEST_RAW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvxfer.pb-c.h"
#include "proto/kvx_wire.h"
#include "test_node.h"

struct test_raw {
	int fd;
	struct kvx_reader *reader;
};

void test_raw_connect(struct test_raw *raw, const struct test_node *node);
/* connect and HELLO with the current version; asserts that it is accepted. */
void test_raw_open(struct test_raw *raw, const struct test_node *node);
void test_raw_close(struct test_raw *raw);
/* A frame of one message; fds may be NULL. */
void test_raw_send(struct test_raw *raw, uint16_t type, const ProtobufCMessage *message,
		   const int *fds, unsigned n_fds);
void test_raw_send_bytes(struct test_raw *raw, const void *bytes, size_t len);
/* Waits for the next frame: its type, or 0 at the end of the stream, or -1 after timeout_ms. The
 * body is copied to buf. */
int test_raw_recv(struct test_raw *raw, int timeout_ms, void *buf, size_t buf_bytes,
		  size_t *out_len);
/* Waits for REPLY and gives its status and text; fails the test on anything else but events. */
uint32_t test_raw_reply(struct test_raw *raw, char *text, size_t text_bytes);
/* Waits for ERROR and the end of the stream; gives the status. */
uint32_t test_raw_error(struct test_raw *raw, char *text, size_t text_bytes);
/* Does the daemon close the connection within timeout_ms? Frames before are skipped. */
bool test_raw_closed(struct test_raw *raw, int timeout_ms);

#endif
