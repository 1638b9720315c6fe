/* What the tests of messages that wait share: two clients, and an import of one of them. */
#ifndef KVX_CONTROL_POSTS_H
#define KVX_CONTROL_POSTS_H

#include <stdlib.h>

#include "control_fixture.h"

static uint64_t import; /* of a, b's region */
static struct kvx_target *target;

static inline void open_import(const struct kvx_config *config)
{
	rig_open(&rig, config);
	rig_client_hello(&rig, &a);
	rig_client_hello(&rig, &b);
	import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	target = kvx_client_import(a.client, import)->target;
}

static inline void close_all(void)
{
	target->peer = NULL;
	all_gone();
	KVX_TEST_END();
}

static inline void post_number(unsigned number)
{
	char text[8];

	snprintf(text, sizeof(text), "%u", number);
	post(&a, import, text);
}

static inline void fill_receiver(void)
{
	b.pending_bytes = rig.config.events_bytes / 2 + 1;
}

/* b is told first .. last, in order, and nothing else. */
static inline void arrived(unsigned first, unsigned last)
{
	for (unsigned i = first; i <= last; i++) {
		Kvxp__Event *event = rig_take_event(&b, KVXP__EVENT_TYPE__EVENT_MESSAGE);
		char text[8] = "";

		cr_assert_neq(event, NULL, "%u has not come", i);
		cr_assert_lt(event->payload.len, sizeof(text));
		memcpy(text, event->payload.data, event->payload.len);
		cr_assert_eq((unsigned)atoi(text), i);
		kvxp__event__free_unpacked(event, NULL);
	}
	cr_assert_eq(b.n_frames, 0);
}

#endif
