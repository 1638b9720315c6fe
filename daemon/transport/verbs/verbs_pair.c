/* Loopback: two queue pairs of a domain connected to each other on its own port. By them the device
 * is made to read memory of this node: before GPU memory is told to anybody (verbs_see.c), and to
 * flush it (verbs_flush.c). Helpers: the calls block. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "transport/verbs/verbs_priv.h"

/* No ep has this index: what the device says of these queue pairs finds nobody. */
#define NO_CONTEXT UINT64_MAX

static int pair_make_page(struct verbs_pair *pair, struct ibv_pd *pd, int access)
{
	pair->page = aligned_alloc(VERBS_PAIR_BYTES, VERBS_PAIR_BYTES);
	if (pair->page == NULL)
		return -ENOMEM;
	memset(pair->page, 0, VERBS_PAIR_BYTES);
	errno = 0;
	pair->page_mr = ibv_reg_mr(pd, pair->page, VERBS_PAIR_BYTES, access);
	return pair->page_mr != NULL ? 0 : verbs_err(errno != 0 ? errno : ENOMEM);
}

static int pair_join(struct kvx_dom *dom, struct verbs_pair *pair)
{
	struct verbs_end mine;
	struct verbs_addr addr;
	struct verbs_addr_qp qps[2];
	struct verbs_port port;
	struct kvx_why why;
	int err = verbs_port_read(dom, &port, &why);

	for (unsigned i = 0; i < 2 && err == 0; i++) {
		qps[i].qpn = pair->qps[i]->qp_num;
		err = verbs_psn(&qps[i].psn);
	}
	if (err < 0)
		return err;
	mine = (struct verbs_end){.gid_index = port.gid_index, .mtu = port.mtu};
	memcpy(mine.gid, port.gid, sizeof(mine.gid));
	addr = (struct verbs_addr){
	    .mtu = port.mtu, .lid = port.lid, .max_reads = (uint8_t)dom->max_dest_reads};
	memcpy(addr.gid, port.gid, sizeof(addr.gid));
	for (unsigned i = 0; i < 2 && err == 0; i++) {
		mine.psn = qps[i].psn;
		err = verbs_qp_join(dom, pair->qps[i], &mine, &addr, &qps[1 - i]);
	}
	return err;
}

static int pair_fill(struct kvx_dom *dom, struct ibv_pd *pd, struct ibv_comp_channel *channel,
		     uint32_t depth, struct verbs_pair *pair)
{
	int err = 0;

	errno = 0;
	pair->cq = ibv_create_cq(dom->context, (int)depth * 2, NULL, channel, 0);
	if (pair->cq == NULL)
		return verbs_err(errno != 0 ? errno : ENOMEM);
	for (unsigned i = 0; i < 2 && err == 0; i++)
		err = verbs_qp_make(dom, pd, pair->cq, depth, NO_CONTEXT, &pair->qps[i]);
	return err == 0 ? pair_join(dom, pair) : err;
}

int verbs_pair_make(struct kvx_dom *dom, struct ibv_pd *pd, struct ibv_comp_channel *channel,
		    uint32_t depth, int access, struct verbs_pair *out_pair)
{
	struct verbs_pair pair = {0};
	int err = pair_make_page(&pair, pd, access);

	if (err == 0)
		err = pair_fill(dom, pd, channel, depth, &pair);
	if (err < 0)
		verbs_pair_end(dom, &pair);
	else
		*out_pair = pair;
	return err;
}

/* What the kernel has taken down with its device is gone, whatever it says. */
static int end_result(const struct kvx_dom *dom, int err)
{
	return err == -EIO && verbs_device_is_gone(dom->context) ? 0 : err;
}

/* 0, or -errno: what the device keeps is still named in it. */
static int pair_try_end(struct kvx_dom *dom, struct verbs_pair *pair)
{
	int err = 0;

	for (unsigned i = 0; i < 2 && err == 0; i++) {
		err = pair->qps[i] != NULL ? verbs_qp_destroy(pair->qps[i]) : 0;
		if (err == 0)
			pair->qps[i] = NULL;
	}
	if (err == 0 && pair->cq != NULL)
		err = end_result(dom, verbs_err(ibv_destroy_cq(pair->cq)));
	if (err == 0)
		pair->cq = NULL;
	if (err == 0 && pair->page_mr != NULL)
		err = end_result(dom, verbs_err(ibv_dereg_mr(pair->page_mr)));
	if (err < 0)
		return err;
	free(pair->page);
	return 0;
}

struct verbs_left {
	struct verbs_pair pair;
	struct verbs_left *next;
};

void verbs_pair_end(struct kvx_dom *dom, struct verbs_pair *pair)
{
	int err = pair_try_end(dom, pair);
	struct verbs_left *left;

	if (err < 0) {
		/* Its page is the daemon's own and holds nothing: no reason to end anything. */
		kvx_error("verbs: %s: a loopback cannot be taken down and is left behind: %s",
			  dom->name, strerror(-err));
		left = malloc(sizeof(*left));
		if (left != NULL) {
			left->pair = *pair;
			left->next = atomic_load(&dom->left);
			while (!atomic_compare_exchange_weak(&dom->left, &left->next, left))
				;
		}
	}
	*pair = (struct verbs_pair){0};
}

void verbs_pairs_close(struct kvx_dom *dom)
{
	struct verbs_left *left = atomic_exchange(&dom->left, NULL), *next;

	for (; left != NULL; left = next) {
		next = left->next;
		if (pair_try_end(dom, &left->pair) < 0)
			kvx_error("verbs: %s: a loopback stays", dom->name);
		free(left);
	}
}
