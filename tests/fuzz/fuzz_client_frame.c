/* Fuzzes what a client may send: the input is a stream of frames, handed to the handlers over a
 * real node without threads. A second, well-behaved client owns the remote side and must survive;
 * after the end of the fuzzed one nothing of it may be left. Descriptors that a frame announces are
 * sealed memfds. So that inputs can name objects that exist, these 8-byte words are replaced in
 * bodies: "REGION-A" (own region), "REGION-B" (the other's, published as "b"), "IMPORT-A"; and a
 * body that begins with "DESCRIPT" becomes an IMPORT of the other's region. */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "control_rig.h"

#define MAX_FRAMES  64
#define MAX_BODY    65536u
#define FD_BYTES    (16 * 4096)
#define MAX_MEMFDS  8 /* of one input: they cost more than all the rest */
#define REGION_ROOM 16

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static struct rig rig;
static struct rig_client fuzzed, other;

static struct {
	uint64_t region_a, region_b, import_a;
	uint8_t desc[KVX_DESC_BYTES]; /* of region_b */
} names;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	kvx_log_set_level(KVX_LOG_ERROR);
	return 0;
}

static void body_replace(uint8_t *body, size_t len, const char word[8], uint64_t value)
{
	size_t i;

	for (i = 0; i + 8 <= len; i++) {
		if (memcmp(body + i, word, 8) == 0)
			memcpy(body + i, &value, 8);
	}
}

static KVX_ON_LOOP void send_import(void)
{
	Kvxp__Import imp = KVXP__IMPORT__INIT;

	imp.request_id = 3;
	imp.descriptor = (ProtobufCBinaryData){KVX_DESC_BYTES, names.desc};
	rig_send(&fuzzed, KVXP__FRAME_TYPE__FRAME_IMPORT, &imp.base, -1);
}

static KVX_ON_LOOP void send_frame(const struct kvx_wire_hdr *hdr, const uint8_t *data,
				   unsigned *n_memfds)
{
	uint8_t *body = malloc((size_t)hdr->len_bytes + 1);
	bool import;
	int fd = -1;

	kvx_assert(body != NULL);
	memcpy(body, data, hdr->len_bytes);
	body_replace(body, hdr->len_bytes, "REGION-A", names.region_a);
	body_replace(body, hdr->len_bytes, "REGION-B", names.region_b);
	body_replace(body, hdr->len_bytes, "IMPORT-A", names.import_a);
	import = hdr->len_bytes >= 8 && memcmp(body, "DESCRIPT", 8) == 0;
	if (hdr->n_fds > 0 && !import && *n_memfds < MAX_MEMFDS) {
		fd = rig_memfd(FD_BYTES);
		(*n_memfds)++;
	}
	if (import)
		send_import();
	else
		rig_send_raw(&fuzzed, hdr->type, body, hdr->len_bytes, fd);
	rig.clock_ns += KVX_MS; /* deadlines pass */
	free(body);
}

static KVX_ON_LOOP void send_all(const uint8_t *data, size_t size)
{
	struct kvx_wire_hdr hdr;
	unsigned n_memfds = 0;
	unsigned i;

	for (i = 0; i < MAX_FRAMES && size >= KVX_WIRE_HDR_BYTES && fuzzed.client != NULL; i++) {
		kvx_wire_hdr_unpack(data, &hdr);
		data += KVX_WIRE_HDR_BYTES;
		size -= KVX_WIRE_HDR_BYTES;
		if (hdr.len_bytes > MAX_BODY || hdr.len_bytes > size)
			hdr.len_bytes = (uint32_t)(size < MAX_BODY ? size : MAX_BODY);
		send_frame(&hdr, data, &n_memfds);
		data += hdr.len_bytes;
		size -= hdr.len_bytes;
	}
}

/* Everything the fuzzed client had is gone; the other one has what it had. */
static KVX_ON_LOOP void check_end(void)
{
	Kvxp__Query query = KVXP__QUERY__INIT;
	Kvxp__Reply *reply;

	kvx_assert(kvx_xfers_count(kvx_node_xfers(rig.node)) == 0);
	kvx_assert(kvx_regions_count(kvx_node_regions(rig.node)) == 1);
	kvx_assert(kvx_control_clients(rig.control) == 1);
	kvx_assert(other.client != NULL && kvx_client_takes_frames(other.client));
	rig_client_clear(&other);
	query.verb = (char *)(uintptr_t) "transfers";
	rig_send(&other, KVXP__FRAME_TYPE__FRAME_QUERY, &query.base, -1);
	reply = rig_take_reply(&other);
	kvx_assert(reply != NULL && reply->status == KVX_STATUS_OK);
	kvxp__reply__free_unpacked(reply, NULL);
}

static void close_at_exit(void)
{
	kvx_assert_on_loop();
	rig_client_close(&other);
	rig_close(&rig);
}

/* The daemon and the other client, once: what an input leaves behind would show in a later one. */
static KVX_ON_LOOP void open_once(void)
{
	struct kvx_regions *regions;
	struct kvx_config config;
	struct kvx_why why;

	if (rig.control != NULL)
		return;
	kvx_config_defaults(&config);
	config.regions_per_client = REGION_ROOM;
	config.blocks = 4096;
	config.ops = 4096;
	config.frame_bytes = 128 * 1024;
	rig_open(&rig, &config);
	rig_client_hello(&rig, &other);
	names.region_b = rig_register(&other, 16, KVX_ACCESS_READ | KVX_ACCESS_WRITE);
	rig_export(&other, names.region_b, names.desc);
	regions = kvx_node_regions(rig.node);
	kvx_assert(kvx_region_publish(regions, kvx_region_find(regions, names.region_b), "b",
				      "note", 4, &why) == 0);
	atexit(close_at_exit);
}

/* First byte: bit 0: the client has said HELLO and has a region and an import already. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size == 0)
		return 0;
	kvx_role_set_loop();
	kvx_assert_on_loop();
	open_once();
	if ((data[0] & 1) != 0) {
		rig_client_hello(&rig, &fuzzed);
		names.region_a = rig_register(&fuzzed, 16, KVX_ACCESS_READ);
		names.import_a = rig_import(&fuzzed, &other, names.region_b);
	} else {
		kvx_assert(rig_client_open(&rig, &fuzzed) == 0);
	}
	send_all(data + 1, size - 1);
	rig_client_close(&fuzzed);
	kvx_control_set_draining(rig.control, false);
	check_end();
	return 0;
}
