/* An engine of its own that storms kill: registers GPU memory, says its descriptor, and does what
 * it is told by lines on standard input until that ends.
 *
 * usage: gpu_victim SOCKET DEVICE PLANES BLOCKS BLOCK_BYTES FILL
 *   prints "desc HEX", or "refused ERRNO TEXT"; then a line for each that it reads:
 *   write HEX     imports the descriptor and writes all blocks there; "done STATUS"
 *   later HEX     the same, waiting for an event that it records; "on"
 *   storm HEX     the same again and again; "on" after the first
 *   free          gives the memory back to the runtime before the region is gone; "done 0"
 *   unregister    "done ERRNO"
 *   again         registers the memory anew; "desc HEX", or "refused ERRNO TEXT"
 *   wait          until the region is lost; "lost TEXT"
 *   look          "look HH": the first byte of the memory, when all are the same; else "look xx" */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <signal.h>

#include "kvxfer/client.h"
#include "test_gpu.h"

struct victim {
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	void *memory;
	uint64_t bytes;
	uint32_t n_planes, n_blocks;
	uint64_t block_bytes;
	uint32_t *ids;
	int dev;
	uint64_t ended; /* the last transfer that did */
	int status;
	char lost[160];
	int is_lost;
};

static void say(const char *word, const char *more)
{
	printf("%s %s\n", word, more);
	fflush(stdout);
}

static void say_number(const char *word, int number)
{
	printf("%s %d\n", word, number);
	fflush(stdout);
}

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *ev, void *arg)
{
	struct victim *v = arg;

	(void)client;
	if (ev->type == KVXFER_EVENT_TERMINAL) {
		v->ended = ev->transfer;
		v->status = ev->status;
	}
	if (ev->type == KVXFER_EVENT_REGION_LOST) {
		v->is_lost = 1;
		snprintf(v->lost, sizeof(v->lost), "%s", ev->text);
	}
}

static void say_desc(struct victim *v)
{
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	int len = kvxfer_region_export(v->region, desc, sizeof(desc));

	printf("desc ");
	for (int i = 0; i < len; i++)
		printf("%02x", desc[i]);
	printf("\n");
	fflush(stdout);
}

static void register_memory(struct victim *v)
{
	struct kvxfer_plane *planes = calloc(v->n_planes, sizeof(*planes));
	struct kvxfer_layout layout = {planes, v->n_planes};
	struct kvxfer_region_options opt = {.struct_bytes = sizeof(opt),
					    .name = "victim",
					    .access = KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE,
					    .layout = &layout};
	struct kvxfer_gpu_segment segment = {.ptr = v->memory, .len_bytes = v->bytes};
	int rc;

	kvxfer_layout_mla(0, v->n_planes, v->n_blocks, v->block_bytes, planes);
	rc = kvxfer_region_register_gpu(v->client, &segment, 1, &opt, &v->region);
	free(planes);
	if (rc == 0) {
		say_desc(v);
		return;
	}
	printf("refused %d %s\n", rc, kvxfer_client_error(v->client));
	fflush(stdout);
}

static struct kvxfer_import *import_hex(struct victim *v, const char *hex)
{
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	struct kvxfer_import *import_ = NULL;
	size_t len = 0;
	unsigned byte;

	while (len < sizeof(desc) && sscanf(hex + 2 * len, "%2x", &byte) == 1)
		desc[len++] = (uint8_t)byte;
	if (kvxfer_import_open(v->client, desc, len, NULL, &import_) != 0) {
		fprintf(stderr, "gpu_victim: import: %s\n", kvxfer_client_error(v->client));
		exit(1);
	}
	return import_;
}

static uint64_t submit_all(struct victim *v, struct kvxfer_import *import_,
			   const struct kvxfer_wait *wait)
{
	struct kvxfer_blocks blocks = {.n_planes = v->n_planes,
				       .n_blocks = v->n_blocks,
				       .local_blocks = v->ids,
				       .remote_blocks = v->ids};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = KVXFER_WRITE,
				    .region = v->region,
				    .import_ = import_,
				    .blocks = &blocks,
				    .wait = wait};
	uint64_t id = 0;

	if (kvxfer_transfer_submit(v->client, &t, &id) != 0)
		exit(2);
	return id;
}

static void write_later(struct victim *v, struct kvxfer_import *import_)
{
	void *event = test_gpu_event(true);
	struct kvxfer_wait wait = {.struct_bytes = sizeof(wait)};

	if (kvxfer_wait_for_event(v->client, event, &wait) != 0 ||
	    test_gpu_record(event, test_gpu_stream(v->dev)) != 0)
		exit(4);
	submit_all(v, import_, &wait);
	say("on", "");
}

static int write_all(struct victim *v, struct kvxfer_import *import_)
{
	uint64_t id = submit_all(v, import_, NULL);

	while (v->ended != id)
		if (kvxfer_client_wait(v->client, -1, on_event, v) < 0)
			exit(3);
	return v->status;
}

static void look(struct victim *v)
{
	uint8_t *host = malloc(v->bytes);
	char text[8] = "xx";

	test_gpu_use(v->dev);
	test_gpu_get(host, v->memory, v->bytes);
	if (memcmp(host, host + 1, v->bytes - 1) == 0)
		snprintf(text, sizeof(text), "%02x", host[0]);
	free(host);
	say("look", text);
}

static void obey(struct victim *v, const char *line)
{
	if (strncmp(line, "write ", 6) == 0) {
		say_number("done", write_all(v, import_hex(v, line + 6)));
	} else if (strncmp(line, "later ", 6) == 0) {
		write_later(v, import_hex(v, line + 6));
	} else if (strncmp(line, "storm ", 6) == 0) {
		struct kvxfer_import *import_ = import_hex(v, line + 6);

		write_all(v, import_);
		say("on", "");
		for (;;)
			write_all(v, import_);
	} else if (strcmp(line, "free") == 0) {
		test_gpu_free(v->memory);
		say_number("done", 0);
	} else if (strcmp(line, "unregister") == 0) {
		say_number("done", kvxfer_region_unregister(v->region));
	} else if (strcmp(line, "again") == 0) {
		register_memory(v);
	} else if (strcmp(line, "wait") == 0) {
		while (!v->is_lost)
			if (kvxfer_client_wait(v->client, -1, on_event, v) < 0)
				exit(3);
		say("lost", v->lost);
	} else if (strcmp(line, "look") == 0) {
		look(v);
	}
}

int main(int argc, char **argv)
{
	struct kvxfer_client_options opt = {
	    .struct_bytes = sizeof(opt), .name = "victim", .timeout_ms = 60000};
	struct victim v = {0};
	char line[2 * KVXFER_DESCRIPTOR_MAX + 64];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc != 7)
		return 2;
	opt.socket_path = argv[1];
	v.dev = atoi(argv[2]);
	v.n_planes = (uint32_t)atoi(argv[3]);
	v.n_blocks = (uint32_t)atoi(argv[4]);
	v.block_bytes = strtoull(argv[5], NULL, 10);
	v.bytes = (uint64_t)v.n_planes * v.n_blocks * v.block_bytes;
	v.ids = malloc(v.n_blocks * sizeof(*v.ids));
	for (uint32_t i = 0; i < v.n_blocks; i++)
		v.ids[i] = i;
	v.memory = test_gpu_alloc(v.dev, v.bytes);
	test_gpu_fill(v.memory, (uint8_t)atoi(argv[6]), v.bytes);
	if (kvxfer_client_open(&opt, &v.client) != 0) {
		fprintf(stderr, "gpu_victim: %s\n", kvxfer_open_error());
		return 1;
	}
	register_memory(&v);
	while (fgets(line, sizeof(line), stdin) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		obey(&v, line);
	}
	kvxfer_client_close(v.client);
	test_gpu_free(v.memory);
	free(v.ids);
	return 0;
}
