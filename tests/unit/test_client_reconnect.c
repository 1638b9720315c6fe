/* The way back after a loss of the daemon: the same regions and imports work with the next one, and
 * what does not is told once. */
#include "client_fixture.h"

#include <errno.h>
#include <stdatomic.h>

#include "test_end.h"

struct revival {
	_Atomic int alive;         /* 0: submits are answered with FRAME_ERROR */
	_Atomic int import_status; /* answer to imports */
	_Atomic int n_registered;  /* since alive */
	_Atomic int refuse_region; /* refuse registrations */
};

static enum fake_answer revive(struct fake_daemon *d, uint16_t type)
{
	struct revival *r = d->arg;

	if (type == KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT && !r->alive) {
		fake_error(d, KVXFER_INTERNAL, "restarting");
		return FAKE_HANG_UP;
	}
	if (type == KVXP__FRAME_TYPE__FRAME_REGION_REGISTER && r->alive) {
		r->n_registered++;
		if (r->refuse_region) {
			fake_reply(d, fake_request_id(d), KVXFER_QUOTA, "full", 0);
			return FAKE_DONE;
		}
	}
	if (type == KVXP__FRAME_TYPE__FRAME_IMPORT && r->import_status != 0) {
		fake_reply(d, fake_request_id(d), (uint32_t)r->import_status, "not any more", 0);
		return FAKE_DONE;
	}
	return FAKE_DEFAULT;
}

static struct pair start_revival(struct fake_daemon *d, struct revival *r, struct seen *seen)
{
	struct pair pair;

	pair = start_pair(d, revive, r, 1000);
	cr_assert_eq(kvxfer_client_reconnect(pair.client), -EALREADY);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	wait_events(pair.client, seen, 2);
	assert_loss(seen, 1, KVXFER_INTERNAL);
	seen->n = 0;
	r->alive = 1;
	return pair;
}

Test(client_reconnect, reconnect_brings_regions_and_imports_back)
{
	struct revival r = {0};
	struct fake_daemon d;
	struct seen seen = {0};
	struct pair pair = start_revival(&d, &r, &seen);
	int fd = kvxfer_client_fd(pair.client);
	char *data = kvxfer_region_data(pair.region);
	uint8_t descriptor[KVXFER_DESCRIPTOR_MAX];
	uint64_t transfer = 0;

	data[5] = 'k';
	cr_assert_eq(kvxfer_client_reconnect(pair.client), 0, "%s",
		     kvxfer_client_error(pair.client));
	cr_assert_eq(r.n_registered, 1);
	cr_assert_eq(kvxfer_client_fd(pair.client), fd);
	cr_assert_eq(kvxfer_region_data(pair.region), data);
	cr_assert_eq(data[5], 'k');
	cr_assert_eq(kvxfer_region_export(pair.region, descriptor, sizeof(descriptor)), 12);
	cr_assert_eq(submit_one(&pair, 55, &transfer), 0);
	cr_assert_eq(transfer, 2, "ids are never used again");
	cr_assert(is_readable(fd, 2000));
	wait_events(pair.client, &seen, 1);
	cr_assert_eq(seen.events[0].status, KVXFER_OK);
	cr_assert_eq(seen.events[0].tag, 55);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

Test(client_reconnect, import_that_is_gone_is_reported_once)
{
	struct revival r = {.import_status = 0};
	struct fake_daemon d;
	struct seen seen = {0};
	struct pair pair = start_revival(&d, &r, &seen);

	r.import_status = KVXFER_STALE;
	cr_assert_eq(kvxfer_client_reconnect(pair.client), 0);
	cr_assert(is_readable(kvxfer_client_fd(pair.client), 0));
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 1);
	cr_assert_eq(seen.events[0].type, KVXFER_EVENT_IMPORT_LOST);
	cr_assert_eq(seen.events[0].status, KVXFER_STALE);
	cr_assert_eq(seen.events[0].import_, pair.import_);
	cr_assert_str_eq(seen.events[0].text, "not any more");
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 0);
	cr_assert_eq(submit_one(&pair, 1, NULL), -EINVAL);
	cr_assert_eq(kvxfer_message_send(pair.import_, "x", 1), -EPIPE);
	cr_assert_eq(kvxfer_import_close(pair.import_), 0);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE], 0);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

Test(client_reconnect, failed_reconnect_can_be_repeated)
{
	struct revival r = {0};
	struct fake_daemon d;
	struct seen seen = {0};
	struct pair pair = start_revival(&d, &r, &seen);

	r.refuse_region = 1;
	cr_assert_eq(kvxfer_client_reconnect(pair.client), -EDQUOT);
	cr_assert_str_eq(kvxfer_client_error(pair.client), "full");
	cr_assert_eq(submit_one(&pair, 1, NULL), -ECONNRESET);
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), -ECONNRESET);
	r.refuse_region = 0;
	cr_assert_eq(kvxfer_client_reconnect(pair.client), 0);
	cr_assert_eq(submit_one(&pair, 2, NULL), 0);
	wait_events(pair.client, &seen, 1);
	cr_assert_eq(seen.events[0].tag, 2);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

Test(client_reconnect, import_that_changed_is_lost_one_that_did_not_is_kept)
{
	Kvxp__Plane plane = KVXP__PLANE__INIT, *planes[1] = {&plane};
	Kvxp__Layout layout = KVXP__LAYOUT__INIT;
	struct revival r = {0};
	struct fake_daemon d;
	struct seen seen = {0};
	struct pair pair;

	plane.name = (char *)(uintptr_t) "k";
	plane.block_bytes = plane.block_stride = 64;
	layout.n_planes = 1;
	layout.planes = planes;
	fake_daemon_init(&d);
	d.hook = revive;
	d.arg = &r;
	d.import_layout = &layout;
	fake_daemon_start(&d);
	pair = open_pair(&d, 1000);
	for (int round = 0; round < 2; round++) {
		r.alive = 0;
		cr_assert_eq(submit_one(&pair, 100, NULL), 0);
		wait_events(pair.client, &seen, 2);
		seen.n = 0;
		r.alive = 1;
		plane.block_bytes -= (uint64_t)round; /* the daemon thread waits for a request */
		cr_assert_eq(kvxfer_client_reconnect(pair.client), 0);
		if (round == 0)
			cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 0);
	}
	/* Closed before its event was delivered: the event is void. */
	cr_assert_eq(kvxfer_import_close(pair.import_), 0);
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 0);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

static enum fake_answer hang_up_at_import(struct fake_daemon *d, uint16_t type)
{
	_Atomic int *left = d->arg;

	if (type == KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT) {
		fake_error(d, KVXFER_INTERNAL, "restarting");
		return FAKE_HANG_UP;
	}
	if (type == KVXP__FRAME_TYPE__FRAME_IMPORT && --*left == 0)
		return FAKE_HANG_UP;
	return FAKE_DEFAULT;
}

Test(client_reconnect, daemon_lost_again_inside_reconnect)
{
	_Atomic int left = 2;
	struct fake_daemon d;
	struct seen seen = {0};
	struct pair pair;

	pair = start_pair(&d, hang_up_at_import, &left, 1000);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	wait_events(pair.client, &seen, 2);
	cr_assert_eq(kvxfer_client_reconnect(pair.client), -ECONNRESET);
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), -ECONNRESET);
	cr_assert_eq(kvxfer_client_reconnect(pair.client), 0);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

/* A request that timed out is forgotten with the connection that it was made on. */
static enum fake_answer ignore_unregister(struct fake_daemon *d, uint16_t type)
{
	if (type == KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT) {
		fake_error(d, KVXFER_INTERNAL, "restarting");
		return FAKE_HANG_UP;
	}
	return type == KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER && *(_Atomic int *)d->arg
		   ? FAKE_DONE
		   : FAKE_DEFAULT;
}

Test(client_reconnect, unanswered_unregister_survives_a_reconnect)
{
	_Atomic int ignore = 1;
	struct fake_daemon d;
	struct seen seen = {0};
	struct pair pair;

	pair = start_pair(&d, ignore_unregister, &ignore, 500);
	cr_assert_eq(kvxfer_region_unregister(pair.region), -ETIMEDOUT);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	wait_events(pair.client, &seen, 2);
	cr_assert_eq(kvxfer_client_reconnect(pair.client), 0);
	ignore = 0;
	cr_assert_eq(kvxfer_region_unregister(pair.region), 0);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER], 2);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}
