/* The devices whose memory a fabric domain has: each with its copiers and with a helper thread for
 * calls that may block (opening and closing copiers, page-locking buffers), so that a device
 * that does not answer holds up its own messages and nothing else. Worker thread; the helper works
 * on the job it was given and on nothing else. Made with the first memory of a device, gone some
 * time after the last. */
#include <errno.h>
#include <stdlib.h>
#include <sys/timerfd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "transport/fabric/fabric_gpu.h"

#define GAP_NS        (100 * KVX_MS) /* between two looks: what of it counts as a device's time */
#define RETRY_NS      KVX_SEC
#define TICK_COPY_NS  20000 /* longer and longer while nothing ends, up to TICK_HANG_NS */
#define TICK_HANG_NS  1000000
#define TICK_WAIT_NS  200000
#define TICK_STUCK_NS 50000000

/* ---- the helper */

/* That the runtime hangs is no deadline of a transfer; that others' calls are in front is no error
 * at all. */
static int helper_err(int rc)
{
	if (rc == -EBUSY)
		return -EAGAIN;
	return rc == -ETIMEDOUT ? -EBUSY : rc;
}

int fab_dev_job_status(const struct fab_dev *dev, int status, uint64_t *busy_ns)
{
	uint64_t now = kvx_now_ns();

	if (status != -EAGAIN) {
		*busy_ns = 0;
		return status;
	}
	if (*busy_ns == 0)
		*busy_ns = now;
	return now < *busy_ns + dev->gpu->fence_ns ? -EAGAIN : -EBUSY;
}

static void helper_close(struct fab_dev *dev)
{
	for (unsigned i = 0; i < 2; i++) {
		if (dev->copiers[i] != NULL)
			dev->access->copier_close(dev->copiers[i]);
		dev->copiers[i] = NULL;
	}
}

static int helper_open(struct fab_dev *dev)
{
	int rc = 0;

	for (unsigned i = 0; i < 2 && rc == 0; i++)
		rc = dev->access->copier_open(dev->device, FAB_TICKETS, &dev->copiers[i]);
	if (rc < 0)
		helper_close(dev);
	return rc;
}

static void helper_run(struct fab_job *job)
{
	struct fab_dev *dev = job->dev;

	switch (job->kind) {
	case FAB_JOB_OPEN:
		job->status = helper_err(helper_open(dev));
		return;
	case FAB_JOB_CLOSE:
		helper_close(dev);
		return;
	case FAB_JOB_ALLOC:
	case FAB_JOB_FREE:
		fab_buf_run(job);
		job->status = helper_err(job->status);
		return;
	}
}

static void *helper_main(void *arg)
{
	struct fab_dev *dev = arg;
	struct kvx_queue *back = dev->gpu->back;
	struct kvx_queue_node *node;

	kvx_role_set_worker();
	while ((node = kvx_queue_pop_wait(dev->todo)) != NULL) {
		helper_run((struct fab_job *)(void *)node); /* its first member */
		kvx_queue_push(back, node);
	}
	return NULL;
}

void fab_dev_send(struct fab_dev *dev, struct fab_job *job)
{
	job->dev = dev;
	job->status = 0;
	dev->n_jobs++;
	dev->gpu->n_jobs++;
	kvx_queue_push(dev->todo, &job->node);
}

static void dev_open(struct fab_dev *dev)
{
	dev->state = FAB_DEV_OPENING;
	dev->job.kind = FAB_JOB_OPEN;
	fab_dev_send(dev, &dev->job);
}

/* ---- what all devices of a domain share */

static int gpu_create(struct kvx_dom *dom)
{
	const struct kvx_gpu_conf *conf = &dom->gpu_conf;
	struct fab_gpu *gpu = calloc(1, sizeof(*gpu));
	int err;

	if (gpu == NULL)
		return -ENOMEM;
	gpu->dom = dom;
	gpu->bounces_tail = &gpu->bounces;
	gpu->slots = conf->bounce_slots > 0 ? conf->bounce_slots : 1;
	gpu->fence_ns = conf->fence_timeout_ms * KVX_MS;
	gpu->buf_bytes = KVX_PACK_HEAD_BYTES + ((dom->message_bytes + 4095) & ~(size_t)4095);
	gpu->max_bufs = (unsigned)(conf->bounce_bytes / gpu->buf_bytes);
	if (gpu->max_bufs < FAB_MIN_BUFS)
		gpu->max_bufs = FAB_MIN_BUFS;
	err = kvx_queue_create(&gpu->back);
	if (err < 0)
		goto err_free;
	dom->gpu = gpu;
	return 0;

err_free:
	free(gpu);
	return err;
}

/* A copy that has just begun ends soon; one that has not ended for long need not be looked at as
 * often, as it may be one of a device that hangs. */
static long tick_of_copies(struct fab_gpu *gpu)
{
	if (gpu->n_moves != gpu->moves_seen || gpu->copy_tick_ns == 0)
		gpu->copy_tick_ns = TICK_COPY_NS;
	else if (gpu->copy_tick_ns < TICK_HANG_NS)
		gpu->copy_tick_ns += gpu->copy_tick_ns / 8;
	gpu->moves_seen = gpu->n_moves;
	return gpu->copy_tick_ns;
}

int fab_gpu_arm(struct fab_gpu *gpu)
{
	struct itimerspec tick = {.it_value.tv_nsec = 0}; /* off */

	if (gpu->n_copying > 0)
		tick.it_value.tv_nsec = tick_of_copies(gpu);
	else if (gpu->n_ready > 0 || gpu->n_jobs > 0 || gpu->waiting || gpu->post_waiting)
		tick.it_value.tv_nsec = TICK_WAIT_NS;
	else if (gpu->dom->waiting_calls != NULL)
		tick.it_value.tv_nsec = TICK_HANG_NS;
	else if (gpu->n_stuck > 0)
		tick.it_value.tv_nsec = TICK_STUCK_NS;
	gpu->post_waiting = false;
	/* Setting it takes back what it has fired. */
	return timerfd_settime(gpu->dom->timer_fd, 0, &tick, NULL) < 0 ? -EAGAIN : 0;
}

/* ---- a device */

static int dev_create(struct fab_gpu *gpu, const struct kvx_gpu_mem *mem, struct fab_dev **out_dev)
{
	struct fab_dev *dev = calloc(1, sizeof(*dev));
	int err;

	if (dev == NULL)
		return -ENOMEM;
	dev->gpu = gpu;
	dev->access = mem->access;
	dev->device = mem->device;
	err = kvx_queue_create(&dev->todo);
	if (err < 0)
		goto err_free;
	err = kvx_thread_start(&dev->thread, "kvx-fab-gpu", helper_main, dev);
	if (err < 0)
		goto err_queue;
	dev->next = gpu->devs;
	gpu->devs = dev;
	dev_open(dev);
	*out_dev = dev;
	return 0;

err_queue:
	kvx_queue_destroy(dev->todo);
err_free:
	free(dev);
	return err;
}

int fab_dev_ref(struct kvx_dom *dom, const struct kvx_gpu_mem *mem, struct fab_dev **out_dev)
{
	struct fab_dev *dev;
	int err = dom->gpu == NULL ? gpu_create(dom) : 0;

	if (err < 0)
		return err;
	for (dev = dom->gpu->devs; dev != NULL; dev = dev->next)
		if (dev->device == mem->device && dev->state < FAB_DEV_CLOSING)
			break;
	if (dev == NULL) {
		err = dev_create(dom->gpu, mem, &dev);
		if (err < 0)
			return err;
	}
	dev->n_mrs++;
	*out_dev = dev;
	return 0;
}

/* Once its buffers and its copiers are gone. */
static void dev_try_end(struct fab_dev *dev)
{
	struct fab_dev **at = &dev->gpu->devs;

	if (dev->state != FAB_DEV_CLOSED || dev->n_bufs > 0 || dev->n_jobs > 0)
		return;
	while (*at != dev)
		at = &(*at)->next;
	*at = dev->next;
	kvx_queue_close(dev->todo);
	pthread_join(dev->thread, NULL); /* it is idle */
	kvx_queue_destroy(dev->todo);
	free(dev);
}

static void dev_begin_close(struct fab_dev *dev)
{
	bool opening = dev->state == FAB_DEV_OPENING;

	dev->state = FAB_DEV_CLOSING;
	dev->starved_ns = 0;
	fab_bufs_drop_free(dev);
	if (opening) /* goes on when it is open */
		return;
	if (dev->copiers[0] == NULL) {
		dev->state = FAB_DEV_CLOSED;
		return;
	}
	dev->job.kind = FAB_JOB_CLOSE;
	fab_dev_send(dev, &dev->job);
}

static void dev_try_close(struct fab_dev *dev)
{
	if (dev->n_mrs > 0 || dev->n_tickets > 0 || dev->state >= FAB_DEV_CLOSING)
		return;
	dev_begin_close(dev);
	dev_try_end(dev);
}

void fab_dev_unref(struct fab_dev *dev)
{
	dev->n_mrs--;
	dev_try_close(dev);
}

void fab_dev_ticket_out(struct fab_dev *dev, bool out)
{
	dev->n_tickets++;
	if (dev->n_under_way[out]++ == 0)
		dev->moved_ns[out] = kvx_now_ns();
}

void fab_dev_looked(struct fab_gpu *gpu)
{
	uint64_t now = kvx_now_ns(), gap = now - gpu->looked_ns;

	for (struct fab_dev *dev = gpu->devs; dev != NULL && gap > GAP_NS; dev = dev->next)
		for (unsigned out = 0; out < 2; out++) {
			dev->moved_ns[out] += gap - GAP_NS;
			if (dev->moved_ns[out] > now)
				dev->moved_ns[out] = now;
		}
	gpu->looked_ns = now;
}

/* As of the last look: what has ended since is not known yet. */
bool fab_dev_hangs(struct fab_dev *dev, bool out)
{
	if (dev->n_under_way[out] == 0 ||
	    dev->gpu->looked_ns < dev->moved_ns[out] + dev->gpu->fence_ns)
		return false;
	if (!dev->hang_told)
		kvx_warn("fabric: a GPU has ended no copy for %llu ms: messages from and to its "
			 "memory fail until it does",
			 (unsigned long long)(dev->gpu->fence_ns / KVX_MS));
	dev->hang_told = true;
	return true;
}

void fab_dev_ticket_back(struct fab_dev *dev, bool out)
{
	dev->n_tickets--;
	dev->n_under_way[out]--;
	dev->moved_ns[out] = kvx_now_ns();
	dev->hang_told = false;
	dev_try_close(dev);
}

int fab_dev_ready(struct fab_dev *dev)
{
	if (dev->state == FAB_DEV_OPEN)
		return dev->status;
	if (dev->state == FAB_DEV_FAILED && dev->status != -ENODEV && kvx_now_ns() >= dev->retry_ns)
		dev_open(dev);
	return dev->state == FAB_DEV_OPENING ? -EAGAIN : dev->status;
}

void fab_dev_lost(struct fab_dev *dev)
{
	if (dev->status == -ENODEV)
		return;
	dev->status = -ENODEV;
	dev->starved_ns = 0;
	kvx_warn("fabric: a GPU is lost: messages from and to its memory fail from now on");
	fab_bufs_drop_free(dev); /* they are page-locked no more */
}

static void dev_on_open(struct fab_dev *dev, int status)
{
	if (dev->state == FAB_DEV_CLOSING) {
		dev->state = FAB_DEV_CLOSED;
		if (dev->copiers[0] != NULL) {
			dev->state = FAB_DEV_CLOSING;
			dev->job.kind = FAB_JOB_CLOSE;
			fab_dev_send(dev, &dev->job);
		}
		return;
	}
	status = fab_dev_job_status(dev, status, &dev->open_busy_ns);
	dev->state = status == 0 ? FAB_DEV_OPEN : FAB_DEV_FAILED;
	dev->status = status;
	dev->retry_ns = kvx_now_ns() + (status == -EAGAIN ? FAB_BUSY_RETRY_NS : RETRY_NS);
	if (status < 0 && status != -EAGAIN)
		kvx_warn("fabric: copies between a GPU and host memory cannot be made: error %d: "
			 "messages from and to its memory fail (see the gpu lines before)",
			 -status);
}

void fab_gpu_jobs(struct fab_gpu *gpu)
{
	struct kvx_queue_node *node;

	while (gpu->n_jobs > 0 && (node = kvx_queue_pop(gpu->back)) != NULL) {
		struct fab_job *job = (struct fab_job *)(void *)node; /* its first member */
		struct fab_dev *dev = job->dev;

		gpu->n_jobs--;
		dev->n_jobs--;
		if (job->kind == FAB_JOB_OPEN)
			dev_on_open(dev, job->status);
		else if (job->kind == FAB_JOB_CLOSE)
			dev->state = FAB_DEV_CLOSED;
		else
			fab_buf_back(job);
		dev_try_end(dev);
	}
}

/* Eps and mrs are gone: what is left is with the helpers, which come back. Only copies that can
 * neither end nor be stopped leave something behind. */
void fab_gpu_close(struct fab_gpu *gpu)
{
	struct fab_bounce *bounce;

	if (gpu == NULL)
		return;
	fab_bounce_progress(gpu);
	while (gpu->devs != NULL && gpu->n_jobs > 0) {
		struct kvx_queue_node *node = kvx_queue_pop_wait(gpu->back);

		kvx_queue_push(gpu->back, node);
		fab_gpu_jobs(gpu);
	}
	if (gpu->devs != NULL || gpu->n_stuck > 0) {
		kvx_error("fabric: copies of a GPU do not end: leaving their buffers");
		return;
	}
	while ((bounce = gpu->free_bounces) != NULL) {
		gpu->free_bounces = bounce->next;
		free(bounce);
	}
	free(gpu->by_index);
	kvx_queue_destroy(gpu->back);
	free(gpu);
}
