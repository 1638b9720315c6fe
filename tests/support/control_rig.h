/* Control over a real node without threads, for tests and fuzzers: clients are fake fronts that
 * keep the frames they are sent, or real sockets. Everything runs in rig_turn(). */
#ifndef KVX_CONTROL_RIG_H
#define KVX_CONTROL_RIG_H

#include "control/control_priv.h"
#include "transport/fake/fake.h"

#define RIG_FRAMES 256

struct rig {
	char dir[32];
	uv_loop_t loop;
	struct kvx_config config;
	struct kvx_timers *timers;
	struct kvx_node *node;
	struct kvx_control *control;
	uint64_t clock_ns; /* virtual; the tests move it */
	bool closed;
	unsigned n_draining; /* calls of on_draining */
};

struct rig_frame {
	uint16_t type;
	uint32_t len;
	uint8_t *body; /* malloc */
	bool has_fd;
};

struct rig_client {
	struct kvx_front front; /* first */
	struct rig *rig;
	struct kvx_client *client; /* NULL once it is destroyed */
	unsigned n_frames;
	unsigned n_dropped; /* beyond RIG_FRAMES */
	struct rig_frame frames[RIG_FRAMES];
	size_t pending_bytes; /* what the front says is unread */
	uint32_t max_body;
	bool stopped, closing;
	struct rig_client *next_closing;
};

struct rig_conf {
	const struct kvx_config *config; /* NULL: the defaults */
	struct kvx_fake_script *script;  /* rails for peers; NULL: none */
	/* On the fake one; NULL: kvx_fake_ops, and no GPUs. */
	const struct kvx_transport_ops *peer_ops, *gpu_ops;
	const struct kvx_listen_fd *listen_fds;
	unsigned n_listen_fds;
};
/* config: NULL for the defaults. */
void rig_open(struct rig *rig, const struct kvx_config *config) KVX_ON_LOOP;
void rig_open_with(struct rig *rig, const struct rig_conf *conf) KVX_ON_LOOP;
/* Another control over the rig's node, as kvx_control_open(); socket: its own place in rig->dir.
 * Closed again when it could be opened. */
int rig_try_control(struct rig *rig, const struct kvx_config *config,
		    const struct kvx_listen_fd *listen_fds, unsigned n_listen_fds,
		    struct kvx_why *why) KVX_ON_LOOP;
void rig_close(struct rig *rig) KVX_ON_LOOP; /* clients must be ended or are ended */
/* The same, and nothing of libuv is used any more in this process: it gives back its own fds. */
void rig_end(struct rig *rig) KVX_ON_LOOP;
/* Turns until nothing happens any more. */
void rig_turn(struct rig *rig) KVX_ON_LOOP;
/* Lets time pass, in steps, with a turn after each. */
void rig_run_clock(struct rig *rig, uint64_t ns) KVX_ON_LOOP;

/* A client that has not said HELLO. 0 or what kvx_client_create() says. */
int rig_client_open(struct rig *rig, struct rig_client *rc) KVX_ON_LOOP;
/* One that has, its HELLO_REPLY taken. */
void rig_client_hello(struct rig *rig, struct rig_client *rc) KVX_ON_LOOP;
/* The same, of a tenant. */
void rig_client_hello_of(struct rig *rig, struct rig_client *rc, uint32_t tenant) KVX_ON_LOOP;
/* Ends it as if its connection broke; frees its frames. */
void rig_client_close(struct rig_client *rc) KVX_ON_LOOP;
void rig_client_clear(struct rig_client *rc); /* forgets its frames */

/* Hands a frame over, with or without a file descriptor (which is taken), and turns. */
void rig_send_raw(struct rig_client *rc, uint16_t type, const void *body, uint32_t len,
		  int fd) KVX_ON_LOOP;
void rig_send(struct rig_client *rc, uint16_t type, const ProtobufCMessage *message,
	      int fd) KVX_ON_LOOP;

/* The oldest frame of that type, unpacked, and taken out; NULL: there is none. Free with
 * protobuf_c_message_free_unpacked(). */
Kvxp__Reply *rig_take_reply(struct rig_client *rc);
Kvxp__Event *rig_take_event(struct rig_client *rc, int event_type);
Kvxp__Error *rig_take_error(struct rig_client *rc);
unsigned rig_count(const struct rig_client *rc, uint16_t type);

/* A sealed memfd of len bytes that are all there. */
int rig_memfd(size_t len);
/* Registers a region of one plane "kv" of n_blocks x 4096 bytes and gives its id. */
uint64_t rig_register(struct rig_client *rc, uint32_t n_blocks, uint32_t access) KVX_ON_LOOP;
/* The descriptor of a region. */
void rig_export(struct rig_client *owner, uint64_t region, uint8_t out[KVX_DESC_BYTES]) KVX_ON_LOOP;
/* Imports owner's region and gives the id of the import. */
uint64_t rig_import(struct rig_client *rc, struct rig_client *owner, uint64_t region) KVX_ON_LOOP;

#endif
