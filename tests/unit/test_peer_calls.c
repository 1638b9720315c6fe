/* Calls to a peer: messages with their answers, and pings. Messages to a peer that takes nothing
 * are refused long before the connection is at its end, which belongs to everybody. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "peer_rig.h"
#include "proto/kvx_err.h"
#include "test_end.h"

#define RW (KVX_ACCESS_READ | KVX_ACCESS_WRITE)
/* More than fit: the limit of what may be unread is 64 MiB. */
#define TOO_MANY ((80u << 20) / KVX_PAYLOAD_MAX)

static struct peer_rig rig;
static unsigned n_ok;

static void on_reply(void *arg, int status, const char *text)
{
	n_ok += status == 0;
}

Test(peer_calls, messages_are_refused_before_they_cost_the_connection)
{
	static uint8_t bytes[KVX_PAYLOAD_MAX];
	const struct kvx_peer_message message = {bytes, sizeof(bytes), 0};
	struct rig_answer target, reply = {0};
	struct kvx_peer_call *call;
	struct kvx_peer_row row;
	struct kvx_desc desc;
	unsigned n = 0;
	int err = 0;

	rig_init(&rig);
	rig_start(&rig);
	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, RW, NULL));
	target = rig_resolve(&rig.a, &desc);
	while (n < TOO_MANY && err == 0) {
		err = kvx_peers_message(rig.a.peers, target.target, &message, 60 * KVX_SEC,
					on_reply, NULL, &call);
		n += err == 0;
	}
	cr_assert_eq(err, -EDQUOT, "%u: %d", n, err);
	cr_assert_geq(n, (16u << 20) / KVX_PAYLOAD_MAX - 100);
	cr_assert_leq(n, (16u << 20) / KVX_PAYLOAD_MAX + 1);
	/* Nothing is lost of what was taken, and then there is room again. */
	cr_assert(RIG_UNTIL(&rig, n_ok == n, 10000), "%u of %u", n_ok, n);
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_lost, 0);
	cr_assert_eq(kvx_peers_message(rig.a.peers, target.target,
				       &(struct kvx_peer_message){"x", 1, 0}, KVX_SEC, rig_on_reply,
				       &reply, &call),
		     0);
	cr_assert(RIG_UNTIL(&rig, reply.done, 1000));
	cr_assert_eq(reply.status, 0);
	kvx_target_unref(target.target);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_calls, message_reaches_the_owner_and_its_answer_comes_back)
{
	struct rig_answer target, reply = {0}, refused = {0};
	struct kvx_peer_call *call;
	struct kvx_desc desc;

	rig_init(&rig);
	rig_start(&rig);
	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, RW, NULL));
	target = rig_resolve(&rig.a, &desc);
	rig_pass(&rig, 5);
	cr_assert_eq(uv_backend_timeout(&rig.loop), -1, "an idle loop sleeps");
	cr_assert_eq(kvx_peers_message(rig.a.peers, target.target,
				       &(struct kvx_peer_message){"hello", 5, 0}, KVX_SEC,
				       rig_on_reply, &reply, &call),
		     0);
	cr_assert_eq(uv_backend_timeout(&rig.loop), 0, "the loop would sleep on a frame");
	cr_assert(RIG_UNTIL(&rig, reply.done, 1000));
	cr_assert_eq(reply.status, 0, "%s", reply.text);
	cr_assert_eq(rig.b.message_len, 5);
	cr_assert_eq(memcmp(rig.b.message, "hello", 5), 0);
	rig.b.message_status = -EPIPE;
	cr_assert_eq(kvx_peers_message(rig.a.peers, target.target,
				       &(struct kvx_peer_message){"x", 1, 0}, KVX_SEC, rig_on_reply,
				       &refused, &call),
		     0);
	cr_assert(RIG_UNTIL(&rig, refused.done, 1000));
	cr_assert_eq(refused.status, -EPIPE);
	cr_assert_eq(kvx_peers_message(rig.a.peers, target.target,
				       &(struct kvx_peer_message){"x", KVX_PAYLOAD_MAX + 1, 0},
				       KVX_SEC, rig_on_reply, &refused, &call),
		     -EMSGSIZE);
	kvx_target_unref(target.target);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* Posted ones: the second finds the receiver full, the third finds it with room again. */
Test(peer_calls, message_behind_a_refused_one_of_its_stream_is_refused_too)
{
	struct rig_answer target, replies[5] = {{0}};
	struct kvx_peer_call *call;
	struct kvx_desc desc;

	rig_init(&rig);
	rig_start(&rig);
	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, RW, NULL));
	target = rig_resolve(&rig.a, &desc);
	for (unsigned i = 0; i < 5; i++) {
		const uint64_t streams[] = {1, 1, 1, 2, 0};
		const struct kvx_peer_message message = {"x", 1, streams[i]};

		rig.b.message_status = i == 1 ? -EDQUOT : 0;
		cr_assert_eq(kvx_peers_message(rig.a.peers, target.target, &message, KVX_SEC,
					       rig_on_reply, &replies[i], &call),
			     0);
		cr_assert(RIG_UNTIL(&rig, replies[i].done, 1000));
	}
	cr_assert_eq(replies[0].status, 0);
	cr_assert_eq(replies[1].status, -EDQUOT);
	cr_assert_eq(replies[2].status, -ECANCELED);
	cr_assert_eq(replies[3].status, 0, "another stream");
	cr_assert_eq(replies[4].status, 0, "no stream");
	cr_assert_eq(rig.b.n_messages, 4, "the third was given to the owner");
	kvx_target_unref(target.target);
	rig_stop(&rig);
	KVX_TEST_END();
}

static KVX_ON_LOOP struct rig_answer ping(const char *who)
{
	struct rig_answer answer = {0};
	struct kvx_peer_call *call;
	struct kvx_why why = {""};

	answer.status =
	    kvx_peers_ping(rig.a.peers, who, KVX_SEC, rig_on_reply, &answer, &call, &why);
	if (answer.status < 0) {
		snprintf(answer.text, sizeof(answer.text), "%s", why.text);
		answer.done = true;
	}
	cr_assert(RIG_UNTIL(&rig, answer.done, 3000));
	return answer;
}

Test(peer_calls, ping_by_address_by_node_id_and_of_nobody)
{
	struct rig_answer target;
	struct kvx_desc desc;
	struct kvx_peer_row row;

	rig_init(&rig);
	rig_start(&rig);
	cr_assert_eq(ping(kvx_peers_address(rig.b.peers)).status, 0);
	cr_assert_not(rig_row(&rig.a, &row), "a probe makes no peer");
	cr_assert_eq(ping(kvx_peers_address(rig.a.peers)).status, -EINVAL, "own address");
	cr_assert_eq(ping("127.0.0.1:1").status, -EHOSTUNREACH);
	cr_assert_eq(ping("192.0.2.1:1").status, -EACCES);
	cr_assert_eq(ping("0b0b").status, -ENOENT);
	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, RW, NULL));
	target = rig_resolve(&rig.a, &desc);
	cr_assert_eq(ping("0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b").status, 0);
	cr_assert_eq(ping(kvx_peers_address(rig.b.peers)).status, 0);
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_connects, 1);
	kvx_target_unref(target.target);
	rig_stop(&rig);
	KVX_TEST_END();
}
