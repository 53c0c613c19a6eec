"""Jittor's start: what is prepared, what is put back, what is reported when it can't be."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
from pathlib import Path

import pytest

from jclip import runtime
from jclip.errors import SetupError
from jclip.machine import ranks, toolchain
from jclip.machine.ranks import Ranks

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 300  # seconds that a busy machine may take; never waited for


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip


def test_what_jittor_changes_is_put_back():
    done = python(
        """
        import multiprocessing, os, random, resource, signal, ssl, sys
        import numpy as np
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of `sh … &` is started with it ignored
        random.seed(5), np.random.seed(5)
        def process():
            return [sys.excepthook, sys.exit, resource.getrlimit(resource.RLIMIT_STACK), random.getstate(),
                    np.random.get_state()[1].tolist(), multiprocessing.get_start_method(allow_none=True)]
        found = process()
        before = dict(os.environ), ssl._create_default_https_context, sys.getrecursionlimit()
        handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGCHLD)]
        from jclip.runtime import jt
        assert (dict(os.environ), ssl._create_default_https_context, sys.getrecursionlimit()) == before
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGCHLD)] == handlers
        assert process() == found
        assert "torch" not in sys.modules
        assert jt.compile_extern.mkl_ops is not None
        import subprocess
        child = subprocess.Popen(["sleep", "60"])
        child.kill()  # with Jittor's own handler this would end our process, too
        child.wait()
        try:
            os.kill(os.getpid(), signal.SIGINT)
            import time; time.sleep(60)
        except KeyboardInterrupt:
            print("stopped as Python stops", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
        """,
        PYTHONFAULTHANDLER="1",
    )
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "stopped as Python stops\n"), done.stderr
    assert "Fatal Python error: Segmentation fault" in done.stderr  # faulthandler's word, not Jittor's


def test_variables_that_the_user_set_win(monkeypatch):
    for name, value in {
        "use_mkl": "0",
        "nvcc_path": "",
        "cache_name": "mine",
        "log_silent": "0",
        "gdb_path": "/x",
    }.items():
        monkeypatch.setenv(name, value)
    assert set(runtime._settings()) & {"use_mkl", "nvcc_path", "cache_name", "log_silent", "gdb_path"} == set()


def test_a_jittor_that_came_first_is_warned_of_once():
    done = python(
        """
        import os, warnings
        from jclip.machine import toolchain
        settings = dict(HOME=str(toolchain.jittor_home()), nvcc_path="", cache_name="jclip", log_silent="1",
                        FIX_TORCH_ERROR="0", use_mpi="0", gdb_path="", use_mkl="0")
        os.environ.update(settings)
        import jittor_utils, sysconfig
        paths = sysconfig.get_paths()
        jittor_utils._py3_include_path = " ".join(f'-I"{paths[k]}"' for k in ("include", "platinclude"))
        jittor_utils._py3_extension_suffix = sysconfig.get_config_var("EXT_SUFFIX")
        import jittor, ssl
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            from jclip.runtime import jt
        assert jt is jittor and ssl._create_default_https_context is ssl.create_default_context
        print([str(w.message) for w in caught if "jclip" in str(w.message)])
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Jittor was imported before jclip") == 1
    assert "oneDNN is missing, so matrix products and convolutions will be about 100 times slower" in done.stdout


def test_numpy_2_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.3.5")
    with pytest.raises(SetupError, match="NumPy 2.3.5 makes Jittor .* read garbage: pip install 'numpy<2'"):
        toolchain.refuse_unsupported()


def test_native_windows_is_refused(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Windows")
    with pytest.raises(SetupError, match="native Windows is not supported: run jclip inside WSL2"):
        toolchain.refuse_unsupported()


def test_what_is_missing_comes_with_its_mend(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SetupError, match=r"no C\+\+ compiler .*: sudo apt install g\+\+"):
        toolchain.find_compiler()
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": "/nowhere"})
    with pytest.raises(SetupError, match=r"Python's headers are missing .*: sudo apt install python3\.\d+-dev"):
        toolchain.find_python_include()


def test_an_unwritable_cache_is_reported(monkeypatch, tmp_path):
    from jclip.paths import cache_dir

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "file"))
    with pytest.raises(SetupError, match="can't write the cache folder .* set JCLIP_CACHE"):
        cache_dir("x")


def test_without_onednn_it_warns_what_that_costs(monkeypatch):
    monkeypatch.setattr(toolchain, "find_onednn", lambda: None)
    monkeypatch.delenv("use_mkl", raising=False)
    with pytest.warns(UserWarning, match="oneDNN not found, so .* about 100 times slower: pip install onednn-cpu-gomp"):
        assert runtime._onednn_settings() == {"use_mkl": "0"}


def test_onednn_comes_from_the_packages_and_is_linked_where_jittor_looks(tmp_path):
    found = toolchain.find_onednn()
    assert "onednn-cpu-gomp" in found.origin and found.library.is_file() and (found.include / "dnnl.hpp").is_file()
    folder = tmp_path / ".cache/jittor/mkl/dnnl_lnx_2.2.0_cpu_gomp"
    for _ in range(2):
        toolchain.offer_onednn(tmp_path, found)
        assert (folder / "lib" / "libmkldnn.so").resolve() == found.library
    other = toolchain.OneDNN(tmp_path, tmp_path / "lib.so", "elsewhere")
    other.library.write_text("")
    toolchain.offer_onednn(tmp_path, other)
    assert (folder / "lib" / "libmkldnn.so").resolve() == other.library
    (folder / "lib" / "libmkldnn.so").unlink()
    (folder / "lib" / "libmkldnn.so").write_text("somebody's own")
    toolchain.offer_onednn(tmp_path, found)
    assert (folder / "lib" / "libmkldnn.so").read_text() == "somebody's own"


def test_onednn_3_is_not_taken(tmp_path):
    for major, taken in ((2, True), (3, False)):
        (tmp_path / "dnnl_version.h").write_text(f"#define DNNL_VERSION_MAJOR {major}\n")
        (tmp_path / "dnnl.hpp").write_text("")
        assert toolchain._is_onednn2(tmp_path) is taken


def test_a_build_that_fails_reports_its_cause_in_one_line(tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text(
        "#!/bin/sh\n"
        'case "$*" in *--version*) echo "g++ (Fake) 12.2.0"; exit 0 ;; esac\n'
        'echo "fatal error: no space for miracles" >&2; exit 1\n'
    )
    compiler.chmod(0o755)
    done = python(
        "from jclip.cli import main; import sys; sys.exit(main(['models', '--random', 'RN50', '--out', '/nowhere/x']))",
        cc_path=str(compiler), JCLIP_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert last.startswith("jclip models: Jittor's core did not compile: ")
    (log,) = (tmp_path / "cache" / "jittor").glob("build-*.log")
    assert str(log) in last and "no space for miracles" in log.read_text()


def test_a_build_that_ends_without_a_word_is_tried_again_and_then_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path))
    tried = []
    monkeypatch.setattr(runtime, "_build_in_child", lambda settings, log: tried.append(1) or [])
    with pytest.raises(SetupError, match="did not come up: the build is logged"):
        runtime._build({}, tmp_path / "stamp.json")
    assert len(tried) == 4 and not (tmp_path / "stamp.json").exists()
    monkeypatch.setattr(
        runtime, "_build_in_child", lambda settings, log: [__file__] if len(tried) > 5 else tried.append(1) or []
    )
    runtime._build({}, tmp_path / "stamp.json")
    assert runtime._is_built(tmp_path / "stamp.json")


def test_hosts_that_share_a_cache_compile_at_one_time_and_the_first_rank_of_each_says_so(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path))
    at_once = runtime._lock_at_once

    def lock(file) -> bool:
        assert at_once(file), "one host waits for another"
        return True

    monkeypatch.setattr(runtime, "_lock_at_once", lock)

    def on_host(name: str, rank: int, meanwhile) -> None:
        monkeypatch.setattr(runtime.platform, "node", lambda: name)
        monkeypatch.setattr(ranks, "_now", Ranks(rank, 4, rank % 2, 2, name))
        monkeypatch.setattr(runtime, "_build_in_child", lambda settings, log: meanwhile() or [__file__])
        monkeypatch.setattr(sys, "stderr", io.StringIO() if rank else sys.__stderr__)
        runtime._build({}, tmp_path / f"{name}.json")

    on_host("node1", 0, lambda: on_host("node2", 2, lambda: None))
    assert [line.split(":")[1] for line in capfd.readouterr().err.splitlines() if "first start" in line] == [
        " first start here", " first start of rank 2 of 4 on node2",
    ]  # fmt: skip


def test_a_stamp_whose_libraries_are_gone_or_changed_counts_for_nothing(monkeypatch, tmp_path):
    stamp, library = tmp_path / "stamp.json", tmp_path / "core.so"
    for text in (
        "",
        "{}",
        '{"libraries": []}',
        '{"libraries": ["/nowhere/core.so"]}',
        f'{{"libraries": ["{library}"]}}',
    ):
        library.write_text("compiled")
        stamp.write_text(text)
        assert not runtime._is_built(stamp)
    monkeypatch.setattr(runtime, "_build_in_child", lambda settings, log: [str(library)])
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path))
    runtime._build({}, stamp)
    assert runtime._is_built(stamp)
    library.write_text("compiled elsewhere")
    assert not runtime._is_built(stamp)


def test_the_stamp_follows_what_jittor_depends_on(monkeypatch):
    settings = runtime._settings()
    first = runtime._stamp(settings)
    assert runtime._stamp(settings) == first
    assert runtime._stamp({**settings, "use_mkl": "0"}) != first
    monkeypatch.setenv("kernel_flags", "-O1")
    assert runtime._stamp(settings) != first


def test_a_second_process_waits_for_the_first(monkeypatch, tmp_path):
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path))
    building, waiting, finish = threading.Event(), threading.Event(), threading.Event()

    def build(settings, log):
        building.set()
        finish.wait(PATIENCE)
        return [__file__]

    monkeypatch.setattr(runtime, "_build_in_child", build)
    monkeypatch.setattr(runtime, "_say", lambda text: "waiting for it" in text and waiting.set())
    both = [threading.Thread(target=runtime._build, args=({}, tmp_path / "stamp.json")) for _ in range(2)]
    both[0].start()
    building.wait(PATIENCE)
    both[1].start()
    assert waiting.wait(PATIENCE)
    finish.set()
    for thread in both:
        thread.join(PATIENCE)
    assert runtime._is_built(tmp_path / "stamp.json")


@pytest.mark.parametrize(
    "line, shown", [("Compiling core(12/150) used: 3.1s eta: 9s", "12 of 150 files"), ("hello", "")]
)
def test_progress_is_shown_on_a_terminal(line, shown, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    runtime._show_progress(line)
    assert shown in capsys.readouterr().err


def compile_with_script(home: Path, flags: str = "-O2") -> subprocess.CompletedProcess:
    """The script as Jittor calls it, on a source that includes what operators include."""
    import jittor_utils

    source, library = home / "op.cc", home / "op.so"
    source.write_text(
        '#define JIT 1\n#include "var.h"\nextern "C" int answer() { return sizeof(jittor::Var) > 0 ? 42 : 0; }\n'
    )
    jittor = Path(jittor_utils.__file__).parent.parent / "jittor"
    include = [f"-I{jittor}/src", f"-I{jittor}/extern", f"-I{sysconfig.get_paths()['include']}"]
    command = [toolchain.compile_script(home), f"{jittor}/utils/asm_tuner.py", f"--cc_path={toolchain.find_compiler()}"]
    command += [source, "-std=c++14", "-fPIC", "-shared", *include, *flags.split(), "-ldl", "-o", library]
    return subprocess.run([str(c) for c in command], capture_output=True, text=True)


def answer_of(home: Path) -> int:
    import ctypes

    return ctypes.CDLL(str(home / "op.so"), mode=os.RTLD_LAZY).answer()


def test_operators_compile_on_precompiled_headers_made_once(tmp_path):
    home = tmp_path / "a home"
    home.mkdir()
    done = compile_with_script(home)
    assert done.returncode == 0, done.stderr
    made = next((home / "precompiled").glob("*/jittor.h.gch"))
    stamp = made.stat().st_mtime_ns
    for flags in ("-O2", "-Ofast -fopenmp"):  # the latter do not fit, and the compiler reads the header itself
        assert compile_with_script(home, flags).returncode == 0 and answer_of(home) == 42
    assert made.stat().st_mtime_ns == stamp and not list(made.parent.glob("*.h.[0-9]*"))
    made.write_bytes(b"damaged")
    assert compile_with_script(home).returncode == 0


def test_operators_compile_where_headers_can_not_be_precompiled(tmp_path):
    toolchain.compile_script(tmp_path)
    folder = next((tmp_path / "precompiled").iterdir())
    header = folder / "jittor.h"
    header.write_text("#include <no_such_header.h>\n")
    done = compile_with_script(tmp_path)
    assert done.returncode == 0 and "no_such_header" not in done.stderr and list(folder.iterdir()) == [header]


def test_compilers_errors_and_other_helpers_pass_through(tmp_path):
    assert compile_with_script(tmp_path, "-Wno-such-flag=3 -fno-such-thing").returncode != 0
    script = toolchain.compile_script(tmp_path)
    (tmp_path / "other.py").write_text("import sys; print(sys.argv[1:]); sys.exit(3)")
    done = subprocess.run([script, tmp_path / "other.py", "a b"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "['a b']\n")


def test_operators_are_compiled_one_after_the_other_unless_asked_otherwise():
    """Jittor's threads race in their tuner: on this machine two of twelve starts of a training ended in a crash."""
    code = "from jclip.runtime import jt; print(jt.flags.use_parallel_op_compiler)"
    assert python(code).stdout == "0\n"
    assert python(code, use_parallel_op_compiler="3").stdout == "3\n"


def test_numpy_does_not_warn_of_denormals_once_jittor_is_there():
    """Jittor flushes denormal numbers to zero, which NumPy notices where it is asked for the limits of a type."""
    code = """
import warnings
warnings.simplefilter("error")
from jclip.runtime import jt
import numpy as np
jt.exp(jt.array([1.0, 2.0])).numpy()
print(np.finfo(np.float32).tiny > 0, np.finfo(np.float64).tiny > 0)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "True True", done.stderr


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_bf16_needs_avx512_that_is_not_switched_off(name, monkeypatch):
    for other in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setattr(toolchain, "cpu_flags", lambda: frozenset({"avx2", "avx512bw"}))
    for limit, reason in (("avx2", f"{name}=avx2 switches AVX-512 off"), ("AVX512_CORE", ""), ("ALL", "")):
        monkeypatch.setenv(name, limit)
        assert toolchain.why_no_avx512() == reason
    monkeypatch.setattr(toolchain, "cpu_flags", lambda: frozenset({"avx2"}))
    assert toolchain.why_no_avx512() == "this processor has no AVX-512"
