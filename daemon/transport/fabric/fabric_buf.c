/* Page-locked message buffers: allocated one by one when somebody waits for one, up to a limit for
 * the whole domain, kept as long as memory of their device is registered. A buffer is used with the
 * device that has page-locked it: what that device loses is of no concern to others. Worker thread;
 * page-locking and giving back is a job of the dev's helper. */
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/fabric/fabric_gpu.h"

#define RETRY_NS  (KVX_SEC / 2)
#define STARVE_NS (10 * KVX_MS) /* who still waits has asked again since */

void fab_buf_run(struct fab_job *job)
{
	struct fab_dev *dev = job->dev;
	struct fab_buf *buf = job->buf;
	void *addr;

	if (job->kind == FAB_JOB_FREE) {
		dev->access->host_free(dev->device, buf->addr);
		return;
	}
	job->status = dev->access->host_alloc(dev->device, dev->gpu->buf_bytes, &addr);
	if (job->status == 0)
		buf->addr = addr;
}

static void buf_free(struct fab_buf *buf)
{
	if (buf->fid != NULL) {
		int rc = fi_close(&buf->fid->fid);

		if (rc != 0)
			kvx_error("fabric: closing a memory region failed: %s", fi_strerror(-rc));
		buf->fid = NULL;
	}
	buf->job.kind = FAB_JOB_FREE;
	buf->job.buf = buf;
	buf->dev->gpu->n_freeing++;
	fab_dev_send(buf->dev, &buf->job);
}

static void buf_gone(struct fab_buf *buf)
{
	buf->dev->n_bufs--;
	buf->dev->gpu->n_bufs--;
	free(buf);
}

static int buf_register(struct fab_buf *buf)
{
	struct kvx_dom *dom = buf->dev->gpu->dom;
	uint64_t key;
	int rc;

	if (!dom->mr_local)
		return 0;
	rc = fabric_random(&key, sizeof(key));
	if (rc < 0)
		return rc;
	if (dom->info->domain_attr->mr_key_size < sizeof(key))
		key &= (1ull << (8 * dom->info->domain_attr->mr_key_size)) - 1;
	rc = fi_mr_reg(dom->domain, buf->addr, buf->dev->gpu->buf_bytes, FI_SEND | FI_RECV, 0, key,
		       0, &buf->fid, NULL);
	if (rc != 0)
		return fabric_err(rc);
	buf->desc = fi_mr_desc(buf->fid);
	return 0;
}

static bool dev_keeps(const struct fab_dev *dev)
{
	return dev->state < FAB_DEV_CLOSING && dev->status != -ENODEV;
}

static void buf_keep(struct fab_buf *buf)
{
	buf->next = buf->dev->free_bufs;
	buf->dev->free_bufs = buf;
}

void fab_buf_back(struct fab_job *job)
{
	struct fab_buf *buf = job->buf;
	struct fab_dev *dev = job->dev;
	int status = job->status;

	if (job->kind == FAB_JOB_FREE) {
		dev->gpu->n_freeing--;
		buf_gone(buf);
		return;
	}
	if (status == 0)
		status = buf_register(buf);
	status = fab_dev_job_status(dev, status, &dev->alloc_busy_ns);
	dev->buf_status = status;
	dev->buf_ns = kvx_now_ns() + (status == -EAGAIN ? FAB_BUSY_RETRY_NS : RETRY_NS);
	if (status == 0)
		dev->starved_ns = 0;
	else if (status != -EAGAIN)
		kvx_warn("fabric: page-locking %zu bytes for messages of a GPU: error %d%s",
			 dev->gpu->buf_bytes, -status,
			 status == -ENOMEM ? ": see limits.memlock and [gpu] bounce_bytes" : "");
	if (buf->addr == NULL)
		buf_gone(buf);
	else if (status == 0 && dev_keeps(dev))
		buf_keep(buf);
	else
		buf_free(buf);
}

/* It has so many more that one of them is due to dev. */
static bool dev_owes(const struct fab_dev *other, const struct fab_dev *dev)
{
	return other != dev && other->n_bufs > dev->n_bufs + (dev->n_bufs > 0);
}

/* Another device's that is not in use; one at a time. */
static void buf_take_from_others(struct fab_dev *dev)
{
	struct fab_dev *other;

	dev->starved_ns = kvx_now_ns();
	if (dev->gpu->n_freeing > 0)
		return;
	for (other = dev->gpu->devs; other != NULL; other = other->next) {
		struct fab_buf *buf = other->free_bufs;

		if (buf == NULL || !dev_owes(other, dev))
			continue;
		other->free_bufs = buf->next;
		buf_free(buf);
		return;
	}
}

/* Another device waits for one of dev's, and none is on its way already. */
static bool others_starve(const struct fab_dev *dev)
{
	const struct fab_dev *other;

	for (other = dev->gpu->devs; other != NULL && dev->gpu->n_freeing == 0; other = other->next)
		if (other->starved_ns != 0 && dev_owes(dev, other) &&
		    kvx_now_ns() < other->starved_ns + STARVE_NS)
			return true;
	return false;
}

/* One at a time: who waits asks again. */
static int buf_alloc(struct fab_dev *dev)
{
	struct fab_gpu *gpu = dev->gpu;
	struct fab_buf *buf;

	if (dev->buf_status < 0 && kvx_now_ns() < dev->buf_ns)
		return dev->n_bufs > 0 ? -EAGAIN : dev->buf_status;
	if (dev->n_jobs > 0)
		return -EAGAIN;
	if (gpu->n_bufs >= gpu->max_bufs) {
		buf_take_from_others(dev);
		return -EAGAIN;
	}
	buf = calloc(1, sizeof(*buf));
	if (buf == NULL)
		return -ENOMEM;
	buf->dev = dev;
	buf->job.kind = FAB_JOB_ALLOC;
	buf->job.buf = buf;
	dev->n_bufs++;
	gpu->n_bufs++;
	fab_dev_send(dev, &buf->job);
	return -EAGAIN;
}

int fab_buf_get(struct fab_dev *dev, bool out, struct fab_buf **out_buf)
{
	struct fab_gpu *gpu = dev->gpu;
	struct fab_buf *buf = dev->free_bufs;

	/* Those wait for the peer: the other half is for who waits for copies only. */
	if (out && gpu->n_out_bufs >= gpu->max_bufs / 2)
		return -EAGAIN;
	if (buf == NULL)
		return buf_alloc(dev);
	dev->free_bufs = buf->next;
	dev->starved_ns = 0;
	buf->out = out;
	gpu->n_out_bufs += out;
	*out_buf = buf;
	return 0;
}

void fab_buf_put(struct fab_buf *buf)
{
	struct fab_dev *dev = buf->dev;

	dev->gpu->n_out_bufs -= buf->out;
	buf->out = false;
	if (dev_keeps(dev) && !others_starve(dev))
		buf_keep(buf);
	else
		buf_free(buf);
}

void fab_bufs_drop_free(struct fab_dev *dev)
{
	while (dev->free_bufs != NULL) {
		struct fab_buf *buf = dev->free_bufs;

		dev->free_bufs = buf->next;
		buf_free(buf);
	}
}
