/* The runtime's calls behind test_gpu.h: CUDA's driver functions, or HIP's. Each has its forms
 * declared here; what differs is told apart in one place a call. */
#include "test_gpu.h"

#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "standin/cu_abi.h"

#define MAX_DEVS 16

struct handle {
	uint8_t bytes[TEST_GPU_HANDLE_BYTES];
};
enum { UNIFIED = 4, KIND_DEFAULT = 4, NON_BLOCKING = 1, NO_TIMING = 2, INTERPROCESS = 4, LAZY = 1 };

static void *library;
static bool is_hip;
static void *contexts[MAX_DEVS];

const char *test_gpu_runtime(void)
{
	const char *name = getenv("KVX_TEST_GPU");

	return name != NULL ? name : "cuda";
}

bool test_gpu_is_standin(void)
{
	return getenv("KVX_TEST_REAL_GPU") == NULL;
}

void *test_gpu_symbol(const char *name)
{
	return dlsym(library, name);
}

/* Not by an assertion: engines that are processes of their own come here, too. */
static void die(const char *what, int code)
{
	fprintf(stderr, "test_gpu: %s: the runtime says %d\n", what, code);
	abort();
}

/* The function `cuda` or `hip`, whichever the run is about, as a pointer of the wanted type. */
static void *need(const char *cuda, const char *hip)
{
	const char *name = is_hip ? hip : cuda;
	void *symbol = test_gpu_symbol(name);

	if (symbol == NULL)
		die(name, 0);
	return symbol;
}

#define CALL(cuda, hip, type) ((type)(uintptr_t)need(cuda, hip))
#define CHECK(call, what)                                                                          \
	do {                                                                                       \
		int code_ = (call);                                                                \
		if (code_ != 0)                                                                    \
			die(what, code_);                                                          \
	} while (0)

static devptr num(const void *ptr)
{
	return (devptr)(uintptr_t)ptr;
}

static void *load_library(void)
{
	static const char *const hips[] = {"libamdhip64.so.7", "libamdhip64.so.6",
					   "libamdhip64.so.5"};
	void *found = NULL;

	if (!is_hip)
		return dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
	for (unsigned i = 0; i < sizeof(hips) / sizeof(hips[0]) && found == NULL; i++)
		found = dlopen(hips[i], RTLD_NOW | RTLD_GLOBAL);
	return found;
}

/* A run that is about one release of the stand-in must not use another one's library. */
static bool library_is_wanted(void)
{
	const char *dir = getenv("KVX_TEST_GPU_DIR");
	char path[512], *real;
	bool wanted;
	Dl_info info;

	if (dir == NULL)
		return true;
	if (dladdr(test_gpu_symbol(is_hip ? "hipInit" : "cuInit"), &info) == 0)
		return false;
	real = realpath(info.dli_fname, NULL);
	snprintf(path, sizeof(path), "%s/", dir);
	wanted = real != NULL && strncmp(real, path, strlen(path)) == 0;
	if (!wanted)
		fprintf(stderr, "test_gpu: %s was loaded, not that of %s\n", info.dli_fname, dir);
	free(real);
	return wanted;
}

int test_gpu_start(const char **out_why)
{
	static char why[160];
	int rc;

	*out_why = why;
	if (library != NULL)
		return 0;
	is_hip = strcmp(test_gpu_runtime(), "hip") == 0;
	library = load_library();
	if (library == NULL) {
		snprintf(why, sizeof(why), "no %s runtime: %s", test_gpu_runtime(), dlerror());
		return -1;
	}
	if (!library_is_wanted())
		abort();
	rc = CALL("cuInit", "hipInit", int (*)(unsigned))(0);
	if (rc != 0) {
		snprintf(why, sizeof(why), "the %s runtime does not start: %d", test_gpu_runtime(),
			 rc);
		library = NULL;
		return -1;
	}
	return 0;
}

static void start(void)
{
	const char *why;

	if (test_gpu_start(&why) != 0) {
		fprintf(stderr, "test_gpu: %s\n", why);
		abort();
	}
}

int test_gpu_count(void)
{
	int n = 0;

	start();
	if (CALL("cuDeviceGetCount", "hipGetDeviceCount", int (*)(int *))(&n) != 0)
		return 0;
	return n;
}

void test_gpu_pci(int dev, char out_pci[32])
{
	start();
	CHECK(CALL("cuDeviceGetPCIBusId", "hipDeviceGetPCIBusId",
		   int (*)(char *, int, int))(out_pci, 32, dev),
	      "PCI address");
	for (char *c = out_pci; *c != '\0'; c++)
		*c = (char)tolower((unsigned char)*c);
}

void test_gpu_use(int dev)
{
	start();
	if (dev < 0 || dev >= MAX_DEVS)
		die("device", dev);
	if (is_hip) {
		CHECK(CALL("", "hipSetDevice", int (*)(int))(dev), "device");
		return;
	}
	if (contexts[dev] == NULL)
		CHECK(CALL("cuDevicePrimaryCtxRetain", "", int (*)(void **, int))(&contexts[dev],
										  dev),
		      "context");
	CHECK(CALL("cuCtxSetCurrent", "", int (*)(void *))(contexts[dev]), "context");
}

size_t test_gpu_free_bytes(int dev)
{
	size_t free_bytes = 0, total = 0;

	test_gpu_use(dev);
	CHECK(CALL("cuMemGetInfo_v2", "hipMemGetInfo", int (*)(size_t *, size_t *))(&free_bytes,
										    &total),
	      "free memory");
	return free_bytes;
}

int test_gpu_try_alloc(size_t bytes, void **out_ptr)
{
	return CALL("cuMemAlloc_v2", "hipMalloc", int (*)(void **, size_t))(out_ptr, bytes);
}

void *test_gpu_alloc(int dev, size_t bytes)
{
	void *ptr = NULL;

	test_gpu_use(dev);
	CHECK(test_gpu_try_alloc(bytes, &ptr), "allocation");
	return ptr;
}

int test_gpu_try_free(void *ptr)
{
	return CALL("cuMemFree_v2", "hipFree", int (*)(void *))(ptr);
}

void test_gpu_free(void *ptr)
{
	CHECK(test_gpu_try_free(ptr), "free");
}

int test_gpu_host_alloc(size_t bytes, void **out_ptr)
{
	return CALL("cuMemHostAlloc", "hipHostMalloc",
		    int (*)(void **, size_t, unsigned))(out_ptr, bytes, 0);
}

int test_gpu_host_free(void *ptr)
{
	return CALL("cuMemFreeHost", "hipHostFree", int (*)(void *))(ptr);
}

static int copy_now(void *dst, const void *src, size_t bytes)
{
	if (is_hip)
		return CALL("", "hipMemcpy", int (*)(void *, const void *, size_t, int))(
		    dst, src, bytes, KIND_DEFAULT);
	return CALL("cuMemcpy", "", int (*)(devptr, devptr, size_t))(num(dst), num(src), bytes);
}

void test_gpu_put(void *dst, const void *host, size_t bytes)
{
	CHECK(copy_now(dst, host, bytes), "copy to the GPU");
}

void test_gpu_get(void *host, const void *src, size_t bytes)
{
	CHECK(copy_now(host, src, bytes), "copy from the GPU");
}

void test_gpu_fill(void *dst, uint8_t value, size_t bytes)
{
	if (is_hip)
		CHECK(CALL("", "hipMemset", int (*)(void *, int, size_t))(dst, value, bytes),
		      "fill");
	else
		CHECK(CALL("cuMemsetD8_v2", "",
			   int (*)(devptr, unsigned char, size_t))(num(dst), value, bytes),
		      "fill");
	CHECK(CALL("cuCtxSynchronize", "hipDeviceSynchronize", int (*)(void))(), "fill");
}

int test_gpu_ipc_get(void *ptr, uint8_t out_handle[TEST_GPU_HANDLE_BYTES])
{
	return CALL("cuIpcGetMemHandle", "hipIpcGetMemHandle", int (*)(void *, void *))(out_handle,
											ptr);
}

int test_gpu_ipc_open(const uint8_t handle[TEST_GPU_HANDLE_BYTES], void **out_ptr)
{
	struct handle h;

	memcpy(h.bytes, handle, sizeof(h.bytes));
	return CALL("cuIpcOpenMemHandle_v2", "hipIpcOpenMemHandle",
		    int (*)(void **, struct handle, unsigned))(out_ptr, h, LAZY);
}

int test_gpu_ipc_close(void *ptr)
{
	return CALL("cuIpcCloseMemHandle", "hipIpcCloseMemHandle", int (*)(void *))(ptr);
}

int test_gpu_try_copy(void *dst, const void *src, size_t bytes, void *stream)
{
	if (is_hip)
		return CALL("", "hipMemcpyAsync",
			    int (*)(void *, const void *, size_t, int, void *))(
		    dst, src, bytes, KIND_DEFAULT, stream);
	return CALL("cuMemcpyAsync", "",
		    int (*)(devptr, devptr, size_t, void *))(num(dst), num(src), bytes, stream);
}

int test_gpu_try_rect(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
		      size_t height, void *stream)
{
	struct cuda_copy_2d rect = {.src_type = UNIFIED,
				    .src_device = num(src),
				    .src_pitch = src_pitch,
				    .dst_type = UNIFIED,
				    .dst_device = num(dst),
				    .dst_pitch = dst_pitch,
				    .width = width,
				    .height = height};

	if (is_hip)
		return CALL("", "hipMemcpy2DAsync",
			    int (*)(void *, size_t, const void *, size_t, size_t, size_t, int,
				    void *))(dst, dst_pitch, src, src_pitch, width, height,
					     KIND_DEFAULT, stream);
	return CALL("cuMemcpy2DAsync_v2", "", int (*)(const struct cuda_copy_2d *, void *))(&rect,
											    stream);
}

int test_gpu_peer(int dev, int peer)
{
	test_gpu_use(peer);
	test_gpu_use(dev);
	if (is_hip)
		return CALL("", "hipDeviceEnablePeerAccess", int (*)(int, unsigned))(peer, 0);
	return CALL("cuCtxEnablePeerAccess", "", int (*)(void *, unsigned))(contexts[peer], 0);
}

void *test_gpu_stream(int dev)
{
	void *stream = NULL;

	test_gpu_use(dev);
	CHECK(CALL("cuStreamCreate", "hipStreamCreateWithFlags",
		   int (*)(void **, unsigned))(&stream, NON_BLOCKING),
	      "stream");
	return stream;
}

void test_gpu_stream_end(void *stream)
{
	CHECK(CALL("cuStreamDestroy_v2", "hipStreamDestroy", int (*)(void *))(stream), "stream");
}

int test_gpu_stream_query(void *stream)
{
	return CALL("cuStreamQuery", "hipStreamQuery", int (*)(void *))(stream);
}

int test_gpu_stream_sync(void *stream)
{
	return CALL("cuStreamSynchronize", "hipStreamSynchronize", int (*)(void *))(stream);
}

int test_gpu_stream_wait(void *stream, void *event)
{
	return CALL("cuStreamWaitEvent", "hipStreamWaitEvent",
		    int (*)(void *, void *, unsigned))(stream, event, 0);
}

void *test_gpu_event(bool interprocess)
{
	void *event = NULL;

	CHECK(CALL("cuEventCreate", "hipEventCreateWithFlags",
		   int (*)(void **, unsigned))(&event, interprocess ? NO_TIMING | INTERPROCESS : 0),
	      "event");
	return event;
}

void test_gpu_event_end(void *event)
{
	CHECK(CALL("cuEventDestroy_v2", "hipEventDestroy", int (*)(void *))(event), "event");
}

int test_gpu_record(void *event, void *stream)
{
	return CALL("cuEventRecord", "hipEventRecord", int (*)(void *, void *))(event, stream);
}

int test_gpu_event_query(void *event)
{
	return CALL("cuEventQuery", "hipEventQuery", int (*)(void *))(event);
}

double test_gpu_elapsed_ms(void *begin, void *end)
{
	float ms = 0;

	CHECK(CALL("cuEventElapsedTime", "hipEventElapsedTime",
		   int (*)(float *, void *, void *))(&ms, begin, end),
	      "time between events");
	return (double)ms;
}

int test_gpu_event_handle(void *event, uint8_t out_handle[TEST_GPU_HANDLE_BYTES])
{
	return CALL("cuIpcGetEventHandle", "hipIpcGetEventHandle",
		    int (*)(void *, void *))(out_handle, event);
}

int test_gpu_event_open(const uint8_t handle[TEST_GPU_HANDLE_BYTES], void **out_event)
{
	struct handle h;

	memcpy(h.bytes, handle, sizeof(h.bytes));
	return CALL("cuIpcOpenEventHandle", "hipIpcOpenEventHandle",
		    int (*)(void **, struct handle))(out_event, h);
}
