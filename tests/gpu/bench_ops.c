/* What the daemon's part of a transfer costs: bench_ops SOCKET TRANSFERS BLOCKS BLOCK_BYTES DEVICE
 * DEVICE moves scattered blocks of GPU memory again and again. For counting instructions of a
 * daemon that somebody else has started under callgrind, see instructions.py; on the stand-in
 * it says nothing about speed. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvxfer/client.h"
#include "standin.h"
#include "test_gpu.h"

struct side {
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	uint8_t descriptor[KVXFER_DESCRIPTOR_MAX];
	int descriptor_bytes;
};

static unsigned n_ended;

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	if (event->type != KVXFER_EVENT_TERMINAL)
		return;
	if (event->status != KVXFER_OK) {
		fprintf(stderr, "%s: %s\n", kvxfer_status_name(event->status), event->text);
		exit(1);
	}
	n_ended++;
}

static void check(const struct kvxfer_client *client, int rc, const char *what)
{
	if (rc >= 0)
		return;
	fprintf(stderr, "%s: %d: %s\n", what, rc,
		client != NULL ? kvxfer_client_error(client) : kvxfer_open_error());
	exit(1);
}

static void side_open(struct side *s, const char *socket, int dev, uint32_t n_blocks,
		      uint64_t block_bytes)
{
	struct kvxfer_client_options client = {.struct_bytes = sizeof(client),
					       .socket_path = socket};
	struct kvxfer_plane plane = {
	    .block_stride = block_bytes, .block_bytes = block_bytes, .n_blocks = 2 * n_blocks};
	struct kvxfer_layout layout = {&plane, 1};
	struct kvxfer_region_options opt = {.struct_bytes = sizeof(opt),
					    .access = KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE,
					    .layout = &layout};
	struct kvxfer_gpu_segment segment = {.len_bytes = 2 * n_blocks * block_bytes};

	segment.ptr = test_gpu_alloc(dev, segment.len_bytes);
	check(NULL, kvxfer_client_open(&client, &s->client), "open");
	check(s->client, kvxfer_region_register_gpu(s->client, &segment, 1, &opt, &s->region),
	      "register");
	s->descriptor_bytes = kvxfer_region_export(s->region, s->descriptor, sizeof(s->descriptor));
	check(s->client, s->descriptor_bytes, "export");
}

int main(int argc, char **argv)
{
	if (argc != 7) {
		fprintf(stderr, "usage: %s SOCKET TRANSFERS BLOCKS BLOCK_BYTES DEVICE DEVICE\n",
			argv[0]);
		return 2;
	}
	unsigned n = (unsigned)atoi(argv[2]);
	uint32_t n_blocks = (uint32_t)atoi(argv[3]);
	uint64_t block_bytes = (uint64_t)atoll(argv[4]);
	uint32_t *from = calloc(n_blocks, sizeof(*from)), *to = calloc(n_blocks, sizeof(*to));
	struct kvxfer_import *import_;
	struct side a, b;
	const char *why;

	if (test_gpu_start(&why) < 0) {
		fprintf(stderr, "%s\n", why);
		return 1;
	}
	/* Never two neighbours on both sides, so that nothing is merged. */
	for (uint32_t i = 0; i < n_blocks; i++) {
		from[i] = 2 * i;
		to[i] = 2 * ((i * 7919u) % n_blocks) + 1;
	}
	side_open(&a, argv[1], atoi(argv[5]), n_blocks, block_bytes);
	side_open(&b, argv[1], atoi(argv[6]), n_blocks, block_bytes);
	check(
	    a.client,
	    kvxfer_import_open(a.client, b.descriptor, (size_t)b.descriptor_bytes, NULL, &import_),
	    "import");
	struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = n_blocks, .local_blocks = from, .remote_blocks = to};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = KVXFER_WRITE,
				    .region = a.region,
				    .import_ = import_,
				    .blocks = &blocks};

	/* Only now: that a region's memory is the right one was looked at. */
	if (test_gpu_is_standin() && standin_attach())
		standin_set_copying(false);
	for (unsigned i = 0; i < n; i++) {
		check(a.client, kvxfer_transfer_submit(a.client, &t, NULL), "submit");
		while (n_ended <= i)
			check(a.client, kvxfer_client_wait(a.client, -1, on_event, NULL), "wait");
	}
	kvxfer_client_close(b.client);
	kvxfer_client_close(a.client);
	free(from);
	free(to);
	return 0;
}
