/* Answers to the client library that come after its time was over: what they have made is undone.
 * The daemon holds one back until the test asks for it with a query. */
#include "client_fixture.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "test_end.h"

struct late {
	uint16_t type;
	_Atomic uint32_t held_request; /* 0: none */
	_Atomic uint64_t released;
};

static enum fake_answer answer_late(struct fake_daemon *d, uint16_t type)
{
	struct late *late = d->arg;
	Kvxp__RegionUnregister *m;

	if (type == late->type && late->held_request == 0) {
		late->held_request = fake_request_id(d);
		return FAKE_DONE;
	}
	if (type == KVXP__FRAME_TYPE__FRAME_QUERY)
		fake_reply(d, late->held_request, 0, "", 77);
	if (type == KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER ||
	    type == KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE) {
		m = kvxp__region_unregister__unpack(NULL, d->len_bytes, d->body);
		late->released = m->region;
		kvxp__region_unregister__free_unpacked(m, NULL);
	}
	return FAKE_DEFAULT;
}

Test(client_late, registration_that_comes_too_late_is_undone)
{
	struct late late = {.type = KVXP__FRAME_TYPE__FRAME_REGION_REGISTER};
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	struct fake_daemon d;
	char *json;

	client = start_client(&d, answer_late, &late, 500);
	cr_assert_eq(kvxfer_region_alloc(client, 4096, NULL, &region), -ETIMEDOUT);
	for (int i = 0; i < 2; i++) { /* the second is answered after the undoing was read */
		cr_assert_eq(kvxfer_client_query(client, "status", NULL, &json), 0);
		free(json);
	}
	cr_assert_eq(late.released, 77);
	stop_client(&d, client);
	KVX_TEST_END();
}

Test(client_late, import_that_comes_too_late_is_released)
{
	struct late late = {.type = KVXP__FRAME_TYPE__FRAME_IMPORT};
	struct kvxfer_client *client;
	struct kvxfer_import *import_;
	struct fake_daemon d;
	char *json;

	client = start_client(&d, answer_late, &late, 500);
	cr_assert_eq(kvxfer_import_open(client, "d", 1, NULL, &import_), -ETIMEDOUT);
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(kvxfer_client_query(client, "status", NULL, &json), 0);
		free(json);
	}
	cr_assert_eq(late.released, 77);
	stop_client(&d, client);
	KVX_TEST_END();
}

Test(client_late, unregister_can_be_repeated_and_is_sent_once)
{
	struct late late = {.type = KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER};
	struct fake_daemon d;
	struct pair pair;
	char *json;

	pair = start_pair(&d, answer_late, &late, 500);
	cr_assert_eq(kvxfer_region_unregister(pair.region), -ETIMEDOUT);
	cr_assert_eq(kvxfer_region_unregister(pair.region), -ETIMEDOUT);
	memset(kvxfer_region_data(pair.region), 1, 4096); /* still mapped */
	cr_assert_eq(kvxfer_client_query(pair.client, "status", NULL, &json), 0);
	free(json);
	cr_assert_eq(kvxfer_region_unregister(pair.region), 0);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER], 1);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}
