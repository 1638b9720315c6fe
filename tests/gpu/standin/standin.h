/* The stand-in for a GPU runtime, seen by tests: a node's GPUs that do not exist. Programs that
 * load its libraries and have KVX_GPU_STANDIN in their environment share the devices of the file
 * that it names: memory of one process can be mapped by another, streams copy on threads of their
 * own, and a test in any process sees what everybody holds and makes calls fail, wait or block
 * while the others run. Device memory has addresses that only the stand-in can follow: whoever
 * touches it with the CPU ends with SIGSEGV, as on a real GPU.
 *
 * The libraries are those of a CUDA driver and of HIP (libcuda.so.1; libamdhip64.so.5 to .7,
 * libhiprtc.so.5 to .7, libhsa-runtime64.so.1), in a folder for each release.
 *
 * Nothing that runs on it says anything about the speed of a GPU.
 *
 * Order of use: standin_create(), change devices, start programs, ..., standin_destroy(). Any
 * thread; every function fails the process (abort) on a broken state file. */
#ifndef KVX_STANDIN_H
#define KVX_STANDIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define STANDIN_ENV      "KVX_GPU_STANDIN"
#define STANDIN_MAX_DEVS 8

/* Calls that can fail, wait and block, and are counted: the same for CUDA's and HIP's names. */
#define STANDIN_CALLS(X)                                                                           \
	X(INIT, "init")                                                                            \
	X(VERSION, "version")                                                                      \
	X(DEVICE_COUNT, "device_count")                                                            \
	X(DEVICE_INFO, "device_info") /* attributes, PCI address, UUID, name */                    \
	X(DEVICE_SET, "device_set")                                                                \
	X(DEVICE_GET, "device_get")                                                                \
	X(DEVICE_SYNC, "device_sync")                                                              \
	X(DEVICE_RESET, "device_reset")                                                            \
	X(CONTEXT, "context") /* primary context: retain, release, make current */                 \
	X(MEM_INFO, "mem_info")                                                                    \
	X(PEER_CAN, "peer_can")                                                                    \
	X(PEER_ENABLE, "peer_enable")                                                              \
	X(PEER_DISABLE, "peer_disable")                                                            \
	X(MALLOC, "malloc")                                                                        \
	X(FREE, "free")                                                                            \
	X(HOST_ALLOC, "host_alloc")                                                                \
	X(HOST_FREE, "host_free")                                                                  \
	X(HOST_REGISTER, "host_register")                                                          \
	X(HOST_UNREGISTER, "host_unregister")                                                      \
	X(HOST_POINTER, "host_pointer")                                                            \
	X(POINTER_INFO, "pointer_info")                                                            \
	X(ADDRESS_RANGE, "address_range")                                                          \
	X(DMABUF, "dmabuf")                                                                        \
	X(IPC_GET, "ipc_get")                                                                      \
	X(IPC_OPEN, "ipc_open")                                                                    \
	X(IPC_CLOSE, "ipc_close")                                                                  \
	X(IPC_EVENT_GET, "ipc_event_get")                                                          \
	X(IPC_EVENT_OPEN, "ipc_event_open")                                                        \
	X(STREAM_CREATE, "stream_create")                                                          \
	X(STREAM_DESTROY, "stream_destroy")                                                        \
	X(STREAM_QUERY, "stream_query")                                                            \
	X(STREAM_SYNC, "stream_sync")                                                              \
	X(STREAM_WAIT, "stream_wait") /* for an event */                                           \
	X(EVENT_CREATE, "event_create")                                                            \
	X(EVENT_DESTROY, "event_destroy")                                                          \
	X(EVENT_RECORD, "event_record")                                                            \
	X(EVENT_QUERY, "event_query")                                                              \
	X(EVENT_SYNC, "event_sync")                                                                \
	X(COPY, "copy")                                                                            \
	X(COPY_2D, "copy_2d")                                                                      \
	X(COPY_BATCH, "copy_batch")                                                                \
	X(MEMSET, "memset")                                                                        \
	X(COMPILE, "compile") /* hiprtc */                                                         \
	X(MODULE, "module")   /* load, unload, function */                                         \
	X(LAUNCH, "launch")                                                                        \
	X(VMM, "vmm")

enum standin_call {
#define STANDIN_ENUM(name, text) STANDIN_##name,
	STANDIN_CALLS(STANDIN_ENUM)
#undef STANDIN_ENUM
	    STANDIN_N_CALLS
};
const char *standin_call_name(enum standin_call call);

/* Error numbers: CUDA's, which HIP shares. */
enum standin_error {
	STANDIN_OK = 0,
	STANDIN_INVALID_VALUE = 1,
	STANDIN_OUT_OF_MEMORY = 2,
	STANDIN_NOT_INITIALIZED = 3,
	STANDIN_INVALID_PITCH = 12,
	STANDIN_INVALID_POINTER = 17,
	STANDIN_INVALID_DIRECTION = 21,
	STANDIN_NO_DEVICE = 100,
	STANDIN_INVALID_DEVICE = 101,
	STANDIN_INVALID_CONTEXT = 201,
	STANDIN_MAP_FAILED = 205,
	STANDIN_ECC = 214,
	STANDIN_PEER_UNSUPPORTED = 217,
	STANDIN_INVALID_HANDLE = 400,
	STANDIN_NOT_FOUND = 500,
	STANDIN_NOT_READY = 600,
	STANDIN_ILLEGAL_ADDRESS = 700,
	STANDIN_PEER_ALREADY = 704,
	STANDIN_PEER_NOT_ENABLED = 705,
	STANDIN_HOST_ALREADY = 712,
	STANDIN_HOST_NOT_REGISTERED = 713,
	STANDIN_LAUNCH_FAILURE = 719,
	STANDIN_NOT_SUPPORTED = 801,
	STANDIN_UNKNOWN = 999,
};

/* --- the node --- */

/* Makes a node of n_devs devices with vram_bytes each and puts its file into the environment of
 * this process, for it and for what it starts. Every pair of devices reaches each other. The file
 * is in memory alone and goes with standin_destroy(), or with this process. */
void standin_create(unsigned n_devs, uint64_t vram_bytes);
/* Forgets the node in this process too. What this process has queued is dropped, its streams end.
 * Programs that still run keep what they have. No other thread may be in a call to the runtime. */
void standin_destroy(void);
/* The node that the environment names, made by another process. False: there is none. */
bool standin_attach(void);
const char *standin_path(void);

/* "0000:c1:00.0"; made up when the node is. Before programs start. */
void standin_set_pci(unsigned dev, const char *pci);
const char *standin_pci(unsigned dev);
/* Whether a can reach b's memory (one way). Where it can, a copy needs it enabled; where it cannot,
 * the runtime copies by way of host memory, and kernels fail. */
void standin_set_reach(unsigned a, unsigned b, bool reaches);

/* What this node's runtime does not have: the call is answered with "not supported" and, where a
 * program looks it up by name, the symbol is there all the same. */
enum standin_lack {
	STANDIN_LACK_DMABUF = 1,
	STANDIN_LACK_BATCH = 2,
	STANDIN_LACK_IPC = 4,
	STANDIN_LACK_IPC_EVENTS = 8,
	STANDIN_LACK_KERNELS = 16,
};
void standin_set_lacks(uint32_t lacks);

/* --- time --- */

/* Every copy, fill and event of a stream waits that long before it is done: a time between the two,
 * different for each, from the seed. 0, 0 to begin with. */
void standin_set_delay(uint32_t min_us, uint32_t max_us, uint64_t seed);
/* Copies are done in two halves with the delay in between. Both: nothing without a node. */
void standin_set_torn(bool torn);
/* Nothing is copied, only completed: for measures of what is around it. */
void standin_set_copying(bool on);
/* The call itself takes that long before it does anything. */
void standin_delay(enum standin_call call, uint32_t us);

/* --- faults; pid 0: any process --- */

/* The nth call from now (1: the next) fails with err, once. */
void standin_fail(enum standin_call call, pid_t pid, uint32_t nth, enum standin_error err);
/* Did it? Forgets the fault. */
bool standin_fired(enum standin_call call);
/* Every call fails until told otherwise (STANDIN_OK). */
void standin_fail_all(enum standin_call call, pid_t pid, enum standin_error err);
/* Calls do not return until told otherwise. How many stand there now: standin_blocked(). */
void standin_block(enum standin_call call, pid_t pid, bool block);
uint32_t standin_blocked(enum standin_call call);
/* The same, but only calls made while this device is the caller's current one. */
void standin_block_on(enum standin_call call, pid_t pid, unsigned dev, bool block);
/* Streams of a device stop before their next op until told otherwise: what is queued stays. */
void standin_stall(unsigned dev, bool stall);

/* The device is lost: every later call that concerns it gives err in every process that uses it,
 * queued copies are dropped, its memory is gone. */
void standin_lose(unsigned dev, enum standin_error err);
/* It is there again, empty, for processes that start now. */
void standin_reset(unsigned dev);

/* --- what is held --- */

struct standin_usage {
	uint64_t alloc_bytes;  /* allocated by processes that live */
	uint64_t orphan_bytes; /* freed, or of dead processes, and kept by mappings of others */
	uint64_t mapped_bytes; /* mapped by IPC, once for each process and allocation */
	uint32_t n_allocs, n_orphans, n_maps;
};
/* Of a device, over all processes; first takes back what dead processes held, as a driver does. */
struct standin_usage standin_usage(unsigned dev);

struct standin_process {
	uint64_t mapped_bytes;  /* by IPC, all devices */
	uint64_t host_bytes;    /* page-locked: allocated and registered */
	uint64_t copies, bytes; /* done by its streams */
	uint64_t
	    pageable_copies; /* copies that had to block: host memory that is not page-locked */
	uint64_t blocking_on_main; /* calls that may block, made on its main thread */
	int32_t n_maps, n_streams, n_events, n_peers, n_modules;
};
/* False: no such process has used the runtime. */
bool standin_process(pid_t pid, struct standin_process *out_process);
uint64_t standin_calls(pid_t pid, enum standin_call call);

/* What no program may do: closing a mapping or freeing memory under a copy, using what was
 * destroyed. */
uint32_t standin_n_violations(void);
const char *standin_violation(void); /* the first; "" */
void standin_forgive(void);

/* --- memory, by its device address in this process --- */

/* The bytes behind device memory of this process: for looking without a copy. NULL: not one. */
uint8_t *standin_bytes(const void *device_pointer);
/* Whose memory that is, own or mapped by IPC; -1: none of the node's. */
int standin_device_of(const void *device_pointer);
/* The same of a dma-buf that was exported from an allocation that lives. */
int standin_device_of_dmabuf(int fd);
/* Memory of a virtual-memory mapping, as expandable segments use: it cannot be exported. Freed with
 * the runtime's own free call. NULL: none. */
void *standin_vmm_alloc(unsigned dev, uint64_t bytes);

#endif
