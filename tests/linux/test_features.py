"""What a machine permits, asked of this kernel: as it is, and in sandboxes that we build."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import oomreaper
from oomreaper.linux import syscalls
from oomreaper.linux.features import calls, interview, probe_features, rights
from oomreaper.model.features import FeatureState
from tests.interpreters import find_python_for_everybody, find_source_for_everybody

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(oomreaper.__file__).parent.parent
SECCOMP = Path(__file__).parent.parent / "seccomp.py"
NAMES = (
    "process_mrelease",
    "pidfd",
    "proc",
    "kcmp",
    "sched_fifo",
    "mlockall",
    "capabilities",
    "rlimits",
    "seccomp",
    "psi",
    "cgroup",
    "swap",
    "namespaces",
    "oom_killer",
    "core_pattern",
)
# Prints the verdict and the features as JSON lines; PREAMBLE runs first.
PROGRAM = """
import sys
sys.path.append({source!r})
{preamble}
import oomreaper
from oomreaper.faces.doctor import render_json
print("\\n".join(render_json(oomreaper.doctor())))
"""

Row = dict[str, Any]


def ask_doctor(*launcher: str | Path, python: str = sys.executable, preamble: str = "") -> dict[str, Row]:
    """Run the doctor in a program of its own, warnings as errors; its rows by name, the verdict under ""."""
    program = PROGRAM.format(source=find_source_for_everybody(), preamble=preamble)
    command = [*map(str, launcher), python, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row.get("name", ""): row for row in rows}


def under_filter(*denials: str) -> list[str | Path]:
    """The launcher that puts a program under a filter, each denial as ``call=verdict``."""
    words = [word for denial in denials for word in ("--deny", denial)]
    return [sys.executable, SECCOMP, *words, "--"]


class TestThisKernel:
    """The kernel under the tests, whichever it is."""

    def test_every_feature_is_reported_in_the_order_of_need(self) -> None:
        """doctor() reports the documented features, in the documented order, with this kernel's name."""
        features = oomreaper.doctor()

        assert tuple(item.name for item in features.items) == NAMES
        assert features.kernel_release == os.uname().release
        assert features.machine == os.uname().machine

    def test_what_is_not_wholly_there_says_what_is_lost_and_what_to_do(self) -> None:
        """No feature of this machine is limited, missing or forbidden without its loss and its remedy."""
        features = probe_features()

        silent = [
            item.name
            for item in features.items
            if item.state is not FeatureState.AVAILABLE and not (item.lost and item.remedy)
        ]
        assert silent == []

    def test_the_answers_are_the_kernels_own(self) -> None:
        """What the prober hears through its children is what a direct call answers here."""
        asked = interview.interview_kernel("/proc")

        assert asked.answer_to("process_mrelease").number == syscalls.answer_of_mrelease_probe()
        assert set(asked.answers) == {
            "process_mrelease",
            "pidfd_open",
            "pidfd_send_signal",
            "kcmp",
            "sched_fifo",
            "mlockall",
            "psi_read",
            "psi_trigger",
        }
        assert b"\nCapEff:" in asked.status

    @pytest.mark.needs("root", "process_mrelease", "python_for_everybody")
    def test_an_unprivileged_user_is_told_what_he_lacks(self) -> None:
        """Uid 65534 can reap what is his own; every right that he lacks is named with its setting."""
        become_nobody = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)"

        rows = ask_doctor(python=str(find_python_for_everybody()), preamble=become_nobody)

        assert rows[""]["can_reap"] is True
        assert rows["capabilities"]["state"] == "limited"
        assert rows["capabilities"]["found"] == "none of those that matter"
        assert "AmbientCapabilities=CAP_KILL" in rows["capabilities"]["remedy"]
        assert rows["sched_fifo"]["state"] == "forbidden"
        assert "LimitRTPRIO=1" in rows["sched_fifo"]["remedy"]
        assert rows["mlockall"]["state"] in ("limited", "forbidden")
        assert "LimitMEMLOCK=infinity" in rows["mlockall"]["remedy"]

    @pytest.mark.needs("root", "python_for_everybody")
    def test_the_rights_are_those_that_survive_an_exec(self) -> None:
        """Capabilities that the calling program holds but cannot hand on are not reported as there."""
        keep_kill_only_here = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
os.setgroups([]); os.setgid(65534); os.setuid(65534)
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(1 << 5, 1 << 5, 0, 0, 0, 0)
assert libc.capset(header, data) == 0
assert "CapEff:\\t0000000000000020" in open("/proc/self/status").read()
"""

        rows = ask_doctor(python=str(find_python_for_everybody()), preamble=keep_kill_only_here)

        assert rows["capabilities"]["found"] == "none of those that matter"

    def test_importing_costs_nothing_that_is_not_used(self) -> None:
        """Importing the room brings in no ctypes, no subprocess, no json; only a probe pays for them."""
        program = (
            f"import sys; sys.path.append({str(SOURCE)!r}); import oomreaper.linux.features; "
            "print(sorted({'ctypes', 'subprocess', 'json', 'oomreaper.model.features'} & set(sys.modules)))"
        )

        done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)

        assert done.stdout.strip() == "[]"

    @pytest.mark.needs("psi")
    def test_the_window_found_is_one_that_the_kernel_takes(self) -> None:
        """The shortest window reported can be armed by this process, and half of it cannot; or none can."""
        trigger = interview.interview_kernel("/proc").answer_to("psi_trigger")
        window_us = int(trigger.word) * 1000 if trigger.number == 0 else None

        assert not self.is_armed((window_us or 2_000_000) // 2)
        assert self.is_armed(window_us or 2_000_000) is (window_us is not None)

    @staticmethod
    def is_armed(window_us: int) -> bool:
        """Whether the kernel takes a trigger with this window from us."""
        try:
            file = os.open("/proc/pressure/memory", os.O_RDWR | os.O_NONBLOCK)
        except PermissionError:
            return False
        try:
            return os.write(file, b"some %d %d\n" % (window_us, window_us)) > 0
        except OSError:
            return False
        finally:
            os.close(file)


class TestTheCaller:
    """doctor() is a library call: it does no harm to the program it runs in."""

    def test_a_threaded_program_is_not_forked(self) -> None:
        """With threads running and warnings as errors it works, and the program itself is never forked."""
        preamble = """
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
def refuse_fork(event, arguments):
    if event in ("os.fork", "os.forkpty"):
        raise SystemExit("forked")
sys.addaudithook(refuse_fork)
"""

        rows = ask_doctor(preamble=preamble)

        assert tuple(rows)[1:] == NAMES

    @pytest.mark.needs("seccomp", "kcmp")
    def test_a_program_that_ignores_sigchld_and_blocks_signals_learns_the_truth(self) -> None:
        """Both survive an exec and would hide how a child ended; the prober undoes them for itself."""
        preamble = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
"""

        rows = ask_doctor(*under_filter("kcmp=kill"), preamble=preamble)

        assert rows["kcmp"]["found"] == "killed by SIGSYS"

    def test_nothing_is_left_behind(self) -> None:
        """No child, no zombie and no descriptor remains after the call."""
        before = set(os.listdir("/proc/self/fd"))
        probe_features()

        assert set(os.listdir("/proc/self/fd")) == before
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    def test_an_interpreter_that_hangs_is_given_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Past the deadline the prober is killed, and every call is reported as not asked, with the reason."""
        hanging = tmp_path / "python"
        hanging.write_text("#!/bin/sh\nexec sleep 60\n")
        hanging.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(hanging))
        monkeypatch.setattr(interview, "_DEADLINE_SECONDS", 0.2)

        features = probe_features()

        assert features.find("process_mrelease").found == "not asked"
        assert "no answer within 0.2 s" in features.find("process_mrelease").remedy
        assert features.can_reap is False
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    @pytest.mark.parametrize("executable", ["", "/nonexistent/python", "/bin/true"])
    def test_a_program_without_python_is_told_so(self, executable: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Embedded, moved or not Python at all: nothing is known, nothing is claimed, and the rest is read."""
        monkeypatch.setattr(sys, "executable", executable)

        features = probe_features()

        assert features.find("pidfd").state is FeatureState.FORBIDDEN
        assert features.find("psi").state is FeatureState.FORBIDDEN
        assert features.find("proc").state is FeatureState.AVAILABLE
        assert features.can_reap is False

    def test_a_frozen_program_is_not_started_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where sys.executable is the program itself, starting it would be a fork bomb: it is not started."""
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        monkeypatch.setattr(sys, "executable", "/nonexistent/program")

        asked = interview.interview_kernel("/proc")

        assert asked.answers == {}
        assert asked.failure == "this program has no Python interpreter to start"

    def test_a_question_that_fails_in_our_own_code_asks_for_a_report(self) -> None:
        """A bug of the prober is not blamed on the machine, and the other questions are answered."""
        program = f"""
import sys; sys.path.append({str(SOURCE)!r})
from oomreaper.linux.features import prober
prober.PROBES["kcmp"] = lambda proc_root: int("x")
prober.main("/proc")
"""

        done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

        answer = interview.parse_report(done.stdout).answer_to("kcmp")
        remedy = calls.find_remedy(answer, rights.parse_standing(b""), "another kernel")
        assert str(answer) == "our bug: ValueError"
        assert "please report it" in remedy

    def test_a_question_that_hangs_is_bounded_by_its_own_alarm(self) -> None:
        """A child that never comes back is reported as such, and does not keep the others from answering."""
        program = f"""
import sys; sys.path.append({str(SOURCE)!r})
from oomreaper.linux.features import prober
import os, signal
prober.ANSWER_SECONDS = 1
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
prober.PROBES["kcmp"] = lambda proc_root: signal.sigtimedwait(set(), 20)
prober.main("/proc")
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    sys.exit(0)
sys.exit("the child is still there")
"""

        done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=30)

        asked = interview.parse_report(done.stdout)
        assert str(asked.answer_to("kcmp")) == "no answer in time"
        assert asked.answer_to("psi_read").number is not None


@pytest.mark.needs("seccomp", "process_mrelease", "kcmp")
class TestFilters:
    """A real seccomp filter between us and the kernel."""

    @pytest.mark.parametrize(
        ("verdict", "state"),
        [("ENOSYS", "missing"), ("EPERM", "forbidden"), ("kill", "forbidden"), ("trap", "forbidden")],
    )
    @pytest.mark.parametrize(
        ("call", "name", "is_needed"),
        [
            ("process_mrelease", "process_mrelease", True),
            ("pidfd_open", "pidfd", True),
            ("pidfd_send_signal", "pidfd", True),
            ("kcmp", "kcmp", False),
        ],
    )
    def test_a_refused_call_is_reported_and_kills_nobody(
        self, call: str, name: str, verdict: str, state: str, *, is_needed: bool
    ) -> None:
        """Whatever the filter does to a call, the doctor lives, blames the call, and names the setting."""
        rows = ask_doctor(*under_filter(f"{call}={verdict}"))

        others = {row["name"] for row in rows.values() if row.get("state") == state and row["is_needed"]} - {name}
        assert rows[name]["state"] == state
        assert rows[""]["can_reap"] is not is_needed
        assert others == set()
        assert call in rows["seccomp"]["found"]
        assert "SystemCallFilter=process_mrelease pidfd_open pidfd_send_signal kcmp" in rows["seccomp"]["remedy"]

    @pytest.mark.parametrize(("call", "name"), [("sched_setscheduler", "sched_fifo"), ("mlockall", "mlockall")])
    def test_a_filter_that_kills_for_a_comfort_is_blamed_and_named(self, call: str, name: str) -> None:
        """Real-time priority and locked memory are lost to a filter too; its setting gets those calls as well."""
        rows = ask_doctor(*under_filter(f"{call}=kill"))

        assert rows[name]["found"] == "killed by SIGSYS"
        assert rows["seccomp"]["state"] == "forbidden"
        assert f"pidfd_send_signal kcmp {call};" in rows["seccomp"]["remedy"]
        assert rows[""]["can_reap"] is True

    def test_a_filter_not_in_the_way_is_no_trouble(self) -> None:
        """A filter that refuses nothing we need is counted, and nothing is held against it."""
        rows = ask_doctor(*under_filter("prctl=EPERM"))

        assert rows["seccomp"]["state"] == "available"
        assert "none in our way" in rows["seccomp"]["found"]
        assert rows[""]["can_reap"] is True

    def test_a_filter_that_kills_for_keeping_quiet_is_not_taken_for_another(self) -> None:
        """Core dumps are switched off with prctl; where that call kills, the answers still come in."""
        rows = ask_doctor(*under_filter("prctl=kill"))

        assert rows["process_mrelease"]["state"] == "available"
        assert rows["kcmp"]["state"] == "available"

    def test_where_nothing_can_be_forked_nothing_is_claimed(self) -> None:
        """A sandbox without process creation: the calls are not asked, and the reason is shown."""
        rows = ask_doctor(*under_filter("clone=EPERM"))

        assert rows["process_mrelease"]["found"] == "not asked"
        assert "Operation not permitted" in rows["process_mrelease"]["remedy"]
        assert rows[""]["can_reap"] is False

    def test_a_killed_child_leaves_no_core_dump(self, tmp_path: Path) -> None:
        """SIGSYS dumps core by default; the doctor leaves neither a file nor a report of a crash behind."""
        program = f"""
import os, resource, sys
sys.path.append({str(SOURCE)!r})
from oomreaper.linux.features import prober
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
wait = os.waitpid
def note(pid, options):
    pid, status = wait(pid, options)
    if os.WIFSIGNALED(status):
        print(os.WTERMSIG(status), os.WCOREDUMP(status), file=sys.stderr)
    return pid, status
os.waitpid = note
prober.main("/proc")
"""
        command = [*map(str, under_filter("kcmp=kill")), sys.executable, "-c", program]

        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)

        assert done.stderr == f"{signal.SIGSYS.value} False\n"


@pytest.mark.needs("root", "unshare")
class TestSandboxes:
    """Real mounts, namespaces and groups, made for one test."""

    @staticmethod
    def run_in(script: str, *, unshare: str = "--mount", preamble: str = "") -> dict[str, Row]:
        """Ask the doctor after a shell script has changed the world for it and nobody else."""
        launcher = ["unshare", *unshare.split(), "sh", "-ec", f'{script}\nexec "$@"', "sh"]
        return ask_doctor(*launcher, preamble=preamble)

    def test_subset_pid_blinds_us(self) -> None:
        """ProcSubset=pid hides meminfo, without which no reap can be verified."""
        rows = self.run_in("mount -t proc -o subset=pid proc /proc")

        assert rows["proc"]["state"] == "forbidden"
        assert "ProcSubset=all" in rows["proc"]["remedy"]
        assert rows[""]["can_reap"] is False

    def test_hidepid_does_not_apply_to_root(self) -> None:
        """CAP_SYS_PTRACE sees through hidepid, so it is no limitation."""
        rows = self.run_in("mount -t proc -o hidepid=invisible proc /proc")

        assert rows["proc"]["state"] == "available"
        assert "hidepid=invisible" in rows["proc"]["found"]

    def test_hidepid_limits_whoever_has_no_right(self) -> None:
        """The same mount without capabilities and outside its group hides the victims."""
        drop = "setpriv --bounding-set=-all --inh-caps=-all --regid=65534 --clear-groups"

        rows = self.run_in(f'mount -t proc -o hidepid=invisible proc /proc\nset -- {drop} "$@"')

        assert rows["proc"]["state"] == "limited"
        assert rows["proc"]["found"] == "hidepid=invisible"

    def test_a_proc_of_an_outer_namespace_is_refused(self) -> None:
        """Its numbers name other processes here: a kill by them would hit a stranger."""
        rows = self.run_in("true", unshare="--pid --fork")

        assert rows["proc"]["state"] == "forbidden"
        assert rows[""]["can_reap"] is False

    def test_a_container_is_told_what_it_cannot_see(self) -> None:
        """In a pid namespace with its own /proc all works, within bounds that are said."""
        rows = self.run_in("true", unshare="--pid --fork --mount-proc")

        assert rows["proc"]["state"] == "available"
        assert rows["namespaces"]["state"] == "limited"
        assert "pid" in rows["namespaces"]["found"]

    def test_capabilities_of_a_user_namespace_are_not_taken_for_the_machines(self) -> None:
        """Root in a user namespace has every capability and still no real-time priority."""
        rows = self.run_in("true", unshare="--user --map-root-user")

        assert rows["capabilities"]["state"] == "available"
        assert rows["sched_fifo"]["state"] == "forbidden"
        assert "--userns=host" in rows["sched_fifo"]["remedy"]

    @pytest.mark.needs("cgroup_v1_realtime")
    def test_a_v1_cpu_group_without_budget_has_a_remedy_that_works(self, cpu_group: Path) -> None:
        """RT_GROUP_SCHED refuses SCHED_FIFO with all rights; the commands that doctor prints cure it."""
        enter = f"echo $$ > {cpu_group}/tasks"

        before = self.run_in(enter)
        subprocess.run(before["sched_fifo"]["remedy"], shell=True, check=True)
        after = self.run_in(enter)

        assert before["sched_fifo"]["state"] == "forbidden"
        assert before["sched_fifo"]["remedy"].count("cpu.rt_runtime_us") == 2
        assert after["sched_fifo"]["state"] == "available"

    @pytest.mark.needs("cgroup_v2")
    def test_read_only_groups_are_seen_by_root_too(self) -> None:
        """Control groups mounted read-only, as containers have them, cannot be written by anybody."""
        script = """
for directory in $(awk '/ - cgroup/ {print $5}' /proc/self/mountinfo); do
    mount -o remount,bind,ro "$directory"
done
"""

        rows = self.run_in(script)

        assert rows["cgroup"]["state"] == "limited"
        assert "read-only" in rows["cgroup"]["found"]

    @pytest.fixture
    def cpu_group(self) -> Iterator[Path]:
        """Two nested v1 cpu groups, fresh, and so without a real-time budget; the inner one."""
        root = Path("/sys/fs/cgroup/cpu")
        outer = root / f"oomreaper-test-{os.getpid()}"
        inner = outer / "inner"
        inner.mkdir(parents=True)
        yield inner
        inner.rmdir()
        outer.rmdir()
