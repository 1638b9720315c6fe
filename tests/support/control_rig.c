/* Builds and moves a control without threads and, for its clients, without sockets. Aborts when its
 * own steps fail, so that fuzzers can use it too. */
#include "control_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"

#define MUST(cond)                                                                                 \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			fprintf(stderr, "control_rig: %s:%d: %s\n", __FILE__, __LINE__, #cond);    \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* ---- the fake front */

static struct rig_client *rig_client_of(const struct kvx_front *front)
{
	return (struct rig_client *)(uintptr_t)front;
}

static uint8_t *front_reserve(struct kvx_front *front, uint16_t type, uint32_t body_bytes)
{
	struct rig_client *rc = rig_client_of(front);
	struct rig_frame *frame;

	if (rc->n_frames == RIG_FRAMES) { /* the newest is overwritten */
		rc->n_dropped++;
		free(rc->frames[--rc->n_frames].body);
	}
	frame = &rc->frames[rc->n_frames++];
	*frame = (struct rig_frame){.type = type, .len = body_bytes};
	frame->body = calloc(1, (size_t)body_bytes + 1);
	if (frame->body == NULL) /* tests make it fail */
		rc->n_frames--;
	return frame->body;
}

static int front_put_fd(struct kvx_front *front, uint16_t type, const void *body,
			uint32_t body_bytes, int fd)
{
	struct rig_client *rc = rig_client_of(front);

	uint8_t *room = front_reserve(front, type, body_bytes);

	if (room == NULL)
		return -ENOMEM;
	memcpy(room, body, body_bytes);
	rc->frames[rc->n_frames - 1].has_fd = fd >= 0;
	return 0;
}

static size_t front_pending_bytes(const struct kvx_front *front)
{
	return rig_client_of(front)->pending_bytes;
}

static void front_set_max(struct kvx_front *front, uint32_t max_body_bytes)
{
	rig_client_of(front)->max_body = max_body_bytes;
}

static void front_stop(struct kvx_front *front)
{
	rig_client_of(front)->stopped = true;
}

static void front_close(struct kvx_front *front)
{
	rig_client_of(front)->closing = true; /* destroyed by the next turn */
}

static const struct kvx_front_ops rig_front_ops = {
    .reserve = front_reserve,
    .put_fd = front_put_fd,
    .pending_bytes = front_pending_bytes,
    .set_max = front_set_max,
    .stop = front_stop,
    .close = front_close,
};

/* ---- the rig */

static uint64_t rig_clock(void *arg)
{
	return ((struct rig *)arg)->clock_ns;
}

static void rig_on_terminal(void *arg, const struct kvx_xfer_end *end)
{
	kvx_assert_on_loop();
	kvx_control_on_terminal(((struct rig *)arg)->control, end);
}

static void rig_on_arrival(void *arg, const struct kvx_arrival *arrival)
{
	kvx_assert_on_loop();
	kvx_control_on_arrival(((struct rig *)arg)->control, arrival);
}

static void rig_on_draining(void *arg, bool draining)
{
	((struct rig *)arg)->n_draining++;
}

static KVX_ON_LOOP void rig_open_node(struct rig *rig, const struct rig_conf *rig_conf)
{
	struct kvx_node_conf conf = {
	    .epoch = 77,
	    .timers = rig->timers,
	    .copy_workers = 1,
	    .copy_inline_max_bytes = rig->config.copy_inline_max_bytes,
	    .quantum_bytes = rig->config.quantum_bytes,
	    .n_batches = 64,
	    .dom = {.copy_nt_min_bytes = UINT64_MAX, .mem_kinds = 1u << KVX_MEM_HOST},
	    .region_limits = {.max_regions = rig->config.regions,
			      .max_regions_per_client = rig->config.regions_per_client,
			      .max_bytes = rig->config.bytes,
			      .max_bytes_per_client = rig->config.bytes_per_client,
			      .max_gpu_bytes = UINT64_MAX},
	    .xfers = {.max_xfers = UINT32_MAX,
		      .default_deadline_ns = rig->config.deadline_ms * KVX_MS,
		      .fence_bound_ns = rig->config.fence_bound_ms * KVX_MS,
		      .history = 8,
		      .arg = rig,
		      .on_terminal = rig_on_terminal,
		      .on_arrival = rig_on_arrival},
	};
	struct kvx_why why = {""};

	if (rig_conf->script != NULL) {
		conf.peer_ops[0] = rig_conf->peer_ops != NULL ? rig_conf->peer_ops : &kvx_fake_ops;
		conf.gpu_ops = rig_conf->gpu_ops;
		conf.dom.test = rig_conf->script;
	}
	memset(conf.node_id, 0x4e, sizeof(conf.node_id));
	MUST(kvx_node_open(&conf, &rig->node, &why) == 0);
}

static void rig_fill_control(struct rig *rig, struct kvx_control_conf *conf)
{
	*conf = (struct kvx_control_conf){
	    .loop = &rig->loop,
	    .timers = rig->timers,
	    .node = rig->node,
	    .config = &rig->config,
	    .epoch = 77,
	    .version = "test",
	    .arg = rig,
	    .on_draining = rig_on_draining,
	};
	memset(conf->node_id, 0x4e, sizeof(conf->node_id));
}

void rig_open(struct rig *rig, const struct kvx_config *config)
{
	rig_open_with(rig, &(struct rig_conf){.config = config});
}

void rig_open_with(struct rig *rig, const struct rig_conf *rig_conf)
{
	const struct kvx_config *config = rig_conf->config;
	struct kvx_control_conf conf;
	struct kvx_why why = {""};

	memset(rig, 0, sizeof(*rig));
	kvx_role_set_loop();
	kvx_role_set_worker(); /* its workers are pumped here */
	snprintf(rig->dir, sizeof(rig->dir), "/tmp/kvxrig-XXXXXX");
	MUST(mkdtemp(rig->dir) != NULL);
	kvx_config_defaults(&rig->config);
	if (config != NULL)
		rig->config = *config;
	snprintf(rig->config.socket, sizeof(rig->config.socket), "%s/s", rig->dir);
	MUST(kvx_config_finish(&rig->config, &why) == 0);
	rig->clock_ns = KVX_SEC;
	MUST(uv_loop_init(&rig->loop) == 0);
	MUST(kvx_timers_create(rig_clock, rig, &rig->timers) == 0);
	rig_open_node(rig, rig_conf);
	rig_fill_control(rig, &conf);
	conf.listen_fds = rig_conf->listen_fds;
	conf.n_listen_fds = rig_conf->n_listen_fds;
	MUST(kvx_control_open(&conf, &rig->control, &why) == 0);
}

static void rig_on_closed(void *arg)
{
	((struct rig *)arg)->closed = true;
}

static void other_on_closed(void *arg)
{
	*(bool *)arg = true;
}

int rig_try_control(struct rig *rig, const struct kvx_config *config,
		    const struct kvx_listen_fd *listen_fds, unsigned n_listen_fds,
		    struct kvx_why *why)
{
	struct kvx_config own = *config;
	struct kvx_control_conf conf;
	struct kvx_control *control;
	bool closed = false;
	int err;

	snprintf(own.socket, sizeof(own.socket), "%s/other", rig->dir);
	MUST(kvx_config_finish(&own, why) == 0);
	rig_fill_control(rig, &conf);
	conf.config = &own;
	conf.listen_fds = listen_fds;
	conf.n_listen_fds = n_listen_fds;
	err = kvx_control_open(&conf, &control, why);
	if (err < 0)
		return err;
	kvx_control_close(control, other_on_closed, &closed);
	rig_turn(rig);
	MUST(closed);
	return 0;
}

void rig_turn(struct rig *rig)
{
	unsigned quiet = 0;

	while (quiet < 3) {
		bool did = kvx_timers_run(rig->timers) > 0;

		did |= kvx_node_pump(rig->node);
		if (!rig->closed)
			kvx_control_settle(rig->control);
		uv_run(&rig->loop, UV_RUN_NOWAIT);
		quiet = did ? 0 : quiet + 1;
	}
}

void rig_run_clock(struct rig *rig, uint64_t ns)
{
	const uint64_t step_ns = 10 * KVX_MS;

	for (uint64_t left = ns; left > 0; left -= left < step_ns ? left : step_ns) {
		rig->clock_ns += left < step_ns ? left : step_ns;
		rig_turn(rig);
	}
}

void rig_close(struct rig *rig)
{
	kvx_control_close(rig->control, rig_on_closed, rig);
	rig_turn(rig);
	MUST(rig->closed);
	kvx_node_close(rig->node);
	kvx_timers_destroy(rig->timers);
	MUST(uv_loop_close(&rig->loop) == 0);
	MUST(rmdir(rig->dir) == 0); /* the socket and its lock are gone */
}

void rig_end(struct rig *rig)
{
	rig_close(rig);
	uv_library_shutdown();
}

/* ---- clients */

static KVX_ON_LOOP int client_open_of(struct rig *rig, struct rig_client *rc, uint32_t tenant)
{
	const struct kvx_client_origin origin = {
	    .tenant = tenant, .uid = getuid(), .pid = getpid()};

	memset(rc, 0, sizeof(*rc));
	rc->front.ops = &rig_front_ops;
	rc->rig = rig;
	rc->max_body = KVX_HELLO_FRAME_BYTES;
	return kvx_client_create(rig->control, &rc->front, &origin, &rc->client);
}

int rig_client_open(struct rig *rig, struct rig_client *rc)
{
	return client_open_of(rig, rc, 0);
}

void rig_client_clear(struct rig_client *rc)
{
	while (rc->n_frames > 0)
		free(rc->frames[--rc->n_frames].body);
}

/* A closing front goes once its client is let go by control. */
static KVX_ON_LOOP void rig_client_reap(struct rig_client *rc)
{
	if (rc->client == NULL || !rc->closing)
		return;
	kvx_client_destroy(rc->client);
	rc->client = NULL;
}

void rig_client_close(struct rig_client *rc)
{
	if (rc->client != NULL) {
		kvx_client_lost(rc->client, "the test ends");
		rig_turn(rc->rig);
	}
	rig_client_reap(rc);
	MUST(rc->client == NULL);
	rig_client_clear(rc);
}

void rig_client_hello(struct rig *rig, struct rig_client *rc)
{
	rig_client_hello_of(rig, rc, 0);
}

void rig_client_hello_of(struct rig *rig, struct rig_client *rc, uint32_t tenant)
{
	Kvxp__Hello hello = KVXP__HELLO__INIT;

	MUST(client_open_of(rig, rc, tenant) == 0);
	hello.version_min = 1;
	hello.version_max = 1;
	hello.name = (char *)(uintptr_t) "rig";
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_HELLO, &hello.base, -1);
	MUST(rc->n_frames == 1 && rc->frames[0].type == KVXP__FRAME_TYPE__FRAME_HELLO_REPLY);
	rig_client_clear(rc);
}

void rig_send_raw(struct rig_client *rc, uint16_t type, const void *body, uint32_t len, int fd)
{
	struct kvx_msg msg = {.type = type, .len_bytes = len, .body = body};

	if (fd >= 0) {
		msg.n_fds = 1;
		msg.fds[0] = fd;
	}
	if (kvx_client_takes_frames(rc->client))
		kvx_client_frame(rc->client, &msg);
	kvx_msg_fini(&msg);
	rig_turn(rc->rig);
	rig_client_reap(rc);
}

void rig_send(struct rig_client *rc, uint16_t type, const ProtobufCMessage *message, int fd)
{
	size_t len = protobuf_c_message_get_packed_size(message);
	uint8_t *body = malloc(len + 1);

	MUST(body != NULL);
	protobuf_c_message_pack(message, body);
	rig_send_raw(rc, type, body, (uint32_t)len, fd);
	free(body);
}

/* ---- what came back */

static void frame_remove(struct rig_client *rc, unsigned i)
{
	free(rc->frames[i].body);
	rc->n_frames--;
	memmove(&rc->frames[i], &rc->frames[i + 1], (rc->n_frames - i) * sizeof(rc->frames[0]));
}

Kvxp__Reply *rig_take_reply(struct rig_client *rc)
{
	unsigned i;

	for (i = 0; i < rc->n_frames; i++) {
		Kvxp__Reply *reply;

		if (rc->frames[i].type != KVXP__FRAME_TYPE__FRAME_REPLY)
			continue;
		reply = kvxp__reply__unpack(NULL, rc->frames[i].len, rc->frames[i].body);
		MUST(reply != NULL);
		frame_remove(rc, i);
		return reply;
	}
	return NULL;
}

Kvxp__Event *rig_take_event(struct rig_client *rc, int event_type)
{
	unsigned i;

	for (i = 0; i < rc->n_frames; i++) {
		Kvxp__Event *event;

		if (rc->frames[i].type != KVXP__FRAME_TYPE__FRAME_EVENT)
			continue;
		event = kvxp__event__unpack(NULL, rc->frames[i].len, rc->frames[i].body);
		MUST(event != NULL);
		if ((int)event->type == event_type) {
			frame_remove(rc, i);
			return event;
		}
		kvxp__event__free_unpacked(event, NULL);
	}
	return NULL;
}

Kvxp__Error *rig_take_error(struct rig_client *rc)
{
	unsigned i;

	for (i = 0; i < rc->n_frames; i++) {
		Kvxp__Error *error;

		if (rc->frames[i].type != KVXP__FRAME_TYPE__FRAME_ERROR)
			continue;
		error = kvxp__error__unpack(NULL, rc->frames[i].len, rc->frames[i].body);
		MUST(error != NULL);
		frame_remove(rc, i);
		return error;
	}
	return NULL;
}

unsigned rig_count(const struct rig_client *rc, uint16_t type)
{
	unsigned i, n = 0;

	for (i = 0; i < rc->n_frames; i++)
		n += rc->frames[i].type == type ? 1 : 0;
	return n;
}

/* ---- usual steps */

int rig_memfd(size_t len)
{
	int fd = memfd_create("rig", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	MUST(fd >= 0);
	MUST(ftruncate(fd, (off_t)len) == 0);
	MUST(fallocate(fd, 0, 0, (off_t)len) == 0);
	MUST(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
	return fd;
}

uint64_t rig_register(struct rig_client *rc, uint32_t n_blocks, uint32_t access)
{
	Kvxp__RegionRegister req = KVXP__REGION_REGISTER__INIT;
	Kvxp__Layout layout = KVXP__LAYOUT__INIT;
	Kvxp__Plane plane = KVXP__PLANE__INIT;
	Kvxp__Plane *planes = &plane;
	Kvxp__Reply *reply;
	uint64_t id;

	plane.name = (char *)(uintptr_t) "kv";
	plane.block_stride = 4096;
	plane.block_bytes = 4096;
	layout.n_planes = 1;
	layout.planes = &planes;
	req.request_id = 1;
	req.kind = KVX_MEM_HOST;
	req.len = n_blocks * 4096ull;
	req.access = access;
	req.layout = &layout;
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, &req.base, rig_memfd(req.len));
	reply = rig_take_reply(rc);
	MUST(reply != NULL && reply->status == KVX_STATUS_OK && reply->id != 0);
	id = reply->id;
	kvxp__reply__free_unpacked(reply, NULL);
	return id;
}

void rig_export(struct rig_client *owner, uint64_t region, uint8_t out[KVX_DESC_BYTES])
{
	Kvxp__RegionExport exp = KVXP__REGION_EXPORT__INIT;
	Kvxp__Reply *reply;

	exp.request_id = 2;
	exp.region = region;
	rig_send(owner, KVXP__FRAME_TYPE__FRAME_REGION_EXPORT, &exp.base, -1);
	reply = rig_take_reply(owner);
	MUST(reply != NULL && reply->status == KVX_STATUS_OK);
	MUST(reply->data.len == KVX_DESC_BYTES);
	memcpy(out, reply->data.data, KVX_DESC_BYTES);
	kvxp__reply__free_unpacked(reply, NULL);
}

uint64_t rig_import(struct rig_client *rc, struct rig_client *owner, uint64_t region)
{
	Kvxp__Import imp = KVXP__IMPORT__INIT;
	uint8_t desc[KVX_DESC_BYTES];
	Kvxp__Reply *reply;
	uint64_t id;

	rig_export(owner, region, desc);
	imp.request_id = 3;
	imp.descriptor = (ProtobufCBinaryData){sizeof(desc), desc};
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_IMPORT, &imp.base, -1);
	reply = rig_take_reply(rc);
	MUST(reply != NULL && reply->status == KVX_STATUS_OK && reply->id != 0);
	id = reply->id;
	kvxp__reply__free_unpacked(reply, NULL);
	return id;
}
