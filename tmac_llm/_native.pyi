"""The compiled extension (cffi, declarations from csrc/include/tmac.h). Only tmac_llm.kernels imports it."""

from typing import Any

ffi: Any
lib: Any
