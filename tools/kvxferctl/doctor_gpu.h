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
/* daemon_pid: 0 when there is no daemon. */
void kvx_doctor_gpus(struct kvx_report *report, const struct kvx_gpu_places *places,
		     unsigned daemon_pid);

/* Parts. */
void kvx_doctor_gpu_files(struct kvx_report *report, const struct kvx_topo *topo, const char *root);
void kvx_doctor_gpu_bus(struct kvx_report *report, const struct kvx_topo *topo, const char *root);
void kvx_doctor_gpu_runtime(struct kvx_report *report, const struct kvx_topo *topo,
			    const struct kvx_gpu_places *places);

#endif
