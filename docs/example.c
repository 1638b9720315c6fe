/* A prefill and a decode engine in one process: prefill writes two blocks of every plane into
 * decode's memory, and both hear when all bytes are there.
 *	cc example.c $(pkg-config --cflags --libs kvxfer-client) && ./a.out [SOCKET] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kvxfer/client.h>

enum { LAYERS = 4, PLANES = 2 * LAYERS, BLOCKS = 8, BLOCK_BYTES = 16384 };

static int check(int result, const struct kvxfer_client *client, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "%s: %s\n", what,
			client ? kvxfer_client_error(client) : kvxfer_open_error());
		exit(1);
	}
	return result;
}

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	(void)client;
	printf("%s: %s, tag %llu, %llu bytes by %s\n", (const char *)arg,
	       kvxfer_status_name(event->status), (unsigned long long)event->tag,
	       (unsigned long long)event->bytes, event->transport);
	if (event->status != KVXFER_OK)
		exit(1);
}

/* A client with a region of PLANES x BLOCKS blocks. */
static struct kvxfer_region *engine(const char *path, const char *name,
				    struct kvxfer_client **client)
{
	struct kvxfer_client_options options = {sizeof(options), path, name, 0};
	struct kvxfer_plane planes[PLANES];
	uint64_t bytes = kvxfer_layout_split_kv(0, LAYERS, BLOCKS, BLOCK_BYTES, planes);
	struct kvxfer_layout layout = {planes, PLANES};
	struct kvxfer_region_options kv;
	struct kvxfer_region *region = NULL;

	memset(&kv, 0, sizeof(kv));
	kv.struct_bytes = sizeof(kv);
	kv.name = name;
	kv.access = KVXFER_ACCESS_WRITE;
	kv.layout = &layout;
	check(kvxfer_client_open(&options, client), NULL, "open");
	check(kvxfer_region_alloc(*client, bytes, &kv, &region), *client, "alloc");
	return region;
}

int main(int argc, char **argv)
{
	const char *path = argc > 1 ? argv[1] : NULL;    /* NULL: the node's daemon */
	unsigned char descriptor[KVXFER_DESCRIPTOR_MAX]; /* goes to prefill by any channel */
	const uint32_t from_blocks[] = {0, 5}, to_blocks[] = {7, 2};
	struct kvxfer_blocks blocks = {0, 0, PLANES, 2, from_blocks, to_blocks, NULL};
	struct kvxfer_client *prefill, *decode;
	struct kvxfer_region *from = engine(path, "prefill", &prefill);
	struct kvxfer_region *to = engine(path, "decode", &decode);
	char *src = (char *)kvxfer_region_data(from), *dst = (char *)kvxfer_region_data(to);
	struct kvxfer_import *remote = NULL;
	int n = check(kvxfer_region_export(to, descriptor, sizeof(descriptor)), decode, "export");

	check(kvxfer_import_open(prefill, descriptor, (size_t)n, NULL, &remote), prefill, "import");
	struct kvxfer_transfer transfer;
	memset(&transfer, 0, sizeof(transfer));
	transfer.struct_bytes = sizeof(transfer);
	transfer.op = KVXFER_WRITE;
	transfer.region = from;
	transfer.import_ = remote;
	transfer.blocks = &blocks;
	transfer.tag = 42;
	transfer.payload = "ready";
	transfer.payload_bytes = 5;
	for (uint64_t i = 0; i < kvxfer_region_bytes(from); i++)
		src[i] = (char)(i * 7 + i / BLOCK_BYTES);
	check(kvxfer_transfer_submit(prefill, &transfer, NULL), prefill, "submit");
	check(kvxfer_client_wait(prefill, -1, on_event, (void *)"prefill"), prefill, "wait");
	check(kvxfer_client_wait(decode, -1, on_event, (void *)"decode"), decode, "wait");
	for (int i = 0; i < PLANES * 2; i++) {
		size_t plane = (size_t)i / 2 * BLOCKS;

		if (memcmp(dst + (plane + to_blocks[i % 2]) * BLOCK_BYTES,
			   src + (plane + from_blocks[i % 2]) * BLOCK_BYTES, BLOCK_BYTES) != 0)
			return 1;
	}
	kvxfer_client_close(prefill);
	kvxfer_client_close(decode);
	return 0;
}
