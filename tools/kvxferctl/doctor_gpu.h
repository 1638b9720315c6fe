/* What kvxferctl doctor looks at of GPUs; tests have places of their own. One thread. */
#ifndef KVX_DOCTOR_GPU_H
#define KVX_DOCTOR_GPU_H

#include "doctor.h"
#include "topo.h"

struct kvx_gpu_places {
	const char *root; /* "": the real one; else a folder with sys/, proc/, dev/, boot/ in it */
	const char *lib_dir; /* where runtimes are looked for first; NULL: nowhere in particular */
	const char *release; /* of the kernel, "6.1.0-13-amd64"; NULL: of the one that runs */
	unsigned limit_ms;   /* how long a runtime may take */
	bool ask_runtime;
};
/* What is known of the daemon that runs. */
struct kvx_gpu_daemon {
	unsigned pid;                /* 0: there is none */
	struct json_object *devices; /* its answer to `devices`; NULL: it gave none */
};
void kvx_doctor_gpus(struct kvx_report *report, const struct kvx_gpu_places *places,
		     const struct kvx_gpu_daemon *daemon);

/* Parts. */
/* n_gpus: on the PCI bus. */
void kvx_doctor_gpu_daemon(struct kvx_report *report, const struct kvx_gpu_daemon *daemon,
			   unsigned n_gpus, const char *root);
void kvx_doctor_gpu_files(struct kvx_report *report, const struct kvx_topo *topo, const char *root);
void kvx_doctor_gpu_bus(struct kvx_report *report, const struct kvx_topo *topo, const char *root);
void kvx_doctor_gpu_runtime(struct kvx_report *report, const struct kvx_topo *topo,
			    const struct kvx_gpu_places *places);

#endif
