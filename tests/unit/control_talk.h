/* A client that talks with control by frames of its own, and registers GPU memory that comes with
 * many fds; where the fake transport has a use for them, or has none. */
#ifndef KVX_CONTROL_TALK_H
#define KVX_CONTROL_TALK_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/un.h>
#include <unistd.h>

#include "control_rig.h"
#include "mem/gpu.h"
#include "test_end.h"

#define PCI  "0000:c1:00.0"
#define MANY KVX_WIRE_MAX_FDS

static struct rig rig;
static struct kvx_fake_script script;
static struct kvx_transport_ops peer_ops, gpu_ops;
static unsigned n_seen; /* fds that domains saw at their last registration of GPU memory */
static int home_error;

static inline int any_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem,
			      uint32_t rights, struct kvx_mr **out_mr)
{
	n_seen = 0;
	for (uint32_t i = 0; mem->gpu != NULL && i < mem->gpu->n_bases; i++)
		n_seen += mem->gpu->bases[i].fd >= 0 && fcntl(mem->gpu->bases[i].fd, F_GETFD) >= 0;
	return home_error < 0 ? home_error : kvx_fake_ops.mem_reg(dom, tenant, mem, rights, out_mr);
}

static inline int gpu_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
			    struct kvx_why *why)
{
	int n = kvx_fake_ops.probe(conf, rails, max, why);

	for (int i = 0; i < n; i++)
		snprintf(rails[i].gpu.pci, sizeof(rails[i].gpu.pci), PCI);
	return n;
}

static inline int dial(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memcpy(addr.sun_path, rig.config.socket, strlen(rig.config.socket) + 1);
	cr_assert_eq(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

/* A client, and what it talks with. */
struct talk {
	int fd;
	struct kvx_reader *reader;
	struct kvx_writer *writer;
};

static inline void talk_put(struct talk *t, uint16_t type, const ProtobufCMessage *message,
			    const int *fds, unsigned n_fds)
{
	size_t len = protobuf_c_message_get_packed_size(message);
	uint8_t *body = malloc(len + 1);

	protobuf_c_message_pack(message, body);
	cr_assert_eq(kvx_writer_put(t->writer, type, body, (uint32_t)len, fds, n_fds), 0);
	cr_assert_eq(kvx_writer_flush(t->writer, t->fd), 0);
	free(body);
}

/* The next frame; false: the stream has ended. */
static inline bool talk_hear(struct talk *t, struct kvx_msg *msg)
{
	for (unsigned i = 0; i < 50; i++) {
		if (kvx_reader_next(t->reader, msg) == 1)
			return true;
		int n = kvx_reader_fill(t->reader, t->fd);
		if (n == 0 || (n < 0 && n != -EAGAIN))
			return false;
		rig_turn(&rig);
	}
	cr_assert_fail("no answer");
	return false;
}

static inline void talk_hello(struct talk *t)
{
	Kvxp__Hello hello = KVXP__HELLO__INIT;

	hello.version_min = hello.version_max = 1;
	hello.name = (char *)(uintptr_t) "gpu";
	talk_put(t, KVXP__FRAME_TYPE__FRAME_HELLO, &hello.base, NULL, 0);
}

static uint32_t max_fds; /* as the daemon has told */

static inline void talk_open(struct talk *t)
{
	struct kvx_msg msg;

	t->fd = dial();
	cr_assert_eq(kvx_reader_create(1 << 20, &t->reader), 0);
	cr_assert_eq(kvx_writer_create(&t->writer), 0);
	talk_hello(t);
	cr_assert(talk_hear(t, &msg));
	cr_assert_eq(msg.type, KVXP__FRAME_TYPE__FRAME_HELLO_REPLY);
	Kvxp__HelloReply *reply = kvxp__hello_reply__unpack(NULL, msg.len_bytes, msg.body);
	max_fds = reply->max_region_fds;
	kvxp__hello_reply__free_unpacked(reply, NULL);
	kvx_msg_fini(&msg);
}

static inline void talk_close(struct talk *t)
{
	kvx_reader_destroy(t->reader);
	kvx_writer_destroy(t->writer);
	close(t->fd);
	rig_turn(&rig);
}

enum rails { NO_USE, USE }; /* of dma-bufs */

static inline void open_rig(struct talk *t, enum rails use)
{
	struct rig_conf conf = {.script = &script, .peer_ops = &peer_ops, .gpu_ops = &gpu_ops};

	memset(&script, 0, sizeof(script));
	script.queue_ops = 256;
	peer_ops = gpu_ops = kvx_fake_ops;
	peer_ops.mem_reg = any_mem_reg;
	if (use == USE)
		peer_ops.caps |= KVX_CAP_DMABUF;
	gpu_ops.probe = gpu_probe;
	gpu_ops.mem_reg = any_mem_reg;
	rig_open_with(&rig, &conf);
	talk_open(t);
	cr_assert_eq(max_fds, use == USE ? MANY : 0);
}

static inline void close_rig(struct talk *t)
{
	talk_close(t);
	rig_end(&rig);
	KVX_TEST_END();
}

static unsigned n_witnesses = 1;

/* n allocations of a page; the i-th has fd i, if there are so many. */
static inline void send_register(struct talk *t, unsigned n, const int *fds, unsigned n_fds)
{
	static uint8_t ipc[KVX_GPU_IPC_BYTES];
	Kvxp__RegionRegister req = KVXP__REGION_REGISTER__INIT;
	Kvxp__GpuMemory gpu = KVXP__GPU_MEMORY__INIT;
	Kvxp__GpuWitness witness = KVXP__GPU_WITNESS__INIT, *shown = &witness;
	Kvxp__GpuBase *bases = calloc(n, sizeof(*bases)), **base = calloc(n, sizeof(*base));
	Kvxp__GpuSegment *segs = calloc(n, sizeof(*segs)), **seg = calloc(n, sizeof(*seg));

	for (unsigned i = 0; i < n; i++) {
		kvxp__gpu_base__init(base[i] = &bases[i]);
		kvxp__gpu_segment__init(seg[i] = &segs[i]);
		bases[i].ipc = (ProtobufCBinaryData){sizeof(ipc), ipc};
		bases[i].len = segs[i].len = 4096;
		bases[i].fd = i < n_fds ? i + 1 : 0;
		segs[i].allocation = i;
	}
	gpu.pci = (char *)(uintptr_t)PCI;
	witness.bytes = (ProtobufCBinaryData){KVX_GPU_WITNESS_BYTES, ipc};
	gpu.n_witnesses = n_witnesses;
	gpu.witnesses = &shown;
	gpu.n_bases = gpu.n_segments = n;
	gpu.bases = base;
	gpu.segments = seg;
	req.request_id = 7;
	req.name = (char *)(uintptr_t) "r";
	req.kind = KVX_MEM_CUDA;
	req.len = n * 4096ull;
	req.access = 3;
	req.gpu = &gpu;
	talk_put(t, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, &req.base, fds, n_fds);
	free(bases);
	free(base);
	free(segs);
	free(seg);
}

/* What a request ended with; its id and text. */
static inline int hear_reply(struct talk *t, uint64_t *out_id, char text[256])
{
	struct kvx_msg msg;

	rig_turn(&rig);
	cr_assert(talk_hear(t, &msg), "the connection has ended");
	cr_assert_eq(msg.type, KVXP__FRAME_TYPE__FRAME_REPLY);
	Kvxp__Reply *reply = kvxp__reply__unpack(NULL, msg.len_bytes, msg.body);
	int err = kvx_status_to_errno(reply->status);
	*out_id = reply->id;
	snprintf(text, 256, "%s", reply->text);
	kvxp__reply__free_unpacked(reply, NULL);
	kvx_msg_fini(&msg);
	return err;
}

static inline int register_gpu(struct talk *t, unsigned n, const int *fds, unsigned n_fds,
			       char text[256])
{
	uint64_t id;

	n_seen = 0;
	send_register(t, n, fds, n_fds);
	return hear_reply(t, &id, text);
}

static int dmabufs[MANY];

static inline void dmabufs_open(void)
{
	for (unsigned i = 0; i < MANY; i++) {
		dmabufs[i] = memfd_create("dmabuf", MFD_CLOEXEC);
		cr_assert_geq(dmabufs[i], 0);
	}
}

static inline void dmabufs_close(void)
{
	for (unsigned i = 0; i < MANY; i++)
		close(dmabufs[i]);
}

static inline unsigned count_fds(void)
{
	char text[64];

	return kvx_test_count_new_fds(text, sizeof(text));
}

/* As many as there were; a thread of its own closes them. */
static inline void wait_for_fds(unsigned n)
{
	for (unsigned i = 0; i < 100 && count_fds() != n; i++)
		usleep(10000);
	cr_assert_eq(count_fds(), n);
}

#endif
