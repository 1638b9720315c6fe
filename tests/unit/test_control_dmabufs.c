/* GPU memory that comes with many fds: taken where a rail has a use for them, never kept longer
 * than that, refused when they are something else, and done without when there is no room. */
#include "control_rig.h"
#include "test_end.h"
#include "test_linger.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/un.h>

#include "base/clock.h"
#include "mem/gpu.h"

#define PCI  "0000:c1:00.0"
#define MANY KVX_WIRE_MAX_FDS

static struct rig rig;
static struct kvx_fake_script script;
static struct kvx_transport_ops peer_ops, gpu_ops;
static unsigned n_seen; /* fds that domains saw at their last registration of GPU memory */
static int home_error;

static int any_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem,
		       uint32_t rights, struct kvx_mr **out_mr)
{
	n_seen = 0;
	for (uint32_t i = 0; mem->gpu != NULL && i < mem->gpu->n_bases; i++)
		n_seen += mem->gpu->bases[i].fd >= 0 && fcntl(mem->gpu->bases[i].fd, F_GETFD) >= 0;
	return home_error < 0 ? home_error : kvx_fake_ops.mem_reg(dom, tenant, mem, rights, out_mr);
}

static int gpu_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
		     struct kvx_why *why)
{
	int n = kvx_fake_ops.probe(conf, rails, max, why);

	for (int i = 0; i < n; i++)
		snprintf(rails[i].gpu.pci, sizeof(rails[i].gpu.pci), PCI);
	return n;
}

static int dial(void)
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

static void talk_put(struct talk *t, uint16_t type, const ProtobufCMessage *message, const int *fds,
		     unsigned n_fds)
{
	size_t len = protobuf_c_message_get_packed_size(message);
	uint8_t *body = malloc(len + 1);

	protobuf_c_message_pack(message, body);
	cr_assert_eq(kvx_writer_put(t->writer, type, body, (uint32_t)len, fds, n_fds), 0);
	cr_assert_eq(kvx_writer_flush(t->writer, t->fd), 0);
	free(body);
}

/* The next frame; false: the stream has ended. */
static bool talk_hear(struct talk *t, struct kvx_msg *msg)
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

static void talk_hello(struct talk *t)
{
	Kvxp__Hello hello = KVXP__HELLO__INIT;

	hello.version_min = hello.version_max = 1;
	hello.name = (char *)(uintptr_t) "gpu";
	talk_put(t, KVXP__FRAME_TYPE__FRAME_HELLO, &hello.base, NULL, 0);
}

static uint32_t max_fds; /* as the daemon has told */

static void talk_open(struct talk *t)
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

static void talk_close(struct talk *t)
{
	kvx_reader_destroy(t->reader);
	kvx_writer_destroy(t->writer);
	close(t->fd);
	rig_turn(&rig);
}

enum rails { NO_USE, USE }; /* of dma-bufs */

static void open_rig(struct talk *t, enum rails use)
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

static void close_rig(struct talk *t)
{
	talk_close(t);
	rig_end(&rig);
	KVX_TEST_END();
}

static unsigned n_witnesses = 1;

/* n allocations of a page; the i-th has fd i, if there are so many. */
static void send_register(struct talk *t, unsigned n, const int *fds, unsigned n_fds)
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
static int hear_reply(struct talk *t, uint64_t *out_id, char text[256])
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

static int register_gpu(struct talk *t, unsigned n, const int *fds, unsigned n_fds, char text[256])
{
	uint64_t id;

	n_seen = 0;
	send_register(t, n, fds, n_fds);
	return hear_reply(t, &id, text);
}

static int dmabufs[MANY];

static void dmabufs_open(void)
{
	for (unsigned i = 0; i < MANY; i++) {
		dmabufs[i] = memfd_create("dmabuf", MFD_CLOEXEC);
		cr_assert_geq(dmabufs[i], 0);
	}
}

static void dmabufs_close(void)
{
	for (unsigned i = 0; i < MANY; i++)
		close(dmabufs[i]);
}

static unsigned count_fds(void)
{
	char text[64];

	return kvx_test_count_new_fds(text, sizeof(text));
}

Test(control_dmabufs, are_taken_and_closed_when_the_region_is_live)
{
	struct talk t;
	char text[256];

	open_rig(&t, USE);
	dmabufs_open();
	unsigned before = count_fds();
	for (unsigned n = 1; n <= MANY; n += 83) {
		cr_assert_eq(register_gpu(&t, n, dmabufs, n, text), 0, "%s", text);
		cr_assert_eq(n_seen, n);
		cr_assert_eq(count_fds(), before);
	}
	cr_assert_eq(register_gpu(&t, MANY + 50, dmabufs, MANY, text), 0, "%s", text);
	cr_assert_eq(n_seen, MANY, "further allocations have none");
	dmabufs_close();
	close_rig(&t);
}

Test(control_dmabufs, are_closed_when_the_region_is_refused)
{
	struct talk t;
	char text[256];

	open_rig(&t, USE);
	dmabufs_open();
	unsigned before = count_fds();
	home_error = -EFAULT;
	cr_assert_eq(register_gpu(&t, MANY, dmabufs, MANY, text), -EFAULT);
	cr_assert_eq(n_seen, MANY);
	cr_assert_eq(count_fds(), before);
	dmabufs_close();
	close_rig(&t);
}

Test(control_dmabufs, are_not_taken_where_no_rail_has_a_use_for_them)
{
	struct talk t;
	char text[256];

	open_rig(&t, NO_USE);
	dmabufs_open();
	unsigned before = count_fds();
	cr_assert_eq(register_gpu(&t, MANY, dmabufs, MANY, text), 0, "%s", text);
	cr_assert_eq(n_seen, 0);
	for (unsigned i = 0; i < 100 && count_fds() != before; i++)
		usleep(10000); /* a thread of its own closes them */
	cr_assert_eq(count_fds(), before);
	dmabufs_close();
	close_rig(&t);
}

/* The client goes while its region is being registered. */
Test(control_dmabufs, are_closed_when_their_client_is_gone)
{
	struct talk t, other;

	open_rig(&t, USE);
	dmabufs_open();
	talk_open(&other);
	unsigned before = count_fds();
	send_register(&other, MANY, dmabufs, MANY);
	shutdown(other.fd, SHUT_RDWR);
	rig_turn(&rig);
	cr_assert_eq(kvx_control_clients(rig.control), 1);
	cr_assert_eq(kvx_regions_count(kvx_node_regions(rig.node)), 0);
	cr_assert_leq(count_fds(), before);
	talk_close(&other);
	dmabufs_close();
	close_rig(&t);
}

/* The same fd twice, one that did not come, and one of each kind that is no dma-buf. */
Test(control_dmabufs, what_is_something_else_is_refused_by_name)
{
	struct talk t;
	char text[256];
	int pipes[2], strange[4];

	open_rig(&t, USE);
	cr_assert_eq(pipe2(pipes, O_CLOEXEC), 0);
	strange[0] = pipes[0];
	strange[1] = t.fd;
	strange[2] = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	strange[3] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	unsigned before = count_fds();
	for (unsigned i = 0; i < 4; i++) {
		cr_assert_eq(register_gpu(&t, 1, &strange[i], 1, text), -EBADF);
		cr_assert_not_null(strstr(text, "no dma-buf"), "%s", text);
		cr_assert_eq(n_seen, 0);
	}
	for (unsigned i = 0; i < 100 && count_fds() != before; i++)
		usleep(10000);
	cr_assert_eq(count_fds(), before);
	for (unsigned i = 0; i < 2; i++)
		close(pipes[i]);
	close(strange[2]);
	close(strange[3]);
	close_rig(&t);
}

/* Its close blocks: the loop and the job thread do not wait for it. */
Test(control_dmabufs, a_stranger_among_them_holds_up_nobody)
{
	static struct linger_pair lingering;
	struct talk t;
	char text[256];
	uint64_t start;

	open_rig(&t, USE);
	dmabufs_open();
	test_linger_open(&lingering, 8);
	close(dmabufs[MANY - 1]);
	dmabufs[MANY - 1] = test_linger_take(&lingering);
	start = kvx_now_ns();
	send_register(&t, MANY, dmabufs, MANY);
	close(dmabufs[MANY - 1]); /* not the last one of it */
	dmabufs[MANY - 1] = -1;
	uint64_t id;
	cr_assert_eq(hear_reply(&t, &id, text), -EBADF);
	cr_assert_not_null(strstr(text, "allocation 249"), "%s", text);
	cr_assert_eq(register_gpu(&t, 10, dmabufs, 10, text), 0, "%s", text);
	cr_assert_lt(kvx_now_ns() - start, 5 * KVX_SEC);
	test_linger_close(&lingering);
	dmabufs_close();
	close_rig(&t);
}

/* Three of a hundred and more at once: those of the first two are with their regions when the third
 * comes. */
Test(control_dmabufs, of_a_client_only_so_many_are_held_at_once)
{
	struct talk t;
	char text[256];
	uint64_t id;

	open_rig(&t, USE);
	dmabufs_open();
	unsigned before = count_fds();
	for (unsigned i = 0; i < 3; i++)
		send_register(&t, 200, dmabufs, 200);
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(hear_reply(&t, &id, text), 0, "%s", text);
	cr_assert_eq(n_seen, 0, "the last one went on without");
	for (unsigned i = 0; i < 100 && count_fds() != before; i++)
		usleep(10000);
	cr_assert_eq(count_fds(), before);
	cr_assert_eq(register_gpu(&t, 200, dmabufs, 200, text), 0, "%s", text);
	cr_assert_eq(n_seen, 200, "they are free again");
	dmabufs_close();
	close_rig(&t);
}

Test(control_dmabufs, memory_of_which_nothing_is_shown_is_refused)
{
	struct talk t;
	char text[256];

	open_rig(&t, USE);
	n_witnesses = 0;
	cr_assert_eq(register_gpu(&t, 1, NULL, 0, text), -EINVAL);
	cr_assert_not_null(strstr(text, "comparison"), "%s", text);
	close_rig(&t);
}

/* ---- no room in the daemon */

static struct rlimit leave_fds(unsigned n)
{
	struct rlimit before, now;
	int lowest = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);

	close(lowest);
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
	now = before;
	now.rlim_cur = (rlim_t)lowest + n;
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &now), 0);
	return before;
}

Test(control_dmabufs, a_region_goes_on_without_those_that_find_no_room)
{
	struct rlimit limit;
	struct talk t;
	char text[256];
	uint64_t id;

	open_rig(&t, USE);
	dmabufs_open();
	unsigned before = count_fds();
	send_register(&t, MANY, dmabufs, MANY);
	limit = leave_fds(20);
	cr_assert_eq(hear_reply(&t, &id, text), 0, "%s", text);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	cr_assert_eq(n_seen, 0);
	for (unsigned i = 0; i < 100 && count_fds() != before; i++)
		usleep(10000);
	cr_assert_eq(count_fds(), before);
	cr_assert_eq(register_gpu(&t, MANY, dmabufs, MANY, text), 0, "%s", text);
	cr_assert_eq(n_seen, MANY);
	dmabufs_close();
	close_rig(&t);
}

Test(control_dmabufs, host_memory_that_finds_no_room_is_refused_by_name)
{
	Kvxp__RegionRegister req = KVXP__REGION_REGISTER__INIT;
	struct rlimit limit;
	struct talk t;
	char text[256];
	uint64_t id;
	int memory = rig_memfd(4096);

	open_rig(&t, USE);
	req.request_id = 3;
	req.name = (char *)(uintptr_t) "r";
	req.kind = KVX_MEM_HOST;
	req.len = 4096;
	talk_put(&t, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, &req.base, &memory, 1);
	limit = leave_fds(0);
	cr_assert_eq(hear_reply(&t, &id, text), -EDQUOT);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	cr_assert_not_null(strstr(text, "LimitNOFILE"), "%s", text);
	talk_put(&t, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, &req.base, &memory, 1);
	cr_assert_eq(hear_reply(&t, &id, text), 0, "%s", text);
	close(memory);
	close_rig(&t);
}

/* ---- frames that are refused */

/* How the daemon ends the connection. */
static void expect_refused(struct talk *t, const char *word)
{
	struct kvx_msg msg;

	rig_turn(&rig);
	cr_assert(talk_hear(t, &msg));
	cr_assert_eq(msg.type, KVXP__FRAME_TYPE__FRAME_ERROR);
	Kvxp__Error *error = kvxp__error__unpack(NULL, msg.len_bytes, msg.body);
	cr_assert_not_null(strstr(error->text, word), "%s", error->text);
	kvxp__error__free_unpacked(error, NULL);
	kvx_msg_fini(&msg);
	for (unsigned i = 0; i < 200 && kvx_control_clients(rig.control) > 0; i++)
		rig_turn(&rig);
	cr_assert_eq(kvx_control_clients(rig.control), 0);
}

Test(control_dmabufs, other_frames_carry_few)
{
	Kvxp__Query query = KVXP__QUERY__INIT;
	struct talk t;

	open_rig(&t, USE);
	dmabufs_open();
	talk_put(&t, KVXP__FRAME_TYPE__FRAME_QUERY, &query.base, dmabufs, 5);
	expect_refused(&t, "more than 4 file descriptors");
	dmabufs_close();
	close_rig(&t);
}

Test(control_dmabufs, before_hello_no_frame_carries_many)
{
	struct talk t;

	open_rig(&t, USE);
	dmabufs_open();
	talk_close(&t);
	t.fd = dial();
	cr_assert_eq(kvx_reader_create(1 << 20, &t.reader), 0);
	cr_assert_eq(kvx_writer_create(&t.writer), 0);
	send_register(&t, MANY, dmabufs, MANY);
	expect_refused(&t, "more than 4 file descriptors came at once");
	dmabufs_close();
	close_rig(&t);
}

/* Frames that never become whole. */
Test(control_dmabufs, no_more_wait_than_two_frames_carry)
{
	const struct kvx_wire_hdr hdr = {
	    .len_bytes = 65536, .type = KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, .n_fds = MANY};
	uint8_t half[KVX_WIRE_HDR_BYTES];
	char control[CMSG_SPACE(MANY * sizeof(int))] = {0};
	struct talk t;

	open_rig(&t, USE);
	dmabufs_open();
	kvx_wire_hdr_pack(&hdr, half);
	unsigned before = count_fds();
	for (unsigned i = 0; i < 3; i++) {
		/* The frame is 64 KiB long: what follows is taken for its body. */
		struct iovec iov = {half, sizeof(half)};
		struct msghdr mh = {.msg_iov = &iov,
				    .msg_iovlen = 1,
				    .msg_control = control,
				    .msg_controllen = sizeof(control)};
		struct cmsghdr *c = (struct cmsghdr *)(void *)control;

		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(dmabufs));
		memcpy(CMSG_DATA(c), dmabufs, sizeof(dmabufs));
		cr_assert_eq(sendmsg(t.fd, &mh, MSG_NOSIGNAL), (ssize_t)sizeof(half));
		rig_turn(&rig);
	}
	expect_refused(&t, "two frames may carry (250 each)");
	for (unsigned i = 0; i < 100 && count_fds() >= before; i++)
		usleep(10000);
	cr_assert_lt(count_fds(), before);
	dmabufs_close();
	close_rig(&t);
}
