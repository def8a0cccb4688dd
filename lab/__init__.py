"""The lab: whole machines that really run out of memory, in qemu, with our killer and every other one side by side.

``python -m lab`` (``make lab``) builds what it needs from Debian's packages, runs what of the grid is not done yet, and
makes the report of the raw records. ``python -m lab smoke`` (``make lab-smoke``) is the part that CI runs.

===========  =======================================================================================================
seam         what both halves know: a machine's specification, commands and messages, who makes guests
packages     the host's tools, and Debian's packages, by an apt of the lab's own
kernels      kernels by name
images/      what guests are started with: initramfs by hand, the small image, the full one
cache        where all that is kept, and what it takes
qemu         one qemu process, its monitor, its end
channel      what is heard from a guest, with the host's time
machine      guests that are ready: booted once, saved, started from there
guest/       what runs inside: the agent, workloads, the probe, victims that cannot die
scenario     what happens in a machine, who is to die and who is not; the files are in scenarios/
contestants  who is compared: how each is started, and where its settings come from
talk, play   one run: a ready guest, a scenario and a contestant in, a record out
observer     what a run's messages come to: kills, stalls, memory
runner       the grid, resumable; the smoke
records      raw records, a line of JSON each, in results/
report       the page and the drawing of them
suite        the tests of the `reap` victims, in a guest
===========  =======================================================================================================
"""
