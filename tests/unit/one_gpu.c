/* See one_gpu.h. */
#include "one_gpu.h"

#include <stdio.h>

static int gpu_probe(const struct kvx_dom_conf *conf, struct kvx_rail *out, unsigned max,
		     struct kvx_why *why)
{
	*out = (struct kvx_rail){.numa_node = -1, .usable = true};
	snprintf(out->name, sizeof(out->name), "gpu0");
	snprintf(out->gpu.pci, sizeof(out->gpu.pci), TEST_GPU_PCI);
	return 1;
}

static int gpu_open(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
		    struct kvx_transport_limits *out_limits, struct kvx_why *why)
{
	struct kvx_dom_conf any = *conf;

	any.rail = NULL;
	return kvx_fake_ops.open(&any, out_dom, out_limits, why);
}

void test_one_gpu_ops(struct kvx_transport_ops *out_ops)
{
	*out_ops = kvx_fake_ops;
	out_ops->name = "gpu";
	out_ops->probe = gpu_probe;
	out_ops->open = gpu_open;
}
