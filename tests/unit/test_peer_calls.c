/* Messages to a peer that takes nothing: they are refused long before the connection is at its end,
 * which belongs to everybody. */
#include <criterion/criterion.h>
#include <errno.h>

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
