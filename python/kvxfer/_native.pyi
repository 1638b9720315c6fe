# The extension: cffi, API mode, from the public header and _native.c. Not for users.
from typing import Any

ffi: Any
lib: Any
