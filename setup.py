"""Build of flexjax: the C++ kernels and the files that a wheel carries; metadata is in pyproject.toml.

Every `flexjax/kernels/<op>/cpu.cc` becomes `_cpu.so` beside it, found and loaded by that op. A machine
with no C++ compiler installs without them and runs on plain JAX; a result names the kernel that ran.
"""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# Opened by path, never imported: a wheel holds them, once, under flexjax/share (flexjax/shipped.py).
SHARED_FOLDERS = ["configs", "xla_flags", "models/weights"]


class BuildNative(build_ext):
    def initialize_options(self) -> None:
        super().initialize_options()
        self.parallel = True  # As many compilers as processors.

    def get_ext_filename(self, fullname: str) -> str:
        # Loaded by ctypes, so the name carries no Python version; `cpu.so` would hide `cpu.py`.
        return str(Path(*fullname.split(".")).with_suffix(".so"))


class BuildShared(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # A checkout has them where they are.
            for source, target in self._shared().items():
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *map(str, self._shared().values())]

    def _shared(self) -> dict[Path, Path]:
        """Each file that ships beside the code, and where it is built."""
        files = [f for folder in SHARED_FOLDERS for f in sorted(Path(folder).rglob("*")) if f.is_file()]
        return {f: Path(self.build_lib, "flexjax", "share", f) for f in files if "__pycache__" not in f.parts}


def native_kernels() -> list[Extension]:
    sources = sorted(Path("flexjax/kernels").glob("*/cpu.cc"))
    if not sources:
        return []
    from jax import ffi  # Only for the folder of its headers.

    return [
        Extension(
            ".".join([*source.parent.parts, "_cpu"]),
            [str(source)],
            include_dirs=[ffi.include_dir(), "flexjax/kernels"],
            depends=[str(f) for f in Path("flexjax/kernels").rglob("*") if f.suffix in (".h", ".inc")],
            # Products are fused by name (kernels/vectors.inc); debug information takes a third of the compiler's time.
            extra_compile_args=["-O3", "-std=c++17", "-ffp-contract=off", "-g0"],
            language="c++",
            optional=True,  # Without a compiler: a warning, not a failure.
        )
        for source in sources
    ]


setup(ext_modules=native_kernels(), cmdclass={"build_ext": BuildNative, "build_py": BuildShared})
