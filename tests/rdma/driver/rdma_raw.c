/* rdma_raw: verbs and packets without kvxfer. See the files of the programs. */
#include "drv.h"
#include "raw.h"

static const struct drv_program programs[] = {
    {"late", raw_late_main, "which verb is a fence, and does this test see late bytes"},
    {"victim", raw_victim_main, "a foothold on the node that is attacked"},
    {"attack", raw_attack_main, "tries keys and addresses that it must not use"},
    {"forge", raw_forge_main, "sends packets made by hand"},
};

int main(int argc, char **argv)
{
	return drv_main("rdma_raw", programs, sizeof(programs) / sizeof(programs[0]), argc, argv);
}
