/* kvxferctl: looks into a node's kvxferd. Parses the command line, runs one subcommand, gives its
 * exit code. Speaks to the daemon through libkvxfer-client only. */
#include "ctl.h"

#include <string.h>

#include "kvxfer/client.h"

const struct kvx_ctl_command kvx_ctl_commands[] = {
    {"status", "", "the daemon at a glance", 0, 0, NULL, kvx_cmd_status},
    {"clients", "", "connected engines", 0, 0, NULL, kvx_cmd_clients},
    {"regions", "", "registered memory", 0, 0, NULL, kvx_cmd_regions},
    {"transfers", "[--live | --ended] [-n N]", "running and ended transfers", 0, 0,
     kvx_cmd_transfers_flags, kvx_cmd_transfers},
    {"peers", "", "other nodes and whether they are up", 0, 0, NULL, kvx_cmd_peers},
    {"lanes", "", "what data to each peer and tenant goes over", 0, 0, NULL, kvx_cmd_lanes},
    {"devices", "", "RDMA devices and other ways to peers, used or not", 0, 0, NULL,
     kvx_cmd_devices},
    {"topology", "[--root DIR]", "GPUs, RDMA devices and how they are linked", 0, 0,
     kvx_cmd_topology_flags, kvx_cmd_topology},
    {"stats", "[--watch [SEC]] [-n N]", "counters and latency histograms", 0, 0,
     kvx_cmd_stats_flags, kvx_cmd_stats},
    {"top", "[-d SEC] [-n N]", "rates and running transfers, refreshed", 0, 0, kvx_cmd_top_flags,
     kvx_cmd_top},
    {"ping", "PEER [-c N]", "round trip to a peer (node id or host:port)", 1, 1, kvx_cmd_ping_flags,
     kvx_cmd_ping},
    {"doctor", "", "checks this node; works without a daemon", 0, 0, NULL, kvx_cmd_doctor},
    {"drain", "", "refuse new transfers, let the running ones end", 0, 0, NULL, kvx_cmd_drain},
    {"undrain", "", "take new transfers again", 0, 0, NULL, kvx_cmd_undrain},
    {"config", "check FILE | show", "check a configuration file; show the running one", 1, 2, NULL,
     kvx_cmd_config},
    {"version", "", "versions of this program, the library and the daemon", 0, 0, NULL,
     kvx_cmd_version},
    {0},
};

int main(int argc, char **argv)
{
	struct kvx_ctl ctl = {.timeout_ms = 10000};
	const struct kvx_ctl_command *command;
	int rc;

	kvx_tool_program = "kvxferctl";
	rc = kvx_ctl_parse(&ctl, argc, argv, &command);
	if (rc != KVX_CTL_OK)
		return rc & 0xff;
	rc = command->run(&ctl);
	kvxfer_client_close(ctl.client);
	if (fflush(stdout) != 0 && rc == KVX_CTL_OK)
		rc = KVX_CTL_FAILED;
	return rc;
}
