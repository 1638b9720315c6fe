/* Many fds for control: when the daemon has no room for them, and frames that may not carry them.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "control_talk.h"
#include "test_fds.h"

Test(control_dmabuf_room, a_region_goes_on_without_those_that_find_no_room)
{
	struct rlimit limit;
	struct talk t;
	char text[256];
	uint64_t id;

	open_rig(&t, USE);
	dmabufs_open();
	unsigned before = count_fds();
	send_register(&t, MANY, dmabufs, MANY);
	limit = test_leave_fds(20);
	cr_assert_eq(hear_reply(&t, &id, text), 0, "%s", text);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	cr_assert_eq(n_seen, 0);
	wait_for_fds(before);
	cr_assert_eq(register_gpu(&t, MANY, dmabufs, MANY, text), 0, "%s", text);
	cr_assert_eq(n_seen, MANY);
	dmabufs_close();
	close_rig(&t);
}

Test(control_dmabuf_room, host_memory_that_finds_no_room_is_refused_by_name)
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
	limit = test_leave_fds(0);
	cr_assert_eq(hear_reply(&t, &id, text), -EDQUOT);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	cr_assert_not_null(strstr(text, "LimitNOFILE"), "%s", text);
	talk_put(&t, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, &req.base, &memory, 1);
	cr_assert_eq(hear_reply(&t, &id, text), 0, "%s", text);
	close(memory);
	close_rig(&t);
}

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

Test(control_dmabuf_room, other_frames_carry_few)
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

Test(control_dmabuf_room, before_hello_no_frame_carries_many)
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
Test(control_dmabuf_room, no_more_wait_than_two_frames_carry)
{
	const struct kvx_wire_hdr hdr = {
	    .len_bytes = 65536, .type = KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, .n_fds = MANY};
	uint8_t half[KVX_WIRE_HDR_BYTES];
	struct talk t;

	open_rig(&t, USE);
	dmabufs_open();
	kvx_wire_hdr_pack(&hdr, half);
	unsigned before = count_fds();
	for (unsigned i = 0; i < 3; i++) {
		/* The frame is 64 KiB long: what follows is taken for its body. */
		test_send_fds(t.fd, half, sizeof(half), dmabufs, MANY);
		rig_turn(&rig);
	}
	expect_refused(&t, "two frames may carry (250 each)");
	for (unsigned i = 0; i < 100 && count_fds() >= before; i++)
		usleep(10000);
	cr_assert_lt(count_fds(), before);
	dmabufs_close();
	close_rig(&t);
}
