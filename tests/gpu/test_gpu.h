/* A GPU as an engine of the tests uses it: the runtime's own calls, by whichever runtime the run is
 * about (KVX_TEST_GPU: "cuda" or "hip"), real or the stand-in: found by dlopen as engines'
 * libraries do. A call whose result is no code ends the process, with words, when the runtime
 * fails. One thread. Never used before a fork() by whom the child is to use it, too: no runtime
 * survives that. */
#ifndef KVX_TEST_GPU_H
#define KVX_TEST_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TEST_GPU_HANDLE_BYTES 64

/* "cuda" or "hip". */
const char *test_gpu_runtime(void);
/* Is the stand-in in use? Else a real GPU. */
bool test_gpu_is_standin(void);
/* Loads and starts the runtime, once; -1: there is none that works here, and *out_why says why. */
int test_gpu_start(const char **out_why);
/* Devices that this process sees; starts the runtime. */
int test_gpu_count(void);
/* "0000:c1:00.0", lower case. */
void test_gpu_pci(int dev, char out_pci[32]);
/* The device that this thread works on. */
void test_gpu_use(int dev);

/* As the runtime says it of the device. */
size_t test_gpu_free_bytes(int dev);
void *test_gpu_alloc(int dev, size_t bytes);
void test_gpu_free(void *ptr);
void test_gpu_put(void *dst, const void *host, size_t bytes);
void test_gpu_get(void *host, const void *src, size_t bytes);
void test_gpu_fill(void *dst, uint8_t value, size_t bytes);

/* Raw calls, the runtime's code as it comes. */
int test_gpu_try_alloc(size_t bytes, void **out_ptr);
int test_gpu_try_free(void *ptr);
int test_gpu_ipc_get(void *ptr, uint8_t out_handle[TEST_GPU_HANDLE_BYTES]);
int test_gpu_ipc_open(const uint8_t handle[TEST_GPU_HANDLE_BYTES], void **out_ptr);
int test_gpu_ipc_close(void *ptr);
int test_gpu_try_copy(void *dst, const void *src, size_t bytes, void *stream);
int test_gpu_try_rect(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
		      size_t height, void *stream);
int test_gpu_peer(int dev, int peer); /* dev may reach peer's memory */
int test_gpu_host_alloc(size_t bytes, void **out_ptr);
int test_gpu_host_free(void *ptr);

void *test_gpu_stream(int dev);
void test_gpu_stream_end(void *stream);
int test_gpu_stream_query(void *stream);
int test_gpu_stream_sync(void *stream);
int test_gpu_stream_wait(void *stream, void *event);
void *test_gpu_event(bool interprocess);
void test_gpu_event_end(void *event);
int test_gpu_record(void *event, void *stream);
int test_gpu_event_query(void *event);
double test_gpu_elapsed_ms(void *start, void *end);
int test_gpu_event_handle(void *event, uint8_t out_handle[TEST_GPU_HANDLE_BYTES]);
int test_gpu_event_open(const uint8_t handle[TEST_GPU_HANDLE_BYTES], void **out_event);

/* A function of the runtime's library by name; NULL: it has none. */
void *test_gpu_symbol(const char *name);

#define TEST_GPU_NOT_READY 600

#endif
