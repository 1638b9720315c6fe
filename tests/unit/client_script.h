/* A daemon that answers a find at the next query, and keeps what it was sent last; its client. One
 * of each a test: they are static. */
#ifndef KVX_CLIENT_SCRIPT_H
#define KVX_CLIENT_SCRIPT_H

#include <stdatomic.h>
#include <stdlib.h>

#include "client_fixture.h"

struct script {
	_Atomic uint32_t find_id; /* unanswered */
	_Atomic uint32_t status;
	uint64_t import;  /* made */
	const char *note; /* of the answer */
	uint32_t note_bytes;
	bool lose_it;       /* IMPORT_LOST right behind the answer */
	bool message_first; /* a message right before it */
	bool at_once;       /* without waiting for a query */
	char address[160], name[160], publish[160], label[80];
	char posted[8][16];
	_Atomic unsigned n_posted;
	char got_note[16];
};

static inline void answer_find(struct fake_daemon *d, struct script *s)
{
	Kvxp__Reply reply = KVXP__REPLY__INIT;
	Kvxp__Event lost = KVXP__EVENT__INIT;

	if (s->message_first)
		fake_event(d, KVXP__EVENT_TYPE__EVENT_MESSAGE, 1, 0, "first");
	reply.request_id = s->find_id;
	reply.status = s->status;
	s->find_id = 0;
	if (reply.status == 0) {
		s->import = 1000 + reply.request_id;
		reply.id = s->import;
		reply.len = 8192;
		reply.layout = (Kvxp__Layout *)(uintptr_t)d->import_layout;
		reply.transport = (char *)(uintptr_t) "copy";
		reply.data = (ProtobufCBinaryData){s->note_bytes, (uint8_t *)(uintptr_t)s->note};
	} else {
		reply.text = (char *)(uintptr_t) "nobody has published it";
	}
	fake_send(d, KVXP__FRAME_TYPE__FRAME_REPLY, &reply.base, -1);
	lost.type = KVXP__EVENT_TYPE__EVENT_IMPORT_LOST;
	lost.import = s->import;
	lost.status = KVXFER_CLIENT_LOST;
	if (s->lose_it)
		fake_send(d, KVXP__FRAME_TYPE__FRAME_EVENT, &lost.base, -1);
}

static inline void keep_find(struct fake_daemon *d, struct script *s)
{
	Kvxp__ImportFind *find = kvxp__import_find__unpack(NULL, d->len_bytes, d->body);

	snprintf(s->address, sizeof(s->address), "%s", find->address);
	snprintf(s->name, sizeof(s->name), "%s", find->name);
	s->find_id = find->request_id;
	kvxp__import_find__free_unpacked(find, NULL);
	if (s->at_once)
		answer_find(d, s);
}

static inline void keep_post(struct fake_daemon *d, struct script *s)
{
	Kvxp__MessagePost *post = kvxp__message_post__unpack(NULL, d->len_bytes, d->body);

	snprintf(s->posted[s->n_posted % 8], sizeof(s->posted[0]), "%.*s", (int)post->data.len,
		 (const char *)post->data.data);
	s->n_posted++;
	kvxp__message_post__free_unpacked(post, NULL);
}

static inline void keep_region(struct fake_daemon *d, struct script *s)
{
	Kvxp__RegionRegister *m = kvxp__region_register__unpack(NULL, d->len_bytes, d->body);

	snprintf(s->publish, sizeof(s->publish), "%s", m->publish);
	snprintf(s->got_note, sizeof(s->got_note), "%.*s", (int)m->note.len,
		 (const char *)m->note.data);
	kvxp__region_register__free_unpacked(m, NULL);
}

static inline void keep_label(struct fake_daemon *d, struct script *s)
{
	Kvxp__XferSubmit *m = kvxp__xfer_submit__unpack(NULL, d->len_bytes, d->body);

	snprintf(s->label, sizeof(s->label), "%s", m->label);
	kvxp__xfer_submit__free_unpacked(m, NULL);
}

static inline enum fake_answer scripted(struct fake_daemon *d, uint16_t type)
{
	struct script *s = d->arg;

	switch (type) {
	case KVXP__FRAME_TYPE__FRAME_IMPORT_FIND:
		keep_find(d, s);
		return FAKE_DONE;
	case KVXP__FRAME_TYPE__FRAME_MESSAGE_POST:
		keep_post(d, s);
		return FAKE_DONE;
	case KVXP__FRAME_TYPE__FRAME_REGION_REGISTER:
		keep_region(d, s);
		return FAKE_DEFAULT;
	case KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT:
		keep_label(d, s);
		return FAKE_DEFAULT;
	case KVXP__FRAME_TYPE__FRAME_QUERY:
		if (s->find_id != 0)
			answer_find(d, s);
		return FAKE_DEFAULT;
	default:
		return FAKE_DEFAULT;
	}
}

static struct fake_daemon d;
static struct script script;
static struct seen seen;
static struct pair pair;

static inline void start(void)
{
	script.note = "four heads";
	script.note_bytes = 10;
	pair = start_pair(&d, scripted, &script, 2000);
}

static inline void stop(void)
{
	stop_pair(&d, &pair);
}

static inline struct kvxfer_import *find_it(void)
{
	struct kvxfer_import *import_ = NULL;

	cr_assert_eq(kvxfer_import_find(pair.client, "10.0.0.1:7717", "engine/tp0", NULL, &import_),
		     0, "%s", kvxfer_client_error(pair.client));
	cr_assert_not_null(import_);
	return import_;
}

/* A set-up call: the answer to the find comes before its own. */
static inline void query(void)
{
	char *json;

	cr_assert_eq(kvxfer_client_query(pair.client, "status", NULL, &json), 0);
	free(json);
}

static inline enum fake_answer die_at_submit(struct fake_daemon *daemon, uint16_t type)
{
	if (type != KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT)
		return scripted(daemon, type);
	fake_error(daemon, KVXFER_INTERNAL, "restarting");
	return FAKE_HANG_UP;
}

#endif
