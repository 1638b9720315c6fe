/* `rdma_engine oob`: asks its daemon for everything that must be refused, against the region of one
 * `rdma_engine serve`: ops outside of either region, block ids and planes that do not exist,
 * descriptors that were changed. Each refusal has a name that is expected, nothing may have moved
 * (serve looks at its whole share), and afterwards an ordinary transfer works. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "drive.h"

#define OOB_BYTES   (1u << 20)
#define OOB_WAIT_MS 30000

struct oob {
	struct drive d; /* for the links; no transfer of its own */
	bool ended;
	int status;
	uint64_t bytes;
	uint64_t tried, refused, wrong;
};

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct oob *o = arg;

	if (event->type != KVXFER_EVENT_TERMINAL)
		return;
	o->ended = true;
	o->status = event->status;
	o->bytes = event->bytes;
}

/* Status of its end; a call that refuses is KVXFER_INVALID. */
static int end_of(struct oob *o, const struct kvxfer_transfer *t)
{
	uint64_t end = drv_now_ns() + drv_ms(OOB_WAIT_MS);
	uint64_t id = 0;

	o->ended = false;
	o->bytes = 0;
	if (kvxfer_transfer_submit(o->d.client, t, &id) != 0)
		return KVXFER_INVALID;
	while (!o->ended && drv_now_ns() < end)
		kvxfer_client_wait(o->d.client, 100, on_event, o);
	return o->ended ? o->status : -1;
}

static void expect_refused(struct oob *o, const struct kvxfer_transfer *t, const char *what,
			   bool access)
{
	int status = end_of(o, t);
	bool good =
	    access ? status == KVXFER_ACCESS : status == KVXFER_RANGE || status == KVXFER_INVALID;

	o->tried++;
	o->refused += good && o->bytes == 0;
	o->wrong += !good || o->bytes != 0;
	if (!good || o->bytes != 0)
		drv_say("bad=not_refused what=%s op=%d status=%s bytes=%llu", what, t->op,
			kvxfer_status_name(status), (unsigned long long)o->bytes);
}

static struct kvxfer_transfer base_transfer(struct oob *o, int op)
{
	struct kvxfer_transfer t = {
	    .struct_bytes = sizeof(t),
	    .op = op,
	    .region = o->d.region,
	    .import_ = o->d.import_,
	    .require = o->d.require,
	};

	return t;
}

static void try_ops(struct oob *o, int op, uint64_t local, uint64_t remote, uint64_t len)
{
	struct kvxfer_ops ops = {
	    .n_ops = 1, .local_offsets = &local, .remote_offsets = &remote, .len = len};
	struct kvxfer_transfer t = base_transfer(o, op);
	char what[96];

	snprintf(what, sizeof(what), "ops:%llx:%llx:%llx", (unsigned long long)local,
		 (unsigned long long)remote, (unsigned long long)len);
	t.ops = &ops;
	expect_refused(o, &t, what, false);
}

static void all_ops(struct oob *o, int op)
{
	static const uint64_t huge[] = {1ull << 40, 1ull << 63, UINT64_MAX, UINT64_MAX - 4095,
					(1ull << 63) + 4096};
	uint64_t local_end = kvxfer_region_bytes(o->d.region);
	uint64_t end = kvxfer_import_bytes(o->d.import_);

	try_ops(o, op, 0, end, 1);
	try_ops(o, op, local_end, 0, 1);
	try_ops(o, op, 0, end - 4095, 4096);
	try_ops(o, op, local_end - 4095, 0, 4096);
	try_ops(o, op, 0, 0, end + 1);
	try_ops(o, op, 0, 0, local_end + 1);
	for (size_t i = 0; i < sizeof(huge) / sizeof(huge[0]); i++) {
		try_ops(o, op, huge[i], 0, 4096);
		try_ops(o, op, 0, huge[i], 4096);
		try_ops(o, op, 4096, 4096, huge[i]);
		try_ops(o, op, huge[i], huge[i], huge[i]);
	}
}

/* A bad op behind good ones: none of them may move. */
static void one_bad(struct oob *o, int op)
{
	uint64_t local[3] = {0, 4096, 8192};
	uint64_t remote[3] = {0, kvxfer_import_bytes(o->d.import_), 8192};
	struct kvxfer_ops ops = {
	    .n_ops = 3, .local_offsets = local, .remote_offsets = remote, .len = 4096};
	struct kvxfer_transfer t = base_transfer(o, op);

	t.ops = &ops;
	expect_refused(o, &t, "one_bad_op", false);
}

static void all_blocks(struct oob *o, int op)
{
	uint32_t good = 0;
	uint32_t past = (uint32_t)(kvxfer_import_bytes(o->d.import_) / DRV_CELL);
	uint32_t local_past = (uint32_t)(kvxfer_region_bytes(o->d.region) / DRV_CELL);
	uint32_t worst = UINT32_MAX;
	const struct kvxfer_blocks cases[] = {
	    {.n_planes = 1, .n_blocks = 1, .local_blocks = &good, .remote_blocks = &past},
	    {.n_planes = 1, .n_blocks = 1, .local_blocks = &local_past, .remote_blocks = &good},
	    {.n_planes = 1, .n_blocks = 1, .local_blocks = &good, .remote_blocks = &worst},
	    {.n_planes = 3, .n_blocks = 1, .local_blocks = &good, .remote_blocks = &good},
	    {.remote_plane = 1,
	     .n_planes = 1,
	     .n_blocks = 1,
	     .local_blocks = &good,
	     .remote_blocks = &past},
	    {.remote_plane = worst,
	     .n_planes = 1,
	     .n_blocks = 1,
	     .local_blocks = &good,
	     .remote_blocks = &good},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct kvxfer_transfer t = base_transfer(o, op);
		char what[32];

		snprintf(what, sizeof(what), "blocks:%zu", i);
		t.blocks = &cases[i];
		expect_refused(o, &t, what, false);
	}
}

/* The right of the other kind was not given: nothing may be written, or read. */
static void try_access(struct oob *o, int op)
{
	uint64_t offset = op == KVXFER_WRITE ? o->d.desc.zone_offset : o->d.desc.source_offset;
	uint64_t local = 0;
	struct kvxfer_ops ops = {
	    .n_ops = 1, .local_offsets = &local, .remote_offsets = &offset, .len = 4096};
	struct kvxfer_transfer t = base_transfer(o, op);

	t.ops = &ops;
	expect_refused(o, &t, "access", true);
}

static void changed_descriptors(struct oob *o)
{
	uint8_t bad[KVXFER_DESCRIPTOR_MAX];
	struct kvxfer_import *import_ = NULL;

	for (uint32_t i = 0; i < o->d.desc.len; i++) {
		memcpy(bad, o->d.desc_bytes, o->d.desc.len);
		bad[i] ^= 0x40;
		o->tried++;
		if (kvxfer_import_open(o->d.client, bad, o->d.desc.len, NULL, &import_) != 0) {
			o->refused++;
			continue;
		}
		o->wrong++;
		drv_say("bad=descriptor byte=%u", i);
		kvxfer_import_close(import_);
	}
}

/* A READ of the source: what may be done still works, and what it brings is right. */
static bool still_works(struct oob *o, bool may_read)
{
	uint64_t local = 0;
	uint64_t remote = o->d.desc.source_offset;
	struct kvxfer_ops ops = {
	    .n_ops = 1, .local_offsets = &local, .remote_offsets = &remote, .len = DRV_LARGE};
	struct kvxfer_transfer t = base_transfer(o, KVXFER_READ);

	if (!may_read)
		return true;
	t.ops = &ops;
	return end_of(o, &t) == KVXFER_OK &&
	       drv_source_check(o->d.mem.data, DRV_LARGE, o->d.desc.source_seed, 0) == DRV_GOOD;
}

static void take_leave(struct oob *o)
{
	uint64_t end = drv_now_ns() + drv_ms(OOB_WAIT_MS);

	drv_chan_send(&o->d.chan, DRV_MSG_BYE, NULL, 0);
	while (o->d.chan.fd >= 0 && !o->d.summary && drv_now_ns() < end) {
		drive_chan_pump(&o->d);
		drv_sleep_ms(5);
	}
}

static bool report_oob(struct oob *o, bool works)
{
	static struct drv_report report;
	uint64_t guard = drv_mem_guard_bad(&o->d.mem);
	const char *zone = strstr(o->d.summary_text, "zone_bytes=0\n");
	bool good = o->wrong == 0 && guard == 0 && works && zone != NULL;

	drv_report_str(&report, "program", "oob");
	drv_report_u64(&report, "tried", o->tried);
	drv_report_u64(&report, "refused", o->refused);
	drv_report_u64(&report, "not_refused", o->wrong);
	drv_report_u64(&report, "guard_bytes", guard);
	drv_report_u64(&report, "works", works);
	drv_report_merge(&report, "serve_", o->d.summary_text);
	drv_report_u64(&report, "good", good);
	drv_report_print(&report);
	return good;
}

int oob_main(struct drv_args *args)
{
	static struct oob o;
	uint64_t access;
	bool good;

	o.d.socket = drv_arg_str(args, "--socket", NULL);
	o.d.name = drv_arg_str(args, "--name", "oob");
	o.d.peer = drv_arg_str(args, "--connect", "127.0.0.1:9900");
	o.d.require = drv_arg_str(args, "--require", NULL);
	access = drv_arg_u64(args, "--access", KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE);
	drv_args_end(args);
	o.d.zone_bytes = OOB_BYTES;
	drive_open(&o.d);
	if (kvxfer_import_open(o.d.client, o.d.desc_bytes, o.d.desc.len, NULL, &o.d.import_) != 0)
		drv_die("import: %s", kvxfer_client_error(o.d.client));
	for (int op = KVXFER_READ; op <= KVXFER_WRITE; op++) {
		if ((access & (op == KVXFER_READ ? KVXFER_ACCESS_READ : KVXFER_ACCESS_WRITE)) ==
		    0) {
			try_access(&o, op);
			continue;
		}
		all_ops(&o, op);
		one_bad(&o, op);
		all_blocks(&o, op);
	}
	changed_descriptors(&o);
	good = still_works(&o, access & KVXFER_ACCESS_READ);
	take_leave(&o);
	good = report_oob(&o, good);
	drive_import_close(&o.d);
	kvxfer_client_close(o.d.client);
	return good ? 0 : DRV_FAILED;
}
