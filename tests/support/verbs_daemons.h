/* Two whole daemons in this process on the stand-in for libibverbs, devices "fake0" and "fake1",
 * joined by a TCP connection on 127.0.0.1; and an engine in a process of its own, that begins when
 * both listen. One loop, the caller's thread. Ends when the engine has. */
#ifndef KVX_VERBS_DAEMONS_H
#define KVX_VERBS_DAEMONS_H

#include <sys/types.h>
#include <uv.h>

#include "base/roles.h"
#include "daemon.h"
#include "fake_verbs.h"

#define VERBS_DAEMONS_DIR "/tmp/kvx-daemons-XXXXXX"

struct verbs_daemons {
	char dir[sizeof(VERBS_DAEMONS_DIR)]; /* sockets "0" and "1" are in it */
	uv_loop_t loop;
	struct kvx_daemon *daemons[2];
	unsigned n_closed;
	uv_pipe_t from_engine; /* what it writes to its mark_fd */
	int mark_fd, ack_fd;   /* the daemons' ends */
	int engine_mark_fd, engine_ack_fd;
	char buf[1];
	void (*on_mark)(struct verbs_daemons *d, char mark); /* the engine wrote a byte */
	void *arg;
};

/* The folder and the pipes: before the engine is forked. */
void verbs_daemons_prepare(struct verbs_daemons *d);
/* In the engine's process: waits until both daemons listen. */
void verbs_daemons_wait(int engine_ack_fd);
const char *verbs_daemons_socket(const char *dir, unsigned i, char path[64]); /* of a daemon */
/* tune changes the configuration of daemon i; NULL: as it is. Devices are added before. */
void verbs_daemons_open(struct verbs_daemons *d,
			void (*tune)(struct kvx_config *config, unsigned i)) KVX_ON_LOOP;
/* Until the engine has closed its mark_fd and both daemons have ended. */
void verbs_daemons_run(struct verbs_daemons *d) KVX_ON_LOOP;

#endif
