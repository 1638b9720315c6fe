"""Writes the C source of kvxfer._native (cffi, API mode): build_cffi.py HELPERS HEADER OUT.

The declarations come from the public header itself, which the compiler then checks them against.
Arguments: kvxfer/_native.c (our helpers; the part between CDEF and END CDEF is declared too),
libclient/include/kvxfer/client.h, the file to write.
"""

import pathlib
import re
import sys

import cffi


def declarations(header: str) -> str:
    """The header without comments, preprocessor lines and the C++ guards."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    text = re.sub(r'#ifdef __cplusplus\n.*?#endif', "", text, flags=re.S)
    constants = re.findall(r"^#define (KVXFER_\w+) +(\d+)", text, flags=re.M)
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    return text + "".join(f"#define {name} {value}\n" for name, value in constants)


def main() -> None:
    helpers = pathlib.Path(sys.argv[1]).read_text()
    header = pathlib.Path(sys.argv[2]).read_text()
    own = helpers.split("/* CDEF */")[1].split("/* END CDEF */")[0]
    ffi = cffi.FFI()
    ffi.cdef(declarations(header))
    ffi.cdef("void free(void *);")
    ffi.cdef(re.sub(r"/\*.*?\*/", "", own, flags=re.S))
    ffi.set_source("kvxfer._native", helpers)
    ffi.emit_c_code(sys.argv[3])


main()
