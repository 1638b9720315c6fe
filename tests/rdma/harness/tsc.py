"""The frequency of this machine's time stamp counter. QEMU hands the counter on to the guests, whose kernel would measure it against
emulated timers at boot: on a busy machine it then is several times off, and the guest's clock with it."""
import ctypes
import mmap
import platform
import time

MEASURE_S = 0.1
# rdtsc; shl rdx, 32; or rax, rdx; ret
READ_COUNTER = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"


def khz():
    """None where there is no such counter."""
    if platform.machine() != "x86_64":
        return None
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(READ_COUNTER)
    start = (ctypes.c_char * len(READ_COUNTER)).from_buffer(code)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(start))
    best = None
    for _ in range(3):  # the sample that was least disturbed
        ticks, ns = read(), time.monotonic_ns()
        time.sleep(MEASURE_S)
        end_ns, end_ticks = time.monotonic_ns(), read()
        if best is None or end_ns - ns < best[0]:
            best = (end_ns - ns, end_ticks - ticks)
    del start
    code.close()
    return best[1] * 1000000 // best[0]
