"""Which unit and which container a control group's path tells of: a corpus that only grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.policy.belonging import container_of, is_root, is_within, unit_of

ID = "4f0c1e" * 10 + "beef"
OTHER_ID = "0" * 64
MANAGER = "/user.slice/user-1000.slice/user@1000.service"

# path, unit, container
CORPUS = [
    ("/", None, None),
    ("", None, None),
    ("/init.scope", "init.scope", None),
    ("/system.slice", None, None),
    ("/system.slice/nginx.service", "nginx.service", None),
    ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", None),
    ("/system.slice/nginx.service/worker", "nginx.service", None),
    ("/system.slice/dev-mqueue.mount", None, None),
    ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope", None),
    (MANAGER, "user@1000.service", None),
    (f"{MANAGER}/init.scope", "init.scope", None),
    (f"{MANAGER}/app.slice", "user@1000.service", None),
    (f"{MANAGER}/app.slice/app-gnome-firefox-4711.scope", "app-gnome-firefox-4711.scope", None),
    (
        f"{MANAGER}/app.slice/app-org.gnome.Terminal.slice/vte-spawn-5d1e3a52-8f2c.scope",
        "vte-spawn-5d1e3a52-8f2c.scope",
        None,
    ),
    (f"{MANAGER}/session.slice/org.gnome.Shell@wayland.service", "org.gnome.Shell@wayland.service", None),
    # systemd escapes what it must; the name stays as systemctl prints it
    (f"{MANAGER}/app.slice/app-flatpak-org.x\\x2dy-77.scope", "app-flatpak-org.x\\x2dy-77.scope", None),
    # docker, with the systemd and the cgroupfs driver; buildx and an init of its own inside
    (f"/system.slice/docker-{ID}.scope", f"docker-{ID}.scope", ID),
    (f"/docker/{ID}", None, ID),
    (f"/docker/{ID}/system.slice/nginx.service", None, ID),
    (f"/system.slice/docker-{ID}.scope/system.slice/sshd.service", f"docker-{ID}.scope", ID),
    (f"{MANAGER}/app.slice/docker.service", "docker.service", None),
    (f"{MANAGER}/user.slice/docker-{ID}.scope", f"docker-{ID}.scope", ID),
    # Kubernetes: containerd and cri-o, both drivers, and the mixture of both
    (f"/kubepods/burstable/pod6f1d/{ID}", None, ID),
    (f"/kubepods/besteffort/pod6f1d-22/{ID}", None, ID),
    (
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod6f1d.slice/cri-containerd-{ID}.scope",
        f"cri-containerd-{ID}.scope",
        ID,
    ),
    (f"/kubepods.slice/kubepods-pod6f1d.slice/crio-{ID}.scope/container", f"crio-{ID}.scope", ID),
    (f"/kubepods.slice/kubepods-pod6f1d.slice/crio-conmon-{ID}.scope", f"crio-conmon-{ID}.scope", None),
    (
        f"/system.slice/containerd.service/kubepods-burstable-pod6f1d.slice:cri-containerd:{ID}",
        "containerd.service",
        ID,
    ),
    (f"/docker/{ID}/kubelet/kubepods/burstable/pod6f1d/{OTHER_ID}", None, ID),
    # podman
    (f"/machine.slice/libpod-{ID}.scope/container", f"libpod-{ID}.scope", ID),
    (f"/machine.slice/libpod-conmon-{ID}.scope", f"libpod-conmon-{ID}.scope", None),
    (f"{MANAGER}/user.slice/libpod-{ID}.scope/container", f"libpod-{ID}.scope", ID),
    (f"/libpod_parent/libpod-{ID}", None, ID),
    (f"/system.slice/nerdctl-{ID}.scope", f"nerdctl-{ID}.scope", ID),
    # ECS
    (f"/ecs/0123456789abcdef0123456789abcdef/{ID}", None, ID),
    # LXC and LXD
    ("/lxc.payload.web", None, "web"),
    ("/lxc.payload.web-1/system.slice/nginx.service", None, "web-1"),
    ("/lxc.monitor.web", None, None),
    ("/lxc/web/init.scope", None, "web"),
    ("/lxc", None, None),
    ("/lxc.payload.", None, None),
    # systemd-nspawn and virtual machines
    ("/machine.slice/machine-web.scope/payload/system.slice/x.service", "machine-web.scope", "web"),
    ("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt", "machine-qemu\\x2d1\\x2dvm.scope", "qemu\\x2d1\\x2dvm"),
    ("/machine.slice/systemd-nspawn@web.service/payload", "systemd-nspawn@web.service", "web"),
    ("/system.slice/machine-web.scope", "machine-web.scope", None),
    # seen from inside of a cgroup namespace
    ("/../../system.slice/cron.service", "cron.service", None),
    (f"/../{ID}", None, ID),
    # Slurm
    ("/slurm/uid_1000/job_77/step_0/task_0", None, None),
    ("/system.slice/slurmstepd.scope/job_77/step_0/user/task_0", "slurmstepd.scope", None),
    # made to mislead
    ("/mine/sshd.service", None, None),
    ("/system.slice/evil.service/sshd.service", "evil.service", None),
    (f"{MANAGER}/app.slice/evil.service/user@0.service/sshd.service", "evil.service", None),
    ("/system.slice/.service", None, None),
    ("/system.slice/foo.service\n", None, None),
    ("/system.slice/foo\n.service", "foo\n.service", None),
    (f"/system.slice/docker-{ID[:-1]}.scope", f"docker-{ID[:-1]}.scope", None),
    (f"/system.slice/docker-{ID}0.scope", f"docker-{ID}0.scope", None),
    (f"/docker/{ID.upper()}", None, None),
    ("/system.slice/\udcff\udcfe.service", "\udcff\udcfe.service", None),
]


@pytest.mark.parametrize(("path", "unit", "container"), CORPUS)
def test_the_corpus(path: str, unit: str | None, container: str | None) -> None:
    """Each path tells the unit that systemctl would, and the container that its engine would."""
    assert (unit, container) == (unit_of(path), container_of(path))


@given(inner=st.text())
def test_nothing_inside_of_a_service_renames_it(inner: str) -> None:
    """Who was delegated a group names nothing by what he makes in it."""
    assert unit_of(f"/system.slice/sandbox.service/{inner}") == "sandbox.service"


@given(inner=st.text())
def test_nothing_inside_of_a_container_renames_it(inner: str) -> None:
    """A container's root cannot pass for another container."""
    assert container_of(f"/docker/{ID}/{inner}") == ID


@pytest.mark.parametrize(
    ("cgroup", "path", "expected"),
    [
        ("/a", "/a", True),
        ("/a/b", "/a", True),
        ("/a/b", "/a/", True),
        ("/a/", "/a", True),
        ("/ab", "/a", False),
        ("/a", "/a/b", False),
        ("/a", "/", True),
        ("/", "/", True),
        ("/", "/a", False),
    ],
)
def test_within_goes_by_whole_parts(cgroup: str, path: str, expected: bool) -> None:  # noqa: FBT001 # expected
    """/a holds /a/b and not /ab; the root holds all."""
    assert is_within(cgroup, path) is expected


@pytest.mark.parametrize(("path", "expected"), [("/", True), ("", True), ("//", True), ("/a", False)])
def test_the_root(path: str, expected: bool) -> None:  # noqa: FBT001 # expected
    """However many slashes."""
    assert is_root(path) is expected
