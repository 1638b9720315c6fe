/* GPU memory as a client describes it: what is refused, where an offset lies; and which device is
 * meant. */
#include "mem/gpu.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "test_end.h"

static struct kvx_gpu_mem *two_segments(struct kvx_mem *mem)
{
	struct kvx_gpu_mem *gpu = kvx_gpu_mem_create(2, 3);

	kvx_mem_init(mem, &kvx_mem_cuda_ops, -1, 0, 600);
	mem->gpu = gpu;
	kvx_gpu_pci_normalise("0000:11:00.0", gpu->id.pci);
	gpu->bases[0].len_bytes = 1000;
	gpu->bases[1].len_bytes = 300;
	gpu->segments[0] = (struct kvx_gpu_segment){.base = 0, .offset = 700, .len_bytes = 300};
	gpu->segments[1] = (struct kvx_gpu_segment){.base = 1, .offset = 0, .len_bytes = 200};
	gpu->segments[2] = (struct kvx_gpu_segment){.base = 0, .offset = 10, .len_bytes = 100};
	return gpu;
}

Test(gpu_mem, segments_follow_each_other)
{
	struct kvx_mem mem;
	struct kvx_gpu_mem *gpu = two_segments(&mem);
	struct kvx_why why = {""};
	uint64_t room;

	cr_assert_eq(mem.ops->check(&mem, &why), 0, "%s", why.text);
	cr_assert_eq(gpu->segments[2].start, 500);
	gpu->bases[0].addr = 0x100000;
	gpu->bases[1].addr = 0x200000;
	cr_assert_eq(kvx_gpu_mem_addr(gpu, 0, &room), 0x100000 + 700);
	cr_assert_eq(room, 300);
	cr_assert_eq(kvx_gpu_mem_addr(gpu, 299, &room), 0x100000 + 999);
	cr_assert_eq(room, 1);
	cr_assert_eq(kvx_gpu_mem_addr(gpu, 300, &room), 0x200000);
	cr_assert_eq(kvx_gpu_mem_addr(gpu, 599, &room), 0x100000 + 109);
	cr_assert_eq(room, 1);
	for (uint64_t i = 0; i < 600; i++)
		cr_assert_eq(kvx_gpu_mem_find(gpu, i), i < 300 ? 0 : i < 500 ? 1 : 2);
	kvx_mem_fini(&mem);
	KVX_TEST_END();
}

Test(gpu_mem, what_does_not_fit_is_refused_in_words)
{
	struct {
		int err;
		uint32_t base;
		uint64_t offset, len, region;
	} cases[] = {
	    {-EINVAL, 2, 0, 300, 600},
	    {-ERANGE, 0, 701, 300, 600},
	    {-ERANGE, 0, UINT64_MAX, 300, 600},
	    {-ERANGE, 0, 0, UINT64_MAX, 600},
	    {-ERANGE, 0, 0, 0, 300},
	    {-EINVAL, 0, 0, 300, 601},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct kvx_mem mem;
		struct kvx_gpu_mem *gpu = two_segments(&mem);
		struct kvx_why why = {""};

		gpu->segments[0] = (struct kvx_gpu_segment){
		    .base = cases[i].base, .offset = cases[i].offset, .len_bytes = cases[i].len};
		mem.len_bytes = cases[i].region;
		cr_assert_eq(mem.ops->check(&mem, &why), cases[i].err, "case %zu", i);
		cr_assert_neq(why.text[0], '\0');
		kvx_mem_fini(&mem);
	}
	KVX_TEST_END();
}

/* Copies of crumbs cost as much as copies of pages. */
Test(gpu_mem, many_crumbs_are_refused_with_what_to_do)
{
	enum { FEW = 64, MANY = 65 };
	for (uint32_t n_small = FEW; n_small <= MANY; n_small++) {
		struct kvx_mem mem;
		struct kvx_why why = {""};
		uint32_t n = n_small + 2;
		struct kvx_gpu_mem *gpu = kvx_gpu_mem_create(1, n);

		kvx_mem_init(&mem, &kvx_mem_cuda_ops, -1, 0, n_small * 4095ull + 2 * 4096);
		mem.gpu = gpu;
		kvx_gpu_pci_normalise("0000:11:00.0", gpu->id.pci);
		gpu->bases[0].len_bytes = 4096;
		for (uint32_t i = 0; i < n; i++)
			gpu->segments[i].len_bytes = i < n_small ? 4095 : 4096;
		int err = mem.ops->check(&mem, &why);
		cr_assert_eq(err, n_small == FEW ? 0 : -EINVAL, "%u: %s", n_small, why.text);
		if (err < 0)
			cr_assert_not_null(strstr(why.text, "register the allocations"), "%s",
					   why.text);
		kvx_mem_fini(&mem);
	}
	KVX_TEST_END();
}

Test(gpu_mem, witnesses_lie_within_a_segment)
{
	struct kvx_mem mem;
	struct kvx_gpu_mem *gpu = two_segments(&mem);
	struct kvx_why why = {""};

	gpu->n_witnesses = 1;
	gpu->witnesses[0].offset = 284;
	cr_assert_eq(mem.ops->check(&mem, &why), 0, "%s", why.text);
	gpu->witnesses[0].offset = 285;
	cr_assert_eq(mem.ops->check(&mem, &why), -ERANGE);
	gpu->witnesses[0].offset = 600;
	cr_assert_eq(mem.ops->check(&mem, &why), -ERANGE);
	gpu->witnesses[0].offset = UINT64_MAX;
	cr_assert_eq(mem.ops->check(&mem, &why), -ERANGE);
	kvx_mem_fini(&mem);
	KVX_TEST_END();
}

Test(gpu_mem, a_device_must_be_named)
{
	struct kvx_mem mem;
	struct kvx_gpu_mem *gpu = two_segments(&mem);
	struct kvx_why why = {""};

	gpu->id.pci[0] = '\0';
	cr_assert_eq(mem.ops->check(&mem, &why), -EINVAL);
	gpu->id.uuid[3] = 1;
	cr_assert_eq(mem.ops->check(&mem, &why), 0);
	kvx_mem_fini(&mem);
	KVX_TEST_END();
}

Test(gpu_mem, its_fds_are_closed_with_it)
{
	struct kvx_mem mem;
	struct kvx_gpu_mem *gpu = two_segments(&mem);

	gpu->bases[1].fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	cr_assert_geq(gpu->bases[1].fd, 0);
	kvx_mem_fini(&mem);
	cr_assert_null(mem.gpu);
	KVX_TEST_END(); /* counts fds */
}

Test(gpu_mem, devices_are_told_apart_by_uuid_then_by_address)
{
	struct kvx_gpu_id a = {.pci = "0000:11:00.0"}, b = {.pci = "0000:11:00.0"};

	cr_assert(kvx_gpu_id_same(&a, &b));
	b.uuid[0] = 1;
	cr_assert(kvx_gpu_id_same(&a, &b), "one side has none");
	a.uuid[0] = 2;
	cr_assert_not(kvx_gpu_id_same(&a, &b), "two parts of one device");
	a.uuid[0] = 1;
	a.pci[0] = '\0';
	cr_assert(kvx_gpu_id_same(&a, &b));
	struct kvx_gpu_id none = {0}, other = {0};
	cr_assert_not(kvx_gpu_id_same(&none, &other));
	KVX_TEST_END();
}

Test(gpu_mem, pci_addresses_have_one_form)
{
	static const struct {
		const char *text, *want;
	} cases[] = {
	    {"0000:C1:00.0", "0000:c1:00.0"},
	    {"00000000:c1:00.0", "0000:c1:00.0"},
	    {"1:2:3.4", "0001:02:03.4"},
	    {"c1:00.0", ""},
	    {"0000:c1:00.8", ""},
	    {"0000:c1:20.0", ""},
	    {"0000:100:00.0", ""},
	    {"0000:c1:00.0x", ""},
	    {"", ""},
	};
	char pci[KVX_GPU_PCI_BYTES];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		kvx_gpu_pci_normalise(cases[i].text, pci);
		cr_assert_str_eq(pci, cases[i].want, "%s", cases[i].text);
	}
	KVX_TEST_END();
}
