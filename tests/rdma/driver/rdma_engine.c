/* rdma_engine: an engine of the RDMA tests, as it runs in a guest. Each program prints lines of
 * what happens, then its figures as key=value lines and once more as one line of JSON. */
#include "drive.h"
#include "drv.h"
#include "serve.h"

static const struct drv_program programs[] = {
    {"serve", serve_main, "has memory that others write to and read from"},
    {"drive", drive_main, "submits transfers and keeps the books"},
    {"oob", oob_main, "asks for what must be refused"},
};

int main(int argc, char **argv)
{
	return drv_main("rdma_engine", programs, sizeof(programs) / sizeof(programs[0]), argc,
			argv);
}
