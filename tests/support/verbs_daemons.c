/* See verbs_daemons.h. Aborts when its own steps fail: tests and benchmarks use it. */
#include "verbs_daemons.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MUST(cond)                                                                                 \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			fprintf(stderr, "verbs_daemons: line %d: %s\n", __LINE__, #cond);          \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

void verbs_daemons_prepare(struct verbs_daemons *d)
{
	int marks[2], acks[2];

	memset(d, 0, sizeof(*d));
	strcpy(d->dir, VERBS_DAEMONS_DIR);
	MUST(mkdtemp(d->dir) != NULL);
	MUST(pipe(marks) == 0 && pipe(acks) == 0);
	d->mark_fd = marks[0];
	d->engine_mark_fd = marks[1];
	d->engine_ack_fd = acks[0];
	d->ack_fd = acks[1];
}

void verbs_daemons_wait(int engine_ack_fd)
{
	char go;

	if (read(engine_ack_fd, &go, 1) != 1)
		_exit(1); /* there are none: they have said why */
}

const char *verbs_daemons_socket(const char *dir, unsigned i, char path[64])
{
	snprintf(path, 64, "%s/%u", dir, i);
	return path;
}

static void on_closed(void *arg)
{
	((struct verbs_daemons *)arg)->n_closed++;
}

static KVX_ON_LOOP void daemon_open(struct verbs_daemons *d, unsigned i,
				    void (*tune)(struct kvx_config *config, unsigned i))
{
	struct kvx_daemon_conf conf = {.loop = &d->loop, .closed = on_closed, .arg = d};
	uint8_t node_id[KVX_NODE_ID_BYTES];
	struct kvx_config config;
	struct kvx_why why = {""};

	kvx_config_defaults(&config);
	snprintf(config.socket, sizeof(config.socket), "%s/%u", d->dir, i);
	snprintf(config.peer_listen, sizeof(config.peer_listen), "127.0.0.1:0");
	snprintf(config.peer_transports, sizeof(config.peer_transports), "verbs");
	snprintf(config.verbs.devices, sizeof(config.verbs.devices), "fake%u", i);
	config.copy_workers = 1;
	if (tune != NULL)
		tune(&config, i);
	MUST(kvx_config_finish(&config, &why) == 0);
	memset(node_id, (int)(i + 1), sizeof(node_id));
	conf.config = &config;
	conf.node_id = node_id;
	if (kvx_daemon_open(&conf, &d->daemons[i], &why) != 0) {
		fprintf(stderr, "verbs_daemons: %s\n", why.text);
		abort();
	}
}

static void on_alloc(uv_handle_t *handle, size_t hint, uv_buf_t *buf)
{
	*buf = uv_buf_init(((struct verbs_daemons *)handle->data)->buf, 1);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
	struct verbs_daemons *d = stream->data;

	kvx_assert_on_loop();
	if (n > 0 && d->on_mark != NULL)
		d->on_mark(d, buf->base[0]);
	if (n >= 0)
		return;
	uv_close((uv_handle_t *)stream, NULL); /* the engine has ended */
	kvx_daemon_stop(d->daemons[0]);
	kvx_daemon_stop(d->daemons[1]);
}

void verbs_daemons_open(struct verbs_daemons *d,
			void (*tune)(struct kvx_config *config, unsigned i))
{
	close(d->engine_mark_fd);
	close(d->engine_ack_fd);
	MUST(uv_loop_init(&d->loop) == 0);
	daemon_open(d, 0, tune);
	daemon_open(d, 1, tune);
	MUST(uv_pipe_init(&d->loop, &d->from_engine, 0) == 0);
	MUST(uv_pipe_open(&d->from_engine, d->mark_fd) == 0);
	d->from_engine.data = d;
	MUST(uv_read_start((uv_stream_t *)&d->from_engine, on_alloc, on_read) == 0);
	MUST(write(d->ack_fd, "g", 1) == 1);
}

void verbs_daemons_run(struct verbs_daemons *d)
{
	uv_run(&d->loop, UV_RUN_DEFAULT);
	MUST(d->n_closed == 2);
	MUST(uv_loop_close(&d->loop) == 0);
	uv_library_shutdown(); /* gives back its own fds */
	close(d->ack_fd);
	rmdir(d->dir);
}
