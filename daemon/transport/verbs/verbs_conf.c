/* What of the configuration a device can do. Values that are too much are cut and said so in the
 * log, once, when the domain is opened: a daemon that runs with less is better than one that does
 * not run. Pure but for the log: it reads the device's limits that verbs_open() has asked for. */
#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "transport/verbs/verbs_priv.h"

#define DEFAULT_MAX_SGE   8u
#define DEFAULT_HOP_LIMIT 64u
#define DEFAULT_TIMEOUT   16u
#define DEFAULT_EPS       64u /* that the completion queue has room for */
#define MIN_STRIPE_BYTES  4096u

/* Work requests that a send queue has room for at least: the pieces of one op, and the read after
 * them. */
#define MIN_SQ_DEPTH (VERBS_OP_WRS + 2)

static void cut(const struct kvx_dom *dom, const char *key, uint32_t *value, uint32_t least,
		uint32_t most)
{
	uint32_t asked = *value;

	if (asked < least)
		*value = least;
	else if (asked > most)
		*value = most;
	if (*value != asked)
		kvx_warn("verbs: %s: verbs.%s %u cannot be used here (%u to %u), using %u",
			 dom->name, key, asked, least, most, *value);
}

/* Device limits are ints, and 0 or less where a driver does not say. */
static uint32_t limit(int device_value, uint32_t ours)
{
	return device_value > 0 && (uint32_t)device_value < ours ? (uint32_t)device_value : ours;
}

static void fit_path(struct kvx_dom *dom)
{
	struct kvx_verbs_conf *conf = &dom->conf;

	if (conf->timeout == 0) /* for the device: wait for ever */
		conf->timeout = DEFAULT_TIMEOUT;
	if (conf->hop_limit == 0)
		conf->hop_limit = DEFAULT_HOP_LIMIT;
	cut(dom, "timeout", &conf->timeout, 1, 31);
	cut(dom, "retry_count", &conf->retry_count, 0, 7);
	cut(dom, "rnr_retry", &conf->rnr_retry, 0, 7);
	cut(dom, "min_rnr_timer", &conf->min_rnr_timer, 0, 31);
	cut(dom, "traffic_class", &conf->traffic_class, 0, 255);
	cut(dom, "service_level", &conf->service_level, 0, 15);
	cut(dom, "hop_limit", &conf->hop_limit, 1, 255);
}

static void fit_reads(struct kvx_dom *dom)
{
	uint32_t most = limit(dom->device.max_qp_init_rd_atom, 255);

	dom->max_dest_reads = limit(dom->device.max_qp_rd_atom, 255);
	if (dom->conf.max_rd_atomic == 0)
		dom->conf.max_rd_atomic = most;
	/* Devices differ, and the default is more than some have: no warning. */
	if (dom->conf.max_rd_atomic > most) {
		kvx_debug("verbs: %s: verbs.max_rd_atomic %u, the device has %u", dom->name,
			  dom->conf.max_rd_atomic, most);
		dom->conf.max_rd_atomic = most;
	}
}

/* Queue pairs, their depth, and the completion queue that holds all they may say. */
static int fit_queues(struct kvx_dom *dom, struct kvx_why *why)
{
	struct kvx_verbs_conf *conf = &dom->conf;
	uint32_t max_cqe = limit(dom->device.max_cqe, UINT32_MAX);
	uint32_t max_depth = limit(dom->device.max_qp_wr, VERBS_MAX_DEPTH);
	uint64_t wanted;

	if (max_depth < MIN_SQ_DEPTH || max_cqe < MIN_SQ_DEPTH)
		return kvx_why(why, -EINVAL,
			       "%s: the device takes %u work requests and %u completions, kvxfer "
			       "needs %u: leave it out by verbs.devices",
			       dom->name, max_depth, max_cqe, MIN_SQ_DEPTH);
	cut(dom, "qps_per_lane", &conf->qps_per_lane, 1, limit(dom->device.max_qp, VERBS_MAX_QPS));
	cut(dom, "qps_per_lane", &conf->qps_per_lane, 1, max_cqe / MIN_SQ_DEPTH);
	if (max_cqe / conf->qps_per_lane < max_depth)
		max_depth = max_cqe / conf->qps_per_lane;
	cut(dom, "sq_depth", &conf->sq_depth, MIN_SQ_DEPTH, max_depth);
	cut(dom, "post_batch", &conf->post_batch, 1, conf->sq_depth - VERBS_OP_WRS - 1);
	dom->ep_entries = conf->qps_per_lane * conf->sq_depth;
	wanted = (uint64_t)dom->ep_entries * DEFAULT_EPS;
	if (conf->cq_depth == 0)
		conf->cq_depth = wanted < max_cqe ? (uint32_t)wanted : max_cqe;
	cut(dom, "cq_depth", &conf->cq_depth, dom->ep_entries, max_cqe);
	dom->cq_entries = conf->cq_depth;
	return 0;
}

static void fit_requests(struct kvx_dom *dom)
{
	struct kvx_verbs_conf *conf = &dom->conf;
	uint32_t max_sge = limit(dom->device.max_sge, VERBS_MAX_SGE);
	uint64_t asked = conf->stripe_bytes;

	/* Reads scatter as writes gather: one number for both. */
	max_sge = limit(dom->device.max_sge_rd, max_sge);
	if (conf->max_sge == 0)
		conf->max_sge = max_sge < DEFAULT_MAX_SGE ? max_sge : DEFAULT_MAX_SGE;
	cut(dom, "max_sge", &conf->max_sge, 1, max_sge);
	cut(dom, "inline_bytes", &conf->inline_bytes, 0, VERBS_MAX_INLINE);
	if (conf->stripe_bytes < MIN_STRIPE_BYTES)
		conf->stripe_bytes = MIN_STRIPE_BYTES;
	if (conf->stripe_bytes > dom->max_msg_bytes)
		conf->stripe_bytes = dom->max_msg_bytes;
	if (conf->stripe_bytes != asked)
		kvx_warn("verbs: %s: verbs.stripe_bytes %llu cannot be used here, using %llu",
			 dom->name, (unsigned long long)asked,
			 (unsigned long long)conf->stripe_bytes);
}

int verbs_conf_fit(struct kvx_dom *dom, const struct kvx_verbs_conf *conf, struct kvx_why *why)
{
	int rc;

	dom->conf = *conf;
	if (dom->device.max_pkeys > 0 && conf->pkey_index >= dom->device.max_pkeys)
		return kvx_why(why, -EINVAL,
			       "%s: verbs.pkey_index %u, but the device has only %u partition keys",
			       dom->name, conf->pkey_index, dom->device.max_pkeys);
	if (dom->max_msg_bytes < MIN_STRIPE_BYTES)
		return kvx_why(why, -EINVAL,
			       "%s: the port takes messages of %u bytes only: leave it out by "
			       "verbs.devices",
			       dom->name, dom->max_msg_bytes);
	fit_path(dom);
	fit_reads(dom);
	fit_requests(dom);
	rc = fit_queues(dom, why);
	if (rc < 0)
		return rc;
	dom->limits = (struct verbs_build_limits){
	    .max_wrs = dom->conf.post_batch,
	    .op_wrs = dom->conf.sq_depth - 1 < VERBS_MAX_OP_WRS ? dom->conf.sq_depth - 1
								: VERBS_MAX_OP_WRS,
	    .max_sge = dom->conf.max_sge,
	    .inline_bytes = dom->conf.inline_bytes,
	    .max_op_bytes = dom->conf.stripe_bytes,
	    /* Long ops go one by one, each to the queue pair with the least to do. */
	    .chain_bytes = dom->conf.stripe_bytes,
	};
	return 0;
}
