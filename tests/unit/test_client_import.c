/* Descriptors and imports of the client library. */
#include "client_fixture.h"

#include <errno.h>

#include "test_end.h"

Test(client_import, export_gives_the_same_bytes_each_time)
{
	struct kvxfer_region *closed;
	uint8_t descriptor[KVXFER_DESCRIPTOR_MAX];
	struct fake_daemon d;
	struct pair pair;

	pair = start_pair(&d, NULL, NULL, 2000);
	cr_assert_eq(kvxfer_region_export(pair.region, descriptor, 3), -ENOSPC);
	cr_assert_eq(kvxfer_region_export(pair.region, NULL, 3), -EINVAL);
	for (int i = 0; i < 2; i++) {
		memset(descriptor, 0, sizeof(descriptor));
		cr_assert_eq(kvxfer_region_export(pair.region, descriptor, sizeof(descriptor)), 12);
		cr_assert_arr_eq(descriptor, "a descriptor", 12);
	}
	cr_assert_eq(kvxfer_region_alloc(pair.client, 4096, NULL, &closed), 0);
	cr_assert_eq(kvxfer_region_export(closed, descriptor, sizeof(descriptor)), -EACCES);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

Test(client_import, import_shows_the_remote_layout)
{
	Kvxp__Plane remote = KVXP__PLANE__INIT, *remotes[1] = {&remote};
	Kvxp__Layout layout = KVXP__LAYOUT__INIT;
	struct kvxfer_plane plane;
	struct fake_daemon d;
	struct pair pair;

	remote.name = (char *)(uintptr_t) "latent.with.a.name.of.more.than.thirty.two.bytes";
	remote.offset = 128;
	remote.block_stride = 256;
	remote.block_bytes = 200;
	remote.n_blocks = 7;
	layout.n_planes = 1;
	layout.planes = remotes;
	fake_daemon_init(&d);
	d.import_layout = &layout;
	d.import_bytes = 12345;
	fake_daemon_start(&d);
	pair = open_pair(&d, 2000);
	cr_assert_eq(kvxfer_import_bytes(pair.import_), 12345);
	cr_assert_eq(kvxfer_import_planes(pair.import_), 1);
	cr_assert_eq(kvxfer_import_plane(pair.import_, 0, &plane), 0);
	cr_assert_str_eq(plane.name, "latent.with.a.name.of.more.than.");
	cr_assert_eq(plane.offset, 128);
	cr_assert_eq(plane.block_stride, 256);
	cr_assert_eq(plane.block_bytes, 200);
	cr_assert_eq(plane.n_blocks, 7);
	cr_assert_eq(kvxfer_import_plane(pair.import_, 1, &plane), -ERANGE);
	cr_assert_str_eq(kvxfer_import_transport(pair.import_), "copy");
	cr_assert_eq(kvxfer_import_close(pair.import_), 0);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE], 1);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

static enum fake_answer refuse_layout(struct fake_daemon *d, uint16_t type)
{
	Kvxp__Import *m;

	if (type != KVXP__FRAME_TYPE__FRAME_IMPORT)
		return FAKE_DEFAULT;
	m = kvxp__import__unpack(NULL, d->len_bytes, d->body);
	*(uint64_t *)d->arg = m->check_region;
	kvxp__import__free_unpacked(m, NULL);
	fake_reply(d, fake_request_id(d), KVXFER_LAYOUT,
		   "plane 3: block_bytes 4096 here, 8192 there", 0);
	return FAKE_DONE;
}

Test(client_import, import_says_where_layouts_differ)
{
	struct kvxfer_import_options options = {.struct_bytes = sizeof(options)};
	struct kvxfer_client *client, *other;
	struct kvxfer_region *region;
	struct kvxfer_import *import_;
	uint64_t checked = 0;
	struct fake_daemon d, d2;

	fake_daemon_init(&d);
	fake_daemon_init(&d2);
	d.hook = refuse_layout;
	d.arg = &checked;
	d.next_id = 41;
	fake_daemon_start(&d);
	fake_daemon_start(&d2);
	client = open_or_fail(&d, 2000);
	other = open_or_fail(&d2, 2000);
	cr_assert_eq(kvxfer_region_alloc(client, 4096, NULL, &region), 0);
	options.compare = region;
	cr_assert_eq(kvxfer_import_open(client, "d", 1, &options, &import_), -EMEDIUMTYPE);
	cr_assert_not_null(strstr(kvxfer_client_error(client), "4096 here, 8192 there"));
	cr_assert_eq(checked, 42);
	cr_assert_eq(kvxfer_import_open(other, "d", 1, &options, &import_), -EINVAL);
	cr_assert_eq(kvxfer_import_open(client, "d", 0, NULL, &import_), -EINVAL);
	cr_assert_eq(kvxfer_import_open(client, "d", 513, NULL, &import_), -EINVAL);
	cr_assert_eq(kvxfer_import_open(client, NULL, 1, NULL, &import_), -EINVAL);
	kvxfer_client_close(client);
	kvxfer_client_close(other);
	fake_daemon_stop(&d);
	fake_daemon_stop(&d2);
	KVX_TEST_END();
}
