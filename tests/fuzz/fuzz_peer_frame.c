/* Fuzzes what another node may send: the input is a stream of frames into a connection of the peer
 * channel, over a real node on the fake transport and in virtual time. The first byte says how far
 * the connection has got before the input begins: bit 0 hello, bit 1 the lane of the first tenant
 * is up with a leg on each of two rails, bit 2 a region of the other node is being resolved, bit 3
 * it was, and a transfer to it runs, bit 4 our node id is the higher one, bit 5 the other node
 * names no tenants, bit 6 the other node is asked for a region by name, bit 7 the other node has a
 * GPU, so that each tenant is to have a second lane. So that inputs can name
 * objects that exist, these words are replaced in bodies: "REGION-A" (8 bytes: our region's id,
 * which is published as "here"), "TOKENTOKENTOKEN!" (16: its token), and 224 bytes that begin with
 * "DESCRIPTOR" (of the region of theirs). After each input nothing of the other node may be left.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_peer_node.h"
#include "xfer/plan.h"

#define MAX_FRAMES 64
#define MAX_BODY   65536u
#define THEIRS     77u /* a region of theirs */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void on_resolved(void *arg, int status, const char *text, struct kvx_target *target)
{
	f.n_answers++;
	f.target = target;
}

static void on_found(void *arg, const struct kvx_found *found)
{
	kvx_assert_on_loop();
	kvx_assert(found->note_bytes <= KVX_PAYLOAD_MAX && strcmp(found->name, "there") == 0);
	kvx_assert(found->status == 0 ? found->target != NULL : found->target == NULL);
	f.n_found++;
	kvx_target_unref(found->target);
}

/* frames */

/* Connections that failed are freed as the loop turns. */
static KVX_ON_LOOP bool is_open(const struct peer_conn *conn)
{
	const struct peer_conn *c;

	for (c = f.peers->conns; c != NULL; c = c->next)
		if (c == conn)
			return c->fail_status == 0;
	return false;
}

static KVX_ON_LOOP void feed(struct peer_conn *conn, uint16_t type, const uint8_t *body,
			     uint32_t len)
{
	const struct kvx_wire_hdr hdr = {.len_bytes = len, .type = type};
	uint8_t head[KVX_WIRE_HDR_BYTES];

	if (!is_open(conn))
		return;
	kvx_wire_hdr_pack(&hdr, head);
	kvx_assert(kvx_reader_feed(conn->reader, head, sizeof(head)) == 0);
	kvx_assert(len == 0 || kvx_reader_feed(conn->reader, body, len) == 0);
	conn_receive(conn);
}

static KVX_ON_LOOP void feed_message(struct peer_conn *conn, uint16_t type, const void *message)
{
	uint8_t buf[1024];
	size_t len = protobuf_c_message_get_packed_size(message);

	kvx_assert(len <= sizeof(buf));
	protobuf_c_message_pack(message, buf);
	feed(conn, type, buf, (uint32_t)len);
}

static void desc_of_theirs(uint8_t out[KVX_DESC_BYTES])
{
	struct kvx_desc desc = {.epoch = 9, .region = THEIRS, .len_bytes = LEN, .access = 3};

	if (f.peers->table != NULL)
		memcpy(desc.node_id, f.peers->table->id, sizeof(desc.node_id));
	kvx_desc_pack(&desc, out);
}

static void body_replace(uint8_t *body, size_t len)
{
	for (size_t i = 0; i + 8 <= len; i++) {
		if (i + KVX_DESC_BYTES <= len && memcmp(body + i, "DESCRIPTOR", 10) == 0)
			desc_of_theirs(body + i);
		if (memcmp(body + i, "REGION-A", 8) == 0)
			memcpy(body + i, &f.region->id, 8);
		else if (i + 16 <= len && memcmp(body + i, "TOKENTOKENTOKEN!", 16) == 0)
			memcpy(body + i, f.region->token, KVX_TOKEN_BYTES);
	}
}

static KVX_ON_LOOP void feed_input(struct peer_conn *conn, const uint8_t *data, size_t size)
{
	struct kvx_wire_hdr hdr;

	for (unsigned i = 0; i < MAX_FRAMES && size >= KVX_WIRE_HDR_BYTES; i++) {
		uint8_t *body;

		if (!is_open(conn))
			return;
		kvx_wire_hdr_unpack(data, &hdr);
		data += KVX_WIRE_HDR_BYTES;
		size -= KVX_WIRE_HDR_BYTES;
		if (hdr.len_bytes > MAX_BODY || hdr.len_bytes > size)
			hdr.len_bytes = (uint32_t)(size < MAX_BODY ? size : MAX_BODY);
		body = malloc((size_t)hdr.len_bytes + 1);
		kvx_assert(body != NULL);
		memcpy(body, data, hdr.len_bytes);
		body_replace(body, hdr.len_bytes);
		feed(conn, hdr.type, body, hdr.len_bytes);
		free(body);
		data += hdr.len_bytes;
		size -= hdr.len_bytes;
		turn(KVX_MS);
	}
}

/* how far the connection has got */

static KVX_ON_LOOP struct peer_conn *open_conn(void)
{
	struct peer_conn *conn = NULL;
	int err = conn_create(f.peers, "fuzz", &conn);

	kvx_assert(err == 0);
	f.peers->n_accepted_half_open++;
	conn->state = CONN_HELLO;
	return conn;
}

/* And one heartbeat, so that there is a lease. */
static KVX_ON_LOOP void say_hello(struct peer_conn *conn, bool lower, uint8_t flags)
{
	Kvxp__PeerHello hello = KVXP__PEER_HELLO__INIT;
	Kvxp__PeerHeartbeat beat = KVXP__PEER_HEARTBEAT__INIT;
	uint8_t id[KVX_NODE_ID_BYTES] = {lower ? 0x01 : 0x0b};
	char *transports[] = {(char *)(uintptr_t) "best", (char *)(uintptr_t) "fake"};
	char *tenants[] = {(char *)(uintptr_t) "blue", (char *)(uintptr_t) "default"};

	hello.version_min = hello.version_max = 1;
	hello.node_id.data = id;
	hello.node_id.len = sizeof(id);
	hello.epoch = 9;
	hello.lost_ms = 300;
	hello.transports = transports;
	hello.n_transports = 2;
	hello.tenants = tenants;
	hello.n_tenants = (flags & 32) != 0 ? 0 : 2;
	hello.any_memory = (flags & 128) != 0;
	hello.gpus = hello.any_memory;
	feed_message(conn, KVXP__PEER_FRAME_TYPE__PEER_HELLO, &hello);
	turns(2);
	beat.echo = 1;
	feed_message(conn, KVXP__PEER_FRAME_TYPE__PEER_HEARTBEAT, &beat);
	turns(2);
}

static KVX_ON_LOOP void bring_lane_up(struct peer_conn *conn, bool lower)
{
	Kvxp__PeerLane lane = KVXP__PEER_LANE__INIT;
	Kvxp__PeerLeg legs[RAILS], *list[RAILS];
	Kvxp__PeerLaneUp up = KVXP__PEER_LANE_UP__INIT;

	other_command(KVX_CMD_LISTEN);
	for (unsigned i = 0; i < RAILS; i++) {
		kvxp__peer_leg__init(&legs[i]);
		legs[i].address.data = f.their_addrs[i];
		legs[i].address.len = f.their_addr_lens[i];
		list[i] = &legs[i];
	}
	lane.transport = (char *)(uintptr_t) "best";
	lane.tenant = (char *)(uintptr_t) "default";
	lane.generation = up.generation = 1;
	lane.legs = list;
	lane.n_legs = RAILS;
	lane.answer = !lower;
	feed_message(conn, KVXP__PEER_FRAME_TYPE__PEER_LANE, &lane);
	turns(3);
	feed_message(conn, KVXP__PEER_FRAME_TYPE__PEER_LANE_UP, &up);
	turns(2);
}

static KVX_ON_LOOP void resolve_theirs(void)
{
	struct kvx_desc desc = {.node_id = {0x0b}, .epoch = 9, .region = THEIRS};
	struct kvx_peer *peer = f.peers->table;
	struct kvx_resolve *resolve;
	struct kvx_why why;

	if (peer == NULL)
		return;
	memcpy(desc.node_id, peer->id, sizeof(desc.node_id));
	if (kvx_peers_resolve(f.peers, &desc, 0, KVX_SEC, on_resolved, NULL, &resolve, &why) < 0)
		f.n_answers++;
	turns(2);
}

static KVX_ON_LOOP void answer_and_submit(struct peer_conn *conn)
{
	Kvxp__PeerResolved msg = KVXP__PEER_RESOLVED__INIT;
	const uint64_t zero = 0, len = LEN;
	const struct kvx_op_list ops = {1, 1, &zero, &zero, &len};
	struct kvx_xfer_req req = {.client = 1,
				   .number = 1,
				   .op = KVX_OP_WRITE,
				   .require = "",
				   .region = f.region,
				   .ops = &ops};
	struct kvx_xfer *xfer;
	struct kvx_why why;
	ProtobufCBinaryData rkeys[RAILS];
	unsigned n;
	const struct kvx_node_rail *rails = kvx_node_rails(f.other, &n);

	for (unsigned i = 0; i < RAILS; i++) {
		const void *mkey;

		if (kvx_node_region_mkey(f.theirs, rails[i].dom_index, &mkey, &rkeys[i].len) < 0)
			return;
		rkeys[i].data = (uint8_t *)(uintptr_t)mkey;
	}
	msg.request_id = 1;
	msg.len = LEN;
	msg.access = KVX_ACCESS_READ | KVX_ACCESS_WRITE;
	msg.rkeys = rkeys;
	msg.n_rkeys = RAILS;
	feed_message(conn, KVXP__PEER_FRAME_TYPE__PEER_RESOLVED, &msg);
	turns(2);
	req.target = f.target;
	f.script.latency_ns = 20 * KVX_MS;
	if (f.target == NULL || kvx_xfer_submit(kvx_node_xfers(f.node), &req, &xfer, &why) < 0)
		f.n_ends++;
	turns(2);
}

/* A find at the address that the other node is known by. */
static KVX_ON_LOOP unsigned ask_name(void)
{
	const struct kvx_find_request request = {"192.0.2.1:1", "there", 0};
	struct kvx_peer *peer = f.peers->table;
	struct kvx_find *find;
	struct kvx_why why;

	if (peer == NULL || peer->conn == NULL)
		return 0;
	snprintf(peer->addr, sizeof(peer->addr), "%s", request.address);
	if (kvx_peers_find(f.peers, &request, KVX_SEC, on_found, NULL, &find, &why) < 0)
		return 0;
	turns(1);
	return 1;
}

/* The other node goes away: nothing of it may stay. */
static KVX_ON_LOOP void end(struct peer_conn *conn, unsigned n_answers, unsigned n_ends)
{
	struct kvx_peer *peer;

	if (is_open(conn))
		conn_fail(conn, -EHOSTDOWN, "end of the input");
	for (unsigned i = 0; i < 4000 && (f.peers->table != NULL || f.peers->conns != NULL ||
					  f.peers->finds != NULL);
	     i++) {
		if (f.target != NULL && f.target->lost) {
			kvx_target_unref(f.target);
			f.target = NULL;
		}
		for (peer = f.peers->table; peer != NULL; peer = peer->hh.next) {
			if (peer->interest_ns != 0) /* it would be kept for a minute */
				peer_wake(peer);
			peer->interest_ns = 0;
		}
		turn(KVX_MS);
	}
	f.script.latency_ns = 0;
	kvx_assert(f.peers->table == NULL && f.peers->conns == NULL && f.peers->shared == NULL);
	kvx_assert(f.peers->n_accepted_half_open == 0 && f.peers->n_dialing == 0);
	kvx_assert(f.peers->finds == NULL);
	kvx_assert(f.n_answers == n_answers && f.n_ends == n_ends && f.target == NULL);
	kvx_assert(kvx_xfers_count(kvx_node_xfers(f.node)) == 0);
	if (f.their_eps[0] != NULL)
		other_command(KVX_CMD_EP_CLOSE);
	conn_bury(f.peers);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct peer_conn *conn;
	bool hello, lane, resolve, run, lower;
	unsigned n_asked = 0;

	kvx_assert_on_loop();
	if (size < 1)
		return 0;
	hello = (data[0] & 1) != 0;
	lane = hello && (data[0] & 2) != 0;
	resolve = lane && (data[0] & 4) != 0;
	run = resolve && (data[0] & 8) != 0;
	lower = (data[0] & 16) != 0;
	f.peers->next_request = f.peers->next_generation = 0;
	f.n_answers = f.n_ends = f.n_found = 0;
	conn = open_conn();
	if (hello)
		say_hello(conn, lower, data[0]);
	if (lane)
		bring_lane_up(conn, lower);
	if (resolve)
		resolve_theirs();
	if (run)
		answer_and_submit(conn);
	if (hello && (data[0] & 64) != 0)
		n_asked = ask_name();
	feed_input(conn, data + 1, size - 1);
	turns(3);
	end(conn, resolve ? 1 : 0, run ? 1 : 0);
	kvx_assert(f.n_found == n_asked);
	return 0;
}
