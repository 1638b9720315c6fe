/* What the tests of clients share: a rig with two clients, and checks of what they are told. */
#ifndef KVX_CONTROL_FIXTURE_H
#define KVX_CONTROL_FIXTURE_H

#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

#include "base/idmap.h"
#include "control/query.h"
#include "control_rig.h"
#include "test_end.h"

static struct rig rig;
static struct rig_client a, b;

static inline void two_clients(void)
{
	rig_open(&rig, NULL);
	rig_client_hello(&rig, &a);
	rig_client_hello(&rig, &b);
}

static inline void all_gone(void)
{
	rig_client_close(&a);
	rig_client_close(&b);
	cr_assert_eq(kvx_regions_count(kvx_node_regions(rig.node)), 0);
	cr_assert_eq(kvx_xfers_count(kvx_node_xfers(rig.node)), 0);
	cr_assert_eq(kvx_control_clients(rig.control), 0);
	rig_end(&rig);
}

/* Takes a reply and checks it. */
static inline void reply_is(struct rig_client *rc, uint32_t request_id, enum kvx_status status,
			    const char *text)
{
	Kvxp__Reply *reply = rig_take_reply(rc);

	cr_assert_neq(reply, NULL, "no reply");
	cr_assert_eq(reply->request_id, request_id);
	cr_assert_eq(reply->status, status, "%s: %s", kvx_status_name(reply->status), reply->text);
	cr_assert(text == NULL || strstr(reply->text, text) != NULL, "'%s' not in '%s'", text,
		  reply->text);
	kvxp__reply__free_unpacked(reply, NULL);
}

/* The client was told this and is gone. */
static inline void error_is(struct rig_client *rc, enum kvx_status status, const char *text)
{
	Kvxp__Error *error = rig_take_error(rc);

	cr_assert_neq(error, NULL, "no error frame");
	cr_assert_eq(error->status, status, "%s: %s", kvx_status_name(error->status), error->text);
	cr_assert(strstr(error->text, text) != NULL, "'%s' not in '%s'", text, error->text);
	kvxp__error__free_unpacked(error, NULL);
	cr_assert(rc->stopped && rc->client == NULL, "the client lives");
}

static inline void terminal_is(struct rig_client *rc, uint64_t xfer, enum kvx_status status,
			       const char *text)
{
	Kvxp__Event *event = rig_take_event(rc, KVXP__EVENT_TYPE__EVENT_TERMINAL);

	cr_assert_neq(event, NULL, "no terminal event");
	cr_assert_eq(event->xfer, xfer);
	cr_assert_eq(event->status, status, "%s: %s", kvx_status_name(event->status), event->text);
	cr_assert(text == NULL || strstr(event->text, text) != NULL, "'%s' not in '%s'", text,
		  event->text);
	kvxp__event__free_unpacked(event, NULL);
}

struct submit {
	uint64_t number, region, import;
	uint32_t n_blocks;
	bool streaming;
	const char *payload;
	const char *require;
	int op;
};
#define MAX_SUBMIT_BLOCKS 512

static inline void submit_blocks(struct rig_client *rc, struct submit s)
{
	static uint32_t ids[MAX_SUBMIT_BLOCKS];
	Kvxp__XferSubmit req = KVXP__XFER_SUBMIT__INIT;
	Kvxp__BlockList list = KVXP__BLOCK_LIST__INIT;

	for (uint32_t i = 0; i < s.n_blocks; i++)
		ids[i] = i;
	list.n_planes = 1;
	list.n_local_blocks = s.n_blocks;
	list.n_remote_blocks = s.n_blocks;
	list.local_blocks = ids;
	list.remote_blocks = ids;
	req.xfer = s.number;
	req.op = s.op != 0 ? (Kvxp__Op)s.op : KVXP__OP__OP_WRITE;
	req.region = s.region;
	req.import = s.import;
	req.tag = 4711;
	req.streaming = s.streaming;
	req.blocks = s.n_blocks > 0 ? &list : NULL;
	if (s.require != NULL)
		req.require = (char *)(uintptr_t)s.require;
	if (s.payload != NULL)
		req.payload =
		    (ProtobufCBinaryData){strlen(s.payload), (uint8_t *)(uintptr_t)s.payload};
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT, &req.base, -1);
}

static inline void unregister(struct rig_client *rc, uint64_t region)
{
	Kvxp__RegionUnregister req = KVXP__REGION_UNREGISTER__INIT;

	req.request_id = 9;
	req.region = region;
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER, &req.base, -1);
}

static inline void open_stream(uint64_t *out_region, uint64_t *out_import)
{
	*out_region = rig_register(&a, 4, 0);
	*out_import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	submit_blocks(
	    &a, (struct submit){
		    .number = 1, .region = *out_region, .import = *out_import, .streaming = true});
	cr_assert_eq(a.client->xfers.n, 1, "the stream is open");
}

static inline void query(struct rig_client *rc, const char *verb)
{
	Kvxp__Query req = KVXP__QUERY__INIT;

	req.request_id = 20;
	req.verb = (char *)(uintptr_t)verb;
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_QUERY, &req.base, -1);
}

static inline void post(struct rig_client *rc, uint64_t import, const char *text)
{
	Kvxp__MessagePost req = KVXP__MESSAGE_POST__INIT;

	req.import = import;
	req.data = (ProtobufCBinaryData){strlen(text), (uint8_t *)(uintptr_t)text};
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_MESSAGE_POST, &req.base, -1);
}

static inline void lost_is(struct rig_client *rc, uint64_t import, enum kvx_status status,
			   const char *text)
{
	Kvxp__Event *event = rig_take_event(rc, KVXP__EVENT_TYPE__EVENT_IMPORT_LOST);

	cr_assert_neq(event, NULL, "no IMPORT_LOST");
	cr_assert_eq(event->import, import);
	cr_assert_eq(event->status, status, "%s: %s", kvx_status_name(event->status), event->text);
	cr_assert(strstr(event->text, text) != NULL, "'%s' not in '%s'", text, event->text);
	kvxp__event__free_unpacked(event, NULL);
}

/* Types of the events that are there, in order, as letters: T, A(rrival), M, L(ost). */
static inline const char *event_letters(const struct rig_client *rc)
{
	static char letters[RIG_FRAMES + 1];
	unsigned n = 0;

	for (unsigned i = 0; i < rc->n_frames; i++) {
		const struct rig_frame *frame = &rc->frames[i];
		Kvxp__Event *event;

		if (frame->type != KVXP__FRAME_TYPE__FRAME_EVENT)
			continue;
		event = kvxp__event__unpack(NULL, frame->len, frame->body);
		cr_assert_neq(event, NULL);
		letters[n++] = "?TAMLRD"[event->type];
		kvxp__event__free_unpacked(event, NULL);
	}
	letters[n] = '\0';
	return letters;
}

static inline void send_message(struct rig_client *rc, uint64_t import, const char *text)
{
	Kvxp__MessageSend req = KVXP__MESSAGE_SEND__INIT;

	req.request_id = 9;
	req.import = import;
	req.data = (ProtobufCBinaryData){strlen(text), (uint8_t *)(uintptr_t)text};
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_MESSAGE_SEND, &req.base, -1);
}

#endif
