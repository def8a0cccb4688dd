"""What a machine permits, read from made-up answers and from recorded copies of machines we do not have."""

from __future__ import annotations

import errno
import signal
from typing import TYPE_CHECKING, ClassVar

import pytest

from oomreaper.linux.features import calls, groups, interview, pressure, probe_features, procfs, rights
from oomreaper.linux.features.interview import Answer, Interview
from oomreaper.linux.features.tree import RECORDED, Tree, format_kib
from oomreaper.model.features import FeatureState
from tests.linux.test_features import NAMES

if TYPE_CHECKING:
    from pathlib import Path

ALL_CAPABILITIES = (1 << 41) - 1
ALL_BUT_RESOURCE = ALL_CAPABILITIES & ~(1 << 24)
NO_FILTER = rights.Standing(ALL_CAPABILITIES, ALL_CAPABILITIES, 0, 0, False, 1, frozenset({0}))
FILTER = NO_FILTER._replace(seccomp_mode=2, seccomp_filters=1)
NOBODY = NO_FILTER._replace(effective=0, group_ids=frozenset({65534}))
NO_LIMITS = rights.Limits(None, None, None)


def write_tree(root: Path, files: dict[str, str]) -> Tree:
    """Lay down a recorded copy: paths below proc/ and sys/ and their content."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Tree(str(root / "proc"), str(root / "sys"))


def mount_line(kind: str, directory: str, options: str, *, root: str = "/") -> str:
    """One line of mountinfo."""
    return f"30 23 0:27 {root} {directory} rw,relatime - {kind} {kind} {options}\n"


class TestCalls:
    """What each answer means."""

    @pytest.mark.parametrize(
        ("answer", "state"),
        [
            (Answer(errno.EBADF), FeatureState.AVAILABLE),
            (Answer(errno.ENOSYS), FeatureState.MISSING),
            (Answer(errno.EPERM), FeatureState.FORBIDDEN),
            (Answer(errno.EACCES), FeatureState.FORBIDDEN),
            (Answer(0), FeatureState.FORBIDDEN),
            (Answer(None, signal.SIGSYS), FeatureState.FORBIDDEN),
            (Answer(None, signal.SIGALRM), FeatureState.FORBIDDEN),
            (Answer(None, 0, "no interpreter"), FeatureState.FORBIDDEN),
        ],
    )
    def test_only_ebadf_means_that_mrelease_is_there(self, answer: Answer, state: FeatureState) -> None:
        """A pidfd of -1 must be called a bad descriptor; every other answer is not this call's own."""
        feature = calls.describe_process_mrelease(Interview({"process_mrelease": answer}), NO_FILTER)

        assert feature.state is state
        assert feature.is_needed
        assert bool(feature.remedy) is (state is not FeatureState.AVAILABLE)

    def test_enosys_under_a_filter_is_not_blamed_on_the_kernel_alone(self) -> None:
        """Container run-times answer ENOSYS for what they do not know; both causes are named."""
        answers = Interview({"process_mrelease": Answer(errno.ENOSYS)})

        feature = calls.describe_process_mrelease(answers, FILTER)

        assert "from the kernel or from a seccomp filter" in feature.found
        assert "see seccomp" in feature.remedy
        assert rights.describe_seccomp(answers, FILTER).state is FeatureState.LIMITED
        assert rights.describe_seccomp(answers, NO_FILTER).state is FeatureState.AVAILABLE

    @pytest.mark.parametrize(
        ("standing", "rtprio", "groups_without", "found", "remedy"),
        [
            (NOBODY, 0, [], "neither CAP_SYS_NICE nor RLIMIT_RTPRIO", "AmbientCapabilities=CAP_SYS_NICE"),
            (NOBODY, 0, ["/g"], "neither CAP_SYS_NICE nor RLIMIT_RTPRIO", "LimitRTPRIO=1"),
            (NOBODY, 1, ["/g"], "no real-time budget", "echo 500000 > /g/cpu.rt_runtime_us"),
            (NO_FILTER, 0, ["/a b"], "no real-time budget", "echo 500000 > '/a b'/cpu.rt_runtime_us"),
            (FILTER, 0, [], "a seccomp filter", "RestrictRealtime=no"),
            (NO_FILTER, 0, [], "RT_GROUP_SCHED?", "rt_group_sched=0"),
            (NO_FILTER._replace(is_user_namespaced=True), 0, [], "of the machine", "--userns=host"),
            (NOBODY._replace(bounding=0), 0, [], "neither", "--cap-add=SYS_NICE"),
        ],
    )
    def test_each_cause_of_a_refused_priority_has_its_own_remedy(
        self, standing: rights.Standing, rtprio: int, groups_without: list[str], found: str, remedy: str
    ) -> None:
        """One EPERM, five causes: no right, a v1 group without budget, a filter, v2 groups, a user namespace."""
        limits = NO_LIMITS._replace(rtprio=rights.Limit(rtprio, rtprio))

        feature = calls.describe_sched_fifo(
            Interview({"sched_fifo": Answer(errno.EPERM)}), standing, limits, groups_without
        )

        assert feature.state is FeatureState.FORBIDDEN
        assert found in feature.found
        assert remedy in feature.remedy

    @pytest.mark.parametrize(
        ("number", "memlock", "standing", "state"),
        [
            (0, 8 << 20, NO_FILTER, FeatureState.AVAILABLE),
            (0, rights.UNLIMITED, NOBODY, FeatureState.AVAILABLE),
            (0, 64 << 20, NOBODY, FeatureState.LIMITED),
            (0, 64 << 20, NO_FILTER._replace(is_user_namespaced=True), FeatureState.LIMITED),
            (errno.ENOMEM, 8 << 20, NOBODY, FeatureState.FORBIDDEN),
            (errno.EPERM, 0, NOBODY, FeatureState.FORBIDDEN),
            (errno.EINVAL, 8 << 20, NO_FILTER, FeatureState.MISSING),
        ],
    )
    def test_locking_within_a_limit_is_not_the_whole_thing(
        self, number: int, memlock: int, standing: rights.Standing, state: FeatureState
    ) -> None:
        """A lock that a limit permits today fails an allocation tomorrow: only a right or no limit is enough."""
        limits = NO_LIMITS._replace(memlock_bytes=rights.Limit(memlock, memlock))

        feature = calls.describe_mlockall(Interview({"mlockall": Answer(number)}), standing, limits)

        assert feature.state is state

    @pytest.mark.parametrize(
        "report",
        [b"", b"usage: python [option]\n", b"one two\n\n", b"a b c d", b"a b c d\n\n", b"\xff\n\n"],
    )
    def test_a_report_that_is_none_gives_no_answers(self, report: bytes) -> None:
        """What some other program prints is not taken for an answer."""
        assert interview.parse_report(report).answers == {}


class TestPsi:
    """Pressure stall information, answer by answer."""

    @pytest.mark.parametrize(
        ("read", "trigger", "state", "found"),
        [
            (Answer(errno.ENOENT), Answer(errno.ENOENT), FeatureState.MISSING, "no /proc/pressure"),
            (Answer(errno.EOPNOTSUPP), Answer(errno.EOPNOTSUPP), FeatureState.MISSING, "built in, but off"),
            (Answer(errno.EACCES), Answer(errno.EACCES), FeatureState.FORBIDDEN, "EACCES"),
            (Answer(0), Answer(errno.EPERM), FeatureState.LIMITED, "averages only, no trigger (EPERM)"),
            (Answer(0), Answer(errno.EINVAL), FeatureState.LIMITED, "averages only, no trigger (EINVAL)"),
            (Answer(0), Answer(0, word="500"), FeatureState.AVAILABLE, "a window of 0.5 s or more"),
            (Answer(0), Answer(0, word="1000"), FeatureState.LIMITED, "a window of 1 s or more"),
            (Answer(0), Answer(0, word="2000"), FeatureState.LIMITED, "a window of 2 s or more"),
            (Answer(0), Answer(0, word=RECORDED), FeatureState.AVAILABLE, "a recorded copy"),
        ],
    )
    def test_every_answer_has_its_meaning(self, read: Answer, trigger: Answer, state: FeatureState, found: str) -> None:
        """Missing, off, closed, without triggers, or with windows of some length: each is told apart."""
        feature = pressure.describe_psi(Interview({"psi_read": read, "psi_trigger": trigger}), NO_FILTER)

        assert feature.state is state
        assert found in feature.found

    def test_a_recorded_file_is_not_written_to(self, tmp_path: Path) -> None:
        """Probing a recorded tree leaves it as it was: a trigger is written to procfs only."""
        averages = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
        tree = write_tree(tmp_path, {"proc/pressure/memory": averages})

        asked = interview.interview_kernel(tree.proc_root)

        assert asked.answer_to("psi_trigger").word == RECORDED
        assert (tmp_path / "proc/pressure/memory").read_text() == averages


class TestRecordedTrees:
    """Machines that we do not have, from copies of their files."""

    V1 = "".join(
        mount_line("cgroup", f"/sys/fs/cgroup/{name}", f"rw,{name}") for name in ("memory", "freezer", "cpu,cpuacct")
    )
    V2 = mount_line("cgroup2", "/sys/fs/cgroup", "rw,nsdelegate")
    V2_FILES: ClassVar = {
        "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
        "sys/fs/cgroup/system.slice/cgroup.freeze": "0\n",
    }

    @pytest.mark.parametrize(
        ("mountinfo", "files", "state", "found"),
        [
            (V1, {}, FeatureState.AVAILABLE, "v1 memory freezer cpu"),
            (V2, V2_FILES, FeatureState.AVAILABLE, "v2 memory freezer cpu"),
            (
                V1 + mount_line("cgroup2", "/sys/fs/cgroup/unified", "rw"),
                {"sys/fs/cgroup/unified/cgroup.controllers": ""},
                FeatureState.AVAILABLE,
                "hybrid: v1 memory freezer cpu; v2 bare",
            ),
            (
                V2 + mount_line("cgroup", "/sys/fs/cgroup/systemd", "rw,xattr,name=systemd"),
                V2_FILES,
                FeatureState.AVAILABLE,
                "v2 memory freezer cpu",
            ),
            (
                V2 + mount_line("cgroup", "/sys/fs/cgroup/freezer", "rw,freezer"),
                {"sys/fs/cgroup/cgroup.controllers": "cpu memory\n"},
                FeatureState.AVAILABLE,
                "hybrid: v1 freezer; v2 memory cpu",
            ),
            (V2, {"sys/fs/cgroup/cgroup.controllers": "cpu\n"}, FeatureState.LIMITED, "v2 cpu"),
            (V2, {"sys/fs/cgroup/cgroup.controllers": "\n"}, FeatureState.LIMITED, "v2 bare"),
            (mount_line("ext4", "/", "rw"), {}, FeatureState.MISSING, "none mounted"),
            ("", {}, FeatureState.MISSING, "none mounted"),
        ],
    )
    def test_control_groups(
        self, tmp_path: Path, mountinfo: str, files: dict[str, str], state: FeatureState, found: str
    ) -> None:
        """v1, v2, both and none are told apart, each with the controllers that matter."""
        folders = {
            f"sys/fs/cgroup/{name}/tasks": "" for name in ("memory", "freezer", "cpu,cpuacct", "unified", "systemd")
        }
        tree = write_tree(tmp_path, {"proc/self/mountinfo": mountinfo, **folders, **files})

        feature = groups.describe_cgroup(tree)

        assert feature.found == found
        assert feature.state is state

    def test_a_controller_switched_off_at_boot_is_told_from_one_not_mounted(self, tmp_path: Path) -> None:
        """Small boards boot with cgroup_disable=memory: the remedy is a boot parameter, not a mount."""
        table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t1\nmemory\t0\t1\t{}\n"
        files = {"proc/self/mountinfo": self.V2, "sys/fs/cgroup/cgroup.controllers": "cpu\n"}

        off = groups.describe_cgroup(write_tree(tmp_path / "off", {**files, "proc/cgroups": table.format(0)}))
        elsewhere = groups.describe_cgroup(write_tree(tmp_path / "on", {**files, "proc/cgroups": table.format(1)}))

        assert off.remedy == "cgroup_enable=memory on the kernel's command line"
        assert "boot" not in elsewhere.remedy
        assert "mount" in elsewhere.remedy

    @pytest.mark.parametrize(
        ("root", "group", "budgets", "expected"),
        [
            ("/", "/a/b", {"": 950000, "a": 0, "a/b": 0}, ["a", "a/b"]),
            ("/", "/a/b", {"": 950000, "a": 500000, "a/b": 0}, ["a/b"]),
            ("/", "/a/b", {"": 950000, "a": 500000, "a/b": 500000}, []),
            ("/", "/", {"": 950000}, []),
            ("/", "/a/b", {}, []),  # a kernel without RT_GROUP_SCHED
            ("/docker/1", "/docker/1/b", {"": 0, "b": 0}, ["b"]),  # our group is not where the mount begins
            ("/docker/1", "/../other", {"": 0}, []),  # a group that this mount does not show
        ],
    )
    def test_groups_without_a_realtime_budget(
        self, tmp_path: Path, root: str, group: str, budgets: dict[str, int], expected: list[str]
    ) -> None:
        """The groups to write to are our own and those above it that lack a budget, outermost first."""
        mountinfo = mount_line("cgroup", "/sys/fs/cgroup/cpu,cpuacct", "rw,cpu,cpuacct", root=root)
        files = {f"sys/fs/cgroup/cpu,cpuacct/{path}/cpu.rt_runtime_us": f"{us}\n" for path, us in budgets.items()}
        memberships = f"5:freezer:/elsewhere\n4:cpu,cpuacct:{group}\n0::/init.scope\n"
        tree = write_tree(tmp_path, {"proc/self/mountinfo": mountinfo, "proc/self/cgroup": memberships, **files})

        found = groups.find_groups_without_realtime(tree)

        assert found == [f"/sys/fs/cgroup/cpu,cpuacct/{path}" for path in expected]

    HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"

    @pytest.mark.parametrize(
        ("swaps", "zswap", "state", "found"),
        [
            (HEAD, "N\n", FeatureState.MISSING, "none"),
            (
                HEAD + "/dev/sda2 partition\t2097148\t0\t-2\n",
                "N\n",
                FeatureState.AVAILABLE,
                "partition 2 GiB (0 KiB used)",
            ),
            (
                HEAD + "/swap.img file\t524284\t1024\t-2\n",
                "Y\n",
                FeatureState.AVAILABLE,
                "file 512 MiB (1 MiB used), zswap on",
            ),
            (
                HEAD + "/dev/zram0 partition\t4194300\t1572864\t100\n/dev/dm-1 partition\t1048572\t0\t-2\n",
                "N\n",
                FeatureState.AVAILABLE,
                "zram 4 GiB (1.5 GiB used), partition 1 GiB (0 KiB used)",
            ),
            (
                HEAD + "/a\\040b\\040(deleted) file\t2048\t0\t-2\n",
                "N\n",
                FeatureState.AVAILABLE,
                "file 2 MiB (0 KiB used)",
            ),
        ],
    )
    def test_swap(self, tmp_path: Path, swaps: str, zswap: str, state: FeatureState, found: str) -> None:
        """None, a disk, a file, compressed memory: kind and sizes of each."""
        tree = write_tree(tmp_path, {"proc/swaps": swaps, "sys/module/zswap/parameters/enabled": zswap})

        feature = pressure.describe_swap(tree)

        assert feature.state is state
        assert feature.found == found

    @pytest.mark.parametrize(
        ("options", "standing", "state"),
        [
            ("rw", NOBODY, FeatureState.AVAILABLE),
            ("rw,hidepid=off", NOBODY, FeatureState.AVAILABLE),
            ("rw,hidepid=0", NOBODY, FeatureState.AVAILABLE),
            ("rw,hidepid=1", NOBODY, FeatureState.LIMITED),
            ("rw,hidepid=2", NOBODY, FeatureState.LIMITED),
            ("rw,hidepid=noaccess", NOBODY, FeatureState.LIMITED),
            ("rw,hidepid=invisible", NOBODY, FeatureState.LIMITED),
            ("rw,hidepid=ptraceable", NOBODY, FeatureState.LIMITED),
            ("rw,hidepid=invisible", NO_FILTER, FeatureState.AVAILABLE),
            ("rw,gid=65534,hidepid=invisible", NOBODY, FeatureState.AVAILABLE),
            ("rw,gid=4,hidepid=invisible", NOBODY, FeatureState.LIMITED),
            ("rw,gid=65534,hidepid=ptraceable", NOBODY, FeatureState.LIMITED),
            ("rw,hidepid=invisible,subset=pid", NO_FILTER, FeatureState.FORBIDDEN),
            ("rw", NO_FILTER._replace(pid_levels=2), FeatureState.FORBIDDEN),
        ],
    )
    def test_what_proc_hides(
        self, tmp_path: Path, options: str, standing: rights.Standing, state: FeatureState
    ) -> None:
        """Each spelling of hidepid, who sees through it, subset=pid, and a /proc of another namespace."""
        decoy = mount_line("proc", "/var/chroot/proc", "rw,hidepid=2,subset=pid")
        earlier = mount_line("proc", "/proc", "rw,subset=pid")
        mountinfo = earlier + mount_line("proc", "/proc", options) + decoy
        files = {"proc/self/stat": "1 (sh) R", "proc/meminfo": "MemTotal: 1 kB\n", "proc/self/mountinfo": mountinfo}
        tree = write_tree(tmp_path, files)

        feature = procfs.describe_proc(tree, standing)

        assert feature.state is state
        assert feature.is_needed

    def test_without_proc_everything_is_still_reported(self, tmp_path: Path) -> None:
        """No /proc: nothing can be reaped, and the doctor says so instead of failing."""
        (tmp_path / "proc").mkdir()

        features = probe_features(proc_root=str(tmp_path / "proc"), sys_root=str(tmp_path / "sys"))

        assert features.find("proc").state is FeatureState.MISSING
        assert features.find("psi").state is FeatureState.MISSING
        assert features.can_reap is False
        assert tuple(item.name for item in features.items) == NAMES

    def test_the_roots_reach_every_file(self, tmp_path: Path) -> None:
        """A recorded machine is judged by its own files, and by none of the machine it is read on."""
        tree = write_tree(
            tmp_path,
            {
                "proc/self/stat": "1 (sh) R",
                "proc/self/status": f"Name:\tsh\nCapEff:\t{ALL_BUT_RESOURCE:016x}\nCapBnd:\t{ALL_BUT_RESOURCE:016x}\n"
                "NSpid:\t7\nSeccomp:\t2\nSeccomp_filters:\t3\nNoNewPrivs:\t1\n",
                "proc/self/limits": "Max open files            16                   16                   files     \n",
                "proc/self/mountinfo": self.V2,
                "proc/self/cgroup": "0::/\n",
                "proc/meminfo": "MemTotal: 1 kB\n",
                "proc/swaps": self.HEAD + "/dev/zram0 partition\t1024\t0\t100\n",
                "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
                "proc/sys/vm/panic_on_oom": "1\n",
                "proc/sys/kernel/core_pattern": "|/usr/lib/dumper %P\n",
                **self.V2_FILES,
            },
        )

        features = probe_features(proc_root=tree.proc_root, sys_root=tree.sys_root)

        found = {item.name: item.found for item in features.items}
        assert found["capabilities"] == "all but SYS_RESOURCE"
        assert found["rlimits"] == "memlock unknown, rtprio unknown, nofile 16"
        assert found["seccomp"] == "filters: 3, none in our way, no_new_privs"
        assert found["psi"] == "a recorded copy: triggers not tried"
        assert found["cgroup"] == "v2 memory freezer cpu"
        assert found["swap"] == "zram 1 MiB (0 KiB used)"
        assert found["oom_killer"] == "panic_on_oom=1"
        assert found["core_pattern"] == "to a program: /usr/lib/dumper"

    @pytest.mark.parametrize(
        ("links", "found"),
        [
            ({"user": "user:[4026531837]", "pid": "pid:[4026531836]"}, "the first ones: the whole machine"),
            ({"user": "user:[4026531837]", "pid": "pid:[4026532201]"}, "inside others: pid"),
            ({"user": "user:[4026532199]", "cgroup": "cgroup:[4026532203]"}, "inside others: user, cgroup"),
            ({}, "the first ones: the whole machine"),
        ],
    )
    def test_namespaces(self, tmp_path: Path, links: dict[str, str], found: str) -> None:
        """The first namespaces have fixed numbers; any other number is a container's."""
        folder = tmp_path / "proc/self/ns"
        folder.mkdir(parents=True)
        for kind, target in links.items():
            (folder / kind).symlink_to(target)

        assert rights.describe_namespaces(Tree(str(tmp_path / "proc"), "")).found == found


class TestRights:
    """Reading /proc/self/status and limits."""

    def test_a_hostile_name_does_not_pass_for_a_right(self) -> None:
        r"""The kernel escapes newlines in Name, so a comm of "x\nCapEff:..." gives no capability."""
        status = b"Name:\tx\\nCapEff:\t000001ffffffffff\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000020\n"

        standing = rights.parse_standing(status)

        assert standing.effective == 0
        assert standing.is_barred(rights.CAP_SYS_NICE)
        assert not standing.is_barred(rights.CAP_KILL)

    def test_an_old_kernels_status_has_unknowns_and_no_zeroes(self) -> None:
        """A line that this kernel does not print is None, never 0."""
        standing = rights.parse_standing(b"Name:\tsh\nCapEff:\t0000000000000000\n")

        assert standing.seccomp_mode is None
        assert standing.seccomp_filters is None
        assert standing.pid_levels is None
        assert standing.bounding is None

    def test_a_capability_that_the_sandbox_bars_has_another_remedy(self) -> None:
        """What root can have is asked of the unit as ambient; what is barred, of the bounding set."""
        standing = NO_FILTER._replace(effective=0, bounding=ALL_BUT_RESOURCE)

        remedy = rights.describe_capabilities(standing).remedy

        assert "AmbientCapabilities=CAP_KILL CAP_SYS_PTRACE CAP_SYS_NICE CAP_IPC_LOCK" in remedy
        assert "CapabilityBoundingSet=CAP_SYS_RESOURCE" in remedy
        assert "--cap-add=SYS_RESOURCE" in remedy

    def test_kernel_stacks_are_no_reason_to_ask_for_sys_admin(self) -> None:
        """Lacking CAP_SYS_ADMIN alone is mentioned, and is no limitation."""
        feature = rights.describe_capabilities(NO_FILTER._replace(effective=ALL_CAPABILITIES & ~(1 << 21)))

        assert feature.state is FeatureState.AVAILABLE
        assert "SYS_ADMIN" in feature.found

    def test_limits_are_read_by_name(self) -> None:
        """Soft and hard, "unlimited" as a value of its own, and a row whose unit is blank."""
        limits = (
            b"Limit                     Soft Limit           Hard Limit           Units     \n"
            b"Max open files            1024                 524288               files     \n"
            b"Max locked memory         unlimited            unlimited            bytes     \n"
            b"Max realtime priority     0                    99                   \n"
        )

        assert rights.parse_limit(limits, b"Max open files") == rights.Limit(1024, 524288)
        assert rights.parse_limit(limits, b"Max locked memory") == rights.Limit(rights.UNLIMITED, rights.UNLIMITED)
        assert rights.parse_limit(limits, b"Max realtime priority") == rights.Limit(0, 99)
        assert rights.parse_limit(limits, b"Max nice priority") is None

    def test_too_few_descriptors_are_measured_against_the_processes_here(self, tmp_path: Path) -> None:
        """A limit is low or not by what runs on the machine, not by a number of ours."""
        for pid in range(1, 101):
            (tmp_path / "proc" / str(pid)).mkdir(parents=True)
        tree = Tree(str(tmp_path / "proc"), "")

        enough = rights.describe_rlimits(tree, NO_LIMITS._replace(nofile=rights.Limit(64, 456)))
        short = rights.describe_rlimits(tree, NO_LIMITS._replace(nofile=rights.Limit(64, 455)))

        assert enough.state is FeatureState.AVAILABLE
        assert short.state is FeatureState.LIMITED
        assert "LimitNOFILE=" in short.remedy

    @pytest.mark.parametrize(
        ("kib", "shown"),
        [(0, "0 KiB"), (900, "900 KiB"), (1024, "1 MiB"), (1536, "1.5 MiB"), (1048572, "1 GiB"), (1 << 20, "1 GiB")],
    )
    def test_sizes_are_shown_with_their_unit(self, kib: int, shown: str) -> None:
        """A size has one unit and at most one decimal."""
        assert format_kib(kib) == shown
