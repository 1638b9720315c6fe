/* A daemon for tests of the client library: a thread that listens on an abstract socket, speaks the
 * protocol through the real frames, and answers every request plainly unless the test's hook
 * answers first. One connection at a time, one after the other, until it is stopped.
 *
 * A broken expectation inside the thread aborts the test's process. */
#ifndef KVX_FAKE_DAEMON_H
#define KVX_FAKE_DAEMON_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvxfer.pb-c.h"
#include "proto/kvx_wire.h"

#define FAKE_BYTES_PER_TRANSFER 4096u

enum fake_answer {
	FAKE_DEFAULT, /* the plain answer */
	FAKE_DONE,    /* the hook has answered, or means silence */
	FAKE_HANG_UP  /* the connection is closed without a word */
};

struct fake_daemon;
/* Called in the daemon's thread for each frame but HELLO, and for HELLO with type FRAME_HELLO. */
typedef enum fake_answer (*fake_hook)(struct fake_daemon *d, uint16_t type);

struct fake_daemon {
	/* set before start, or left 0 */
	fake_hook hook;
	void *arg;
	int pidfd;              /* sent with HELLO_REPLY; 0 or -1: none */
	Kvxp__HelloReply hello; /* filled with usual limits by fake_daemon_init() */
	const Kvxp__Layout *import_layout;
	uint64_t import_bytes;
	/* for hooks: the frame */
	const uint8_t *body;
	uint32_t len_bytes;
	int fds[KVX_WIRE_MAX_FDS]; /* taken over: -1 it to keep it */
	unsigned n_fds;
	bool fds_lost; /* this process had no room for them */
	/* seen so far; any thread */
	_Atomic unsigned n_frames[128];
	_Atomic unsigned n_connections;
	/* its own */
	char path[64]; /* for kvxfer_client_options.socket_path */
	int listen_fd, stop_fd, conn;
	uint64_t next_id;
	struct kvx_reader *reader;
	pthread_t thread;
};

void fake_daemon_init(struct fake_daemon *d);
void fake_daemon_start(struct fake_daemon *d);
void fake_daemon_stop(struct fake_daemon *d);
/* The same in a process of its own, whose allocations and time are not the test's. */
int fake_daemon_fork(struct fake_daemon *d); /* its pid */
void fake_daemon_reap(int pid);

/* For hooks. */
void fake_send(struct fake_daemon *d, uint16_t type, const ProtobufCMessage *message, int fd);
void fake_send_bytes(struct fake_daemon *d, const void *bytes, size_t len);
void fake_reply(struct fake_daemon *d, uint32_t request_id, uint32_t status, const char *text,
		uint64_t id);
void fake_error(struct fake_daemon *d, uint32_t status, const char *text);
void fake_terminal(struct fake_daemon *d, uint64_t xfer, uint32_t status);
/* An event of this type for this region with tag and payload text. */
void fake_event(struct fake_daemon *d, Kvxp__EventType type, uint64_t id, uint64_t tag,
		const char *payload);
/* request_id of the frame: field 1 of every set-up request. */
uint32_t fake_request_id(const struct fake_daemon *d);
/* The plain answer, from inside a hook that wants to say more after it. */
void fake_answer_plainly(struct fake_daemon *d, uint16_t type);

/* A process that does nothing, whose pidfd stands for the daemon's; kill ends it. */
struct fake_process {
	int pid, pidfd;
};
void fake_process_start(struct fake_process *p);
void fake_process_kill(struct fake_process *p); /* its pidfd stays open, and is readable after */
void fake_process_fini(struct fake_process *p);

#endif
