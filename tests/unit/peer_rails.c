/* See peer_rails.h. */
#include "peer_rails.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "transport/fake/fake_priv.h"

struct kvx_transport_ops test_best_ops, test_fake_ops, test_any_ops, test_gpu_ops;

static struct test_rail rails[RAIL_MAX];
static unsigned n_rails, node_now;

static struct test_rail *rail_of(const struct kvx_dom *dom)
{
	for (unsigned i = 0; i < n_rails; i++)
		if (rails[i].dom == dom)
			return &rails[i];
	cr_assert_fail("a domain that is no rail");
	return NULL;
}

static int rail_open(const struct kvx_transport_ops *ops, const struct kvx_dom_conf *conf,
		     struct kvx_dom **out_dom, struct kvx_transport_limits *out_limits,
		     struct kvx_why *why)
{
	int err = kvx_fake_ops.open(conf, out_dom, out_limits, why);

	if (err < 0)
		return err;
	cr_assert_lt(n_rails, RAIL_MAX);
	rails[n_rails] = (struct test_rail){
	    .dom = *out_dom, .ops = ops, .node = node_now, .index = (*out_dom)->rail};
	out_limits->port = &rails[n_rails++].port;
	return 0;
}

static int best_open(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
		     struct kvx_transport_limits *out_limits, struct kvx_why *why)
{
	return rail_open(&test_best_ops, conf, out_dom, out_limits, why);
}

static int fake_open(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
		     struct kvx_transport_limits *out_limits, struct kvx_why *why)
{
	return rail_open(&test_fake_ops, conf, out_dom, out_limits, why);
}

static int any_open(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
		    struct kvx_transport_limits *out_limits, struct kvx_why *why)
{
	return rail_open(&test_any_ops, conf, out_dom, out_limits, why);
}

static int rail_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem,
			uint32_t rights, struct kvx_mr **out_mr)
{
	return rail_of(dom)->refuses ? -EOPNOTSUPP
				     : kvx_fake_ops.mem_reg(dom, tenant, mem, rights, out_mr);
}

static int rail_listen(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
		       size_t *addr_len)
{
	struct test_rail *rail = rail_of(dom);

	rail->n_listens++;
	if (rail->down)
		return -ENETDOWN;
	return kvx_fake_ops.listen(dom, tenant, out_ep, addr, addr_len);
}

static int rail_connect(struct kvx_ep *ep, const void *addr, size_t addr_len)
{
	struct test_rail *rail = rail_of(ep->dom);

	rail->n_connects++;
	if (rail->cut)
		return -EHOSTUNREACH;
	return kvx_fake_ops.connect(ep, addr, addr_len);
}

void test_rails_init(void)
{
	memset(rails, 0, sizeof(rails));
	n_rails = 0;
	test_best_ops = kvx_fake_ops;
	test_best_ops.name = "best";
	test_best_ops.open = best_open;
	test_best_ops.listen = rail_listen;
	test_best_ops.connect = rail_connect;
	test_best_ops.mem_reg = rail_mem_reg;
	test_fake_ops = test_best_ops;
	test_fake_ops.name = "fake";
	test_fake_ops.open = fake_open;
	test_any_ops = test_best_ops;
	test_any_ops.name = "any";
	test_any_ops.caps |= KVX_CAP_ANY_MEMORY;
	test_any_ops.open = any_open;
	test_one_gpu_ops(&test_gpu_ops);
}

void test_rails_begin(unsigned node)
{
	node_now = node;
}

void test_rail_wait(struct test_rail *rail, bool waits)
{
	rail->down = waits;
	atomic_store(&rail->port.waits, waits ? "the port is down" : NULL);
}

struct test_rail *test_rail(const struct kvx_transport_ops *ops, unsigned node, unsigned index)
{
	for (unsigned i = 0; i < n_rails; i++)
		if (rails[i].ops == ops && rails[i].node == node && rails[i].index == index)
			return &rails[i];
	cr_assert_fail("no such rail");
	return NULL;
}
