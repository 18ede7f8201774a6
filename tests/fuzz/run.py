"""Run one fuzzer: `python tests/fuzz/run.py NAME`, or replay inputs: `python tests/fuzz/run.py NAME FILE...`.

Coverage guides it (libFuzzer; through Atheris in Python). New inputs that reach new code are kept in
build/fuzz/NAME/corpus, what breaks a promise in build/fuzz/NAME/findings. It begins with tests/corpus/NAME and
with what `--keep` packed into tests/corpus/reached.
"""

from __future__ import annotations

import argparse
import gzip
import io
import platform
import random
import secrets
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz.targets import NAMES, target  # noqa: E402

CODEC = "codec"
INPUT_S, MEMORY_MB = 10, 2048  # what one input may take at most, with a wide margin: the machine may be busy
SANITIZERS = "-fsanitize=fuzzer,address,undefined"
REACHED = ROOT / "tests" / "corpus" / "reached"
KEPT_BYTES = 64 << 10  # of a fuzzer's inputs, the smallest first


def reached(name: str) -> list[bytes]:
    """Inputs that an earlier run found to reach new code."""
    path = REACHED / f"{name}.tar.gz"
    if not path.is_file():
        return []
    with tarfile.open(path) as tar:
        return [stream.read() for member in tar if (stream := tar.extractfile(member)) is not None]


def keep(name: str) -> int:
    """Pack what runs here have reached, with what was kept before, and return how many. Same inputs, same file."""
    found = {path.read_bytes() for path in (ROOT / "build" / "fuzz" / name / "corpus").glob("*")} | {*reached(name)}
    packed, left = io.BytesIO(), KEPT_BYTES
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number, data in enumerate(sorted(found, key=lambda data: (len(data), data))):
            left -= len(data)
            if left < 0:
                break
            about = tarfile.TarInfo(f"{number:04}")
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    REACHED.mkdir(exist_ok=True)
    (REACHED / f"{name}.tar.gz").write_bytes(gzip.compress(packed.getvalue(), mtime=0))
    return len(reached(name))


def _options(name: str, seconds: int, seed: int) -> list[str]:
    out = ROOT / "build" / "fuzz" / name
    for folder in ("corpus", "findings"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(reached(name)):
        (out / "corpus" / f"kept-{number:04}").write_bytes(data)
    return [
        f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={10 * INPUT_S}", f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={out}/findings/", "-print_final_stats=1", "-report_slow_units=5",
        str(out / "corpus"), str(ROOT / "tests" / "corpus" / name),
    ]  # fmt: skip


def build_codec(out: Path, *, fuzzer: bool = True) -> Path:
    """Compile the native fuzzer: with libFuzzer, or to replay files alone, which any compiler can."""
    out.mkdir(parents=True, exist_ok=True)
    kernels, program = ROOT / "kernels", out / ("codec" if fuzzer else "codec_replay")
    sources = [Path(__file__).with_name("codec.cpp"), kernels / "src" / "codec_avx2.cpp"]
    flags = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all"]
    compiler = ["clang++", SANITIZERS] if fuzzer else ["c++", SANITIZERS.replace("fuzzer,", ""), "-DREPLAY"]
    if platform.machine() in {"x86_64", "AMD64"}:
        flags.append("-DSPLAT2D_X86")
    paths = [f"-I{kernels / 'include'}", f"-I{kernels / 'src'}"]
    subprocess.run([*compiler, *flags, *paths, *map(str, sources), "-o", str(program)], check=True)
    return program


def _fuzz_codec(options: list[str]) -> int:
    try:
        program = build_codec(ROOT / "build" / "fuzz" / CODEC)
    except FileNotFoundError:
        print("no clang++: apt-get install clang libclang-rt-14-dev (libFuzzer comes with it)", file=sys.stderr)
        return 2
    return subprocess.run([program, "-max_len=1024", *options], check=False).returncode


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {INPUT_S} s of processor time for one input")


def _sources_first() -> None:
    """Let our own modules come from their sources: what an editable installation's finder loads is not instrumented."""
    import splat2d._core

    native = splat2d._core
    for module in [one for one in sys.modules if one.partition(".")[0] in {"splat2d", "components"}]:
        del sys.modules[module]
    sys.modules["splat2d._core"] = native  # is built, and lies elsewhere
    sys.meta_path[:] = [one for one in sys.meta_path if type(one).__name__ != "ScikitBuildRedirectingFinder"]
    sys.path.insert(0, str(ROOT / "kernels"))


def _fuzz(name: str, options: list[str]) -> None:
    """Never returns: libFuzzer ends the process, with its exit code."""
    import atheris

    _sources_first()
    with atheris.instrument_imports(include=["components", "splat2d", "PIL", "urllib", "email", "fuzz"]):
        run = target(name)
        module = sys.modules[f"fuzz.{name}"]
    repaired, changed = getattr(module, "repaired", None), getattr(module, "changed", None)

    def mutated(data: bytes, size: int, seed: int) -> bytes:
        """Bytes, or the structure; half of the time sums are mended, so that what lies behind them is reached."""
        rng = random.Random(seed)
        found: bytes = changed(data, rng) if changed and rng.random() < 0.5 else atheris.Mutate(data, size)
        return (repaired(found) if repaired and rng.random() < 0.5 else found)[:size]

    def bounded(data: bytes) -> None:
        """The input within INPUT_S of processor time, else an error that shows where it was."""
        signal.setitimer(signal.ITIMER_VIRTUAL, INPUT_S)
        run(data)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    signal.signal(signal.SIGVTALRM, _too_long)
    options = [sys.argv[0], f"-max_len={module.MAX_LEN}", *options]
    atheris.Setup(options, bounded, **({"custom_mutator": mutated} if repaired or changed else {}))
    atheris.Fuzz()


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*NAMES, CODEC])
    parser.add_argument("files", nargs="*", type=Path, help="inputs to replay once")
    parser.add_argument("--keep", action="store_true", help="pack what runs have reached into tests/corpus/reached")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0, help="0: a new one")
    given = parser.parse_args()
    if given.keep:
        print(f"{REACHED / given.name}.tar.gz: {keep(given.name)} inputs")
        return 0
    if given.files and given.name == CODEC:
        program = build_codec(ROOT / "build" / "fuzz" / CODEC, fuzzer=False)
        return subprocess.run([program, *given.files], check=False).returncode
    if given.files:
        run = target(given.name)
        for file in given.files:
            run(file.read_bytes())
            print(f"{file}: holds")
        return 0
    seed = given.seed or secrets.randbelow(1 << 31) + 1
    print(
        f"fuzz {given.name}: {given.seconds} s, seed {seed} (again: --seed {seed}); findings: "
        f"build/fuzz/{given.name}/findings; replay one: python tests/fuzz/run.py {given.name} FILE",
        flush=True,
    )
    options = _options(given.name, given.seconds, seed)
    if given.name == CODEC:
        return _fuzz_codec(options)
    _fuzz(given.name, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
