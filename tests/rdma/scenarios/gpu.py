"""The way of GPU memory over a real verbs device, without a GPU: see driver/rdma_gpu.c."""
from harness.scenario import check, scenario


@scenario(sets="short long", guests=1, limit_s=120)
def gpu_memory(net):
    """Memory in pieces, registered by address: verified by loopback, moved both ways, reads wait for their flush."""
    figures = net.a.run(f"rdma_gpu {net.a.device()}", timeout=100).figures()
    net.figures(**figures)
    check(figures["flushes"] > figures["rounds"], f"reads and writes were flushed: {figures}")
