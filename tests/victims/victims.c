/*
 * victims: the processes that SIGKILL alone does not free, and those who keep them so.
 *
 * One program with sub-commands, so that a test compiles once and a victim is a small process in which nothing
 * happens but what is asked for. Three kinds of sub-command: a *victim* holds memory and stands in one certain
 * state; a *holder* keeps a victim there (it has the lock, the frozen file system, the unanswered read); a *tool*
 * does one errand. stage.py starts them and knows how they go together.
 *
 * How each talks: it writes a line to stdout when its state is reached ("ready key=value ..."), and reads its
 * orders from stdin. End of file on stdin means "it is over", and the only writer of that pipe is the test run,
 * so the same line also says that the run has died, whatever it died of.
 *
 * How long each lives: every process has a bound (--bound, under a minute), and dies with the run through
 * PR_SET_PDEATHSIG. The two that leave the machine in a bad state when they merely die (a frozen file system, a
 * changed kernel file) do the opposite: they block every signal they can, outlive the run, clean up, and end.
 *
 * The file is long because it is one program on purpose; each sub-command stands alone and can be read alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/fuse.h>
#include <linux/loop.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_process_mrelease
#define SYS_process_mrelease 448
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

enum {
	PAGE_BYTES = 4096,        /* what the victims touch; a kernel with larger pages is merely touched more often */
	HUGE_BYTES = 2 << 20,     /* the size and alignment of a transparent huge page on x86-64 and 4 KiB arm64 */
	FILE_BYTES = 1 << 20,     /* the file on the frozen file system; any size that holds a page */
	THREAD_STACK_BYTES = 64 << 10, /* above PTHREAD_STACK_MIN; only the touched page or two become memory */
	FUSE_BUFFER_BYTES = 64 << 10,  /* the kernel wants at least FUSE_MIN_READ_BUFFER, 8 KiB */
	WITHHELD_MAX = 64,        /* reads that one FUSE server can leave unanswered */
};

struct options {
	size_t size_bytes;    /* --size: the memory that the victim holds */
	const char *memory;   /* --memory: which kind, see hold_memory() */
	const char *path;     /* --path: the file or directory that the sub-command is about */
	const char *image;    /* --image: the file behind a loop device */
	const char *cgroup;   /* --cgroup: a directory to join before any memory is touched */
	const char *policy;   /* --policy: other, idle, eager (nice -20) or fifo */
	pid_t mounts_of;      /* --mounts-of: whose mount namespace to enter */
	pid_t parent;         /* --parent: who started us; if it is gone already, so are we */
	int cpu;              /* --cpu: the only CPU to run on, -1 for any */
	int count;            /* --count: how many threads, sharers or busy loops */
	const char *loops_policy; /* --loops-policy: as --policy, of the busy loops */
	unsigned loops_bound_s;   /* --loops-bound: their longest life, in seconds */
	int user;             /* --user: the user to become, -1 for whoever we are */
	unsigned bound_s;     /* --bound: the longest life, in seconds */
	char **operands;      /* what follows the options, NULL-terminated */
};

/* ---- what all of them share ------------------------------------------------------------------------------ */

static void fail(const char *what)
{
	fprintf(stderr, "victims: %s: %s\n", what, strerror(errno));
	_exit(1);
}

/*
 * One line to whoever staged us; dprintf has no buffer that a fork could write twice. When nobody listens any more
 * SIGPIPE ends us, but not those who have to clean up first: they go on, and find the end of stdin.
 */
static void report(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vdprintf(STDOUT_FILENO, format, arguments);
	va_end(arguments);
}

static long long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static void nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* Bound this process's life to the run's and to the clock's. */
static void live_no_longer_than_the_run(const struct options *o)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* First, since a change of user makes the kernel forget the death signal, and forbid being looked at. */
	if (o->user >= 0) {
		uid_t user = (uid_t)o->user;

		if (setresgid(user, user, user) < 0 || setresuid(user, user, user) < 0 || prctl(PR_SET_DUMPABLE, 1) < 0)
			fail("change user");
	}
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
		fail("PR_SET_PDEATHSIG");
	if (o->parent && getppid() != o->parent)
		_exit(1);
	/* Where only ancestors may trace (Yama), let a sibling; refused where there is no Yama, which is as good. */
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	alarm(o->bound_s);
}

/* For those whose death would leave the machine broken: only the end of stdin or their own clock ends them. */
static void outlive_the_run_to_clean_up(void)
{
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
}

/*
 * Wait for a line or the end on stdin. True: a line came (its text is of no interest, an order is an order).
 * False: the end, or the bound has passed.
 */
static int next_order(const struct options *o)
{
	long long deadline_ms = now_ms() + o->bound_s * 1000LL;
	struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
	char byte;

	for (;;) {
		long long left_ms = deadline_ms - now_ms();

		if (left_ms <= 0)
			return 0;
		if (poll(&input, 1, (int)left_ms) < 0 && errno != EINTR)
			fail("poll");
		if (!input.revents)
			continue;
		if (read(STDIN_FILENO, &byte, 1) <= 0)
			return 0;
		if (byte == '\n')
			return 1;
	}
}

static void wait_for_the_end(const struct options *o)
{
	while (next_order(o))
		;
}

static _Noreturn void sleep_until_killed(void)
{
	for (;;)
		pause();
}

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fail(path);
	close(fd);
}

static int open_namespace(pid_t pid, const char *kind)
{
	char path[64];
	int fd;

	snprintf(path, sizeof path, "/proc/%d/ns/%s", (int)pid, kind);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fail(path);
	return fd;
}

static void enter_mounts_of(pid_t pid)
{
	int fd = open_namespace(pid, "mnt");

	if (setns(fd, CLONE_NEWNS) < 0)
		fail("setns");
	close(fd);
}

/* A mount namespace of our own: what is mounted in it goes when the last process in it goes. */
static void take_own_mounts(void)
{
	if (unshare(CLONE_NEWNS) < 0)
		fail("unshare");
	if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		fail("make the mounts private");
}

/* For the calling thread. The CPU last: on one that is kept busy already, the way to the right policy is long. */
static void take_policy_and_cpu(const char *name, int cpu)
{
	struct sched_param parameters = {.sched_priority = 0};
	int policy = SCHED_OTHER;

	if (!strcmp(name, "eager") && setpriority(PRIO_PROCESS, 0, -20) < 0)
		fail("setpriority");
	if (!strcmp(name, "idle")) {
		policy = SCHED_IDLE;
	} else if (!strcmp(name, "fifo")) {
		policy = SCHED_FIFO;
		parameters.sched_priority = 10;
	}
	if (policy != SCHED_OTHER && sched_setscheduler(0, policy, &parameters) < 0)
		fail("sched_setscheduler");
	if (cpu >= 0) {
		cpu_set_t only;

		CPU_ZERO(&only);
		CPU_SET(cpu, &only);
		if (sched_setaffinity(0, sizeof only, &only) < 0)
			fail("sched_setaffinity");
	}
}

static void touch(char *memory, size_t size_bytes)
{
	for (size_t at = 0; at < size_bytes; at += PAGE_BYTES)
		memory[at] = 1;
}

static char *map(size_t size_bytes, int flags, int fd)
{
	char *memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (memory == MAP_FAILED)
		fail("mmap");
	return memory;
}

/* A file without a name: gone with the last process that has it open or mapped. */
static int nameless_file(const char *directory, size_t size_bytes)
{
	int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)size_bytes) < 0)
		fail(directory);
	return fd;
}

static int memory_file(size_t size_bytes)
{
	int fd = memfd_create("oomreaper-test", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)size_bytes) < 0)
		fail("memfd_create");
	return fd;
}

/*
 * Join the cgroup, enter the mounts, then map and touch the memory, in pages of 4 KiB unless "huge".
 *   anon          private anonymous memory, what most processes have most of
 *   locked        the same, mlocked
 *   huge          the same in transparent huge pages
 *   swapped       the same, of which the kernel is asked to swap out what it can
 *   private-file  a private file mapping with every page written: copied on write, so anonymous
 *   shared        shared anonymous memory: shmem, which no reaper frees
 *   memfd         shmem that has a descriptor
 */
static void hold_memory(const struct options *o)
{
	size_t size_bytes = o->size_bytes;
	char *memory = NULL;

	if (o->cgroup) {
		char path[PATH_MAX];

		snprintf(path, sizeof path, "%s/cgroup.procs", o->cgroup);
		write_text(path, "0");
	}
	if (o->mounts_of)
		enter_mounts_of(o->mounts_of);
	if (!size_bytes)
		return;

	if (!strcmp(o->memory, "anon") || !strcmp(o->memory, "locked") || !strcmp(o->memory, "swapped")) {
		memory = map(size_bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	} else if (!strcmp(o->memory, "huge")) {
		uintptr_t start = (uintptr_t)map(size_bytes + HUGE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1);

		memory = (char *)((start + HUGE_BYTES - 1) & ~((uintptr_t)HUGE_BYTES - 1));
	} else if (!strcmp(o->memory, "private-file")) {
		memory = map(size_bytes, MAP_PRIVATE, nameless_file(o->path, size_bytes));
	} else if (!strcmp(o->memory, "shared")) {
		memory = map(size_bytes, MAP_SHARED | MAP_ANONYMOUS, -1);
	} else if (!strcmp(o->memory, "memfd")) {
		memory = map(size_bytes, MAP_SHARED, memory_file(size_bytes));
	} else {
		errno = EINVAL;
		fail(o->memory);
	}
	/* A kernel without huge pages says EINVAL to the "no": there is nothing to refuse. */
	if (madvise(memory, size_bytes, !strcmp(o->memory, "huge") ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) < 0 &&
	    !strcmp(o->memory, "huge"))
		fail("MADV_HUGEPAGE");
	touch(memory, size_bytes);
	if (!strcmp(o->memory, "locked") && mlock(memory, size_bytes) < 0)
		fail("mlock");
	if (!strcmp(o->memory, "swapped") && madvise(memory, size_bytes, MADV_PAGEOUT) < 0)
		fail("MADV_PAGEOUT");
}

static pthread_t start_thread(void *(*body)(void *), void *argument)
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, THREAD_STACK_BYTES);
	errno = pthread_create(&thread, &attributes, body, argument);
	if (errno)
		fail("pthread_create");
	pthread_attr_destroy(&attributes);
	return thread;
}

/* The state letter of one of our own threads. stat takes no lock of the address space, so it never blocks. */
static char state_of_thread(pid_t tid)
{
	char path[64], text[512], *end;
	ssize_t length;
	int fd;

	snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return '\0';
	length = read(fd, text, sizeof text - 1);
	close(fd);
	if (length <= 0)
		return '\0';
	text[length] = '\0';
	end = strrchr(text, ')');
	return end && end[1] ? end[2] : '\0';
}

/* Wait until a thread has said its id and then stands in D; the alarm of the process bounds the wait. */
static void wait_until_uninterruptible(const volatile pid_t *tid)
{
	while (!*tid || state_of_thread(*tid) != 'D')
		nap();
}

/* ---- userfaultfd: a page whose first touch waits for us ---------------------------------------------------- */

/* A page that nobody has touched: any access, the kernel's own included, sleeps until the descriptor answers. */
static int trap_page(char *page)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {
		.range = {.start = (uintptr_t)page, .len = PAGE_BYTES},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (uffd < 0)
		fail("userfaultfd");
	if (ioctl(uffd, UFFDIO_API, &api) < 0 || ioctl(uffd, UFFDIO_REGISTER, &range) < 0)
		fail("UFFDIO_REGISTER");
	return uffd;
}

/* Wait until somebody sleeps on the page. */
static void wait_for_a_fault(int uffd)
{
	struct pollfd events = {.fd = uffd, .events = POLLIN};
	struct uffd_msg message;

	do {
		if (poll(&events, 1, -1) < 0 && errno != EINTR)
			fail("poll");
	} while (read(uffd, &message, sizeof message) != sizeof message);
}

/* ---- victims ----------------------------------------------------------------------------------------------- */

/* Healthy: sleeps in poll(), and SIGKILL ends it at once. Also the victim that is frozen, traced or starved. */
static int idle(const struct options *o)
{
	live_no_longer_than_the_run(o);
	hold_memory(o);
	report("ready\n");
	wait_for_the_end(o);
	return 0;
}

static void *burn(void *argument)
{
	static atomic_int burning;
	const struct options *o = argument;

	take_policy_and_cpu(o->loops_policy, o->cpu);
	if (atomic_fetch_add(&burning, 1) + 1 == o->count)
		report("burning\n");
	for (volatile unsigned long turns = 0;; turns++)
		;
	return NULL;
}

/* A process of busy loops on the victim's CPU; its first thread is elsewhere, so that it sees the end of stdin. */
static int burn_beside_the_victim(const struct options *o, int start)
{
	char byte;

	alarm(o->loops_bound_s);
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
		fail("PR_SET_PDEATHSIG");
	if (read(start, &byte, 1) != 1)
		return 1;
	for (int i = 0; i < o->count; i++)
		start_thread(burn, (void *)(uintptr_t)o);
	wait_for_the_end(o);
	return 0;
}

/*
 * The victim to starve: bound to one CPU, runnable, and busy until an order puts it to sleep. (One that sleeps would
 * be woken by SIGKILL, and a waking task is soon granted a slice, in which it frees a lot.) The busy loops are a child
 * of its own, made before there is memory to share, because they must be of its session: the scheduler's autogroups
 * share a CPU between sessions first, whatever the priorities inside.
 */
static int starved(const struct options *o)
{
	struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
	int start[2];
	pid_t loops;

	live_no_longer_than_the_run(o);
	signal(SIGCHLD, SIG_IGN);
	if (pipe2(start, O_CLOEXEC) < 0)
		fail("pipe");
	loops = fork();
	if (loops < 0)
		fail("fork");
	if (!loops) {
		close(start[1]);
		_exit(burn_beside_the_victim(o, start[0]));
	}
	hold_memory(o);
	take_policy_and_cpu(o->policy, o->cpu);
	report("ready loops=%d\n", (int)loops);
	if (write(start[1], "", 1) != 1)
		fail("pipe");
	while (!poll(&input, 1, 0))
		for (volatile int turns = 0; turns < 1000000; turns++)
			;
	wait_for_the_end(o);
	return 0;
}

static void *sleep_in_a_thread(void *unused)
{
	(void)unused;
	sleep_until_killed();
}

/* Many threads: each has to be woken and to leave before the last one drops the address space. */
static int threads(const struct options *o)
{
	live_no_longer_than_the_run(o);
	hold_memory(o);
	for (int i = 0; i < o->count; i++)
		start_thread(sleep_in_a_thread, NULL);
	report("ready\n");
	wait_for_the_end(o);
	return 0;
}

/* Open, write one page, and whatever that meets: an inode lock, a frozen file system. */
static void write_a_page(const char *path)
{
	static const char page[PAGE_BYTES];
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		fail(path);
	if (write(fd, page, sizeof page) < 0)
		fail("write");
	close(fd);
}

static void *outlive_the_leader(void *argument)
{
	const struct options *o = argument;

	report("ready\n");
	if (o->path)
		write_a_page(o->path);
	wait_for_the_end(o);
	_exit(0);
}

/*
 * The first thread leaves alone. The process then shows as a zombie without memory in /proc/PID, and holds all of
 * it still, through the thread that lives on: asleep, or (--path) stuck in a write.
 */
static int zombie_leader(const struct options *o)
{
	live_no_longer_than_the_run(o);
	hold_memory(o);
	start_thread(outlive_the_leader, (void *)(uintptr_t)o);
	syscall(SYS_exit, 0);
	return 0;
}

/* Stand in write(): in D when somebody holds the inode's lock, or when the file system is frozen. */
static int stuck_write(const struct options *o)
{
	live_no_longer_than_the_run(o);
	hold_memory(o);
	report("ready\n");
	write_a_page(o->path);
	wait_for_the_end(o);
	return 0;
}

/*
 * Stand in read() of a FUSE file whose server does not answer: S before a signal (the wait can be interrupted, and
 * the interruption is one more request that the server ignores), D after SIGKILL, since the server has the request.
 */
static int stuck_read(const struct options *o)
{
	char byte;
	int fd;

	live_no_longer_than_the_run(o);
	hold_memory(o);
	report("ready\n");
	fd = open(o->path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fail(o->path);
	if (read(fd, &byte, 1) < 0)
		fail("read");
	close(fd);
	wait_for_the_end(o);
	return 0;
}

/* A process in our address space, but of its own; it touches little, since errno and the heap are shared too. */
static int share_the_memory(void *argument)
{
	const struct options *o = argument;
	char byte;

	alarm(o->bound_s);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	_exit(0);
}

/*
 * CLONE_VM without CLONE_THREAD: processes of their own in one address space, which lives until the last has gone.
 * They end with stdin; the first sleeps on, so that it is the test that decides about it.
 */
static int sharers(const struct options *o)
{
	char *stacks, *line;
	size_t used = 0, room = (size_t)o->count * 12 + 1;

	live_no_longer_than_the_run(o);
	hold_memory(o);
	signal(SIGCHLD, SIG_IGN); /* a sharer that ends leaves no zombie behind */
	stacks = map((size_t)o->count * PAGE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	line = malloc(room);
	if (!line)
		fail("malloc");
	line[0] = '\0';
	for (int i = 0; i < o->count; i++) {
		char *stack_top = stacks + (size_t)(i + 1) * PAGE_BYTES;
		pid_t pid = clone(share_the_memory, stack_top, CLONE_VM | SIGCHLD, (void *)(uintptr_t)o);

		if (pid < 0)
			fail("clone");
		used += (size_t)snprintf(line + used, room - used, "%s%d", i ? "," : "", (int)pid);
	}
	report("ready sharers=%s\n", line);
	sleep_until_killed();
}

static int sleep_in_the_second_thread(void *argument)
{
	return share_the_memory(argument);
}

/* A process in our address space whose first thread makes a second one and leaves: a zombie that leads a living one. */
static int leave_a_thread_behind(void *argument)
{
	const struct options *o = argument;
	char *stack = map(4 * PAGE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (clone(sleep_in_the_second_thread, stack + 4 * PAGE_BYTES,
		  CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM,
		  (void *)(uintptr_t)o) < 0)
		fail("clone");
	syscall(SYS_exit, 0);
	return 0;
}

static int zombie_led_sharer(const struct options *o)
{
	char *stack;
	pid_t pid;

	live_no_longer_than_the_run(o);
	hold_memory(o);
	signal(SIGCHLD, SIG_IGN);
	stack = map(4 * PAGE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	pid = clone(leave_a_thread_behind, stack + 4 * PAGE_BYTES, CLONE_VM | SIGCHLD, (void *)(uintptr_t)o);
	if (pid < 0)
		fail("clone");
	report("ready sharers=%d\n", (int)pid);
	sleep_until_killed();
}

static int vfork_child(void *argument)
{
	report("ready sharers=%d\n", (int)getpid());
	return share_the_memory(argument);
}

/* A parent in vfork(): it sleeps, killable, until the child that runs in its memory execs or ends. */
static int vfork_parent(const struct options *o)
{
	char *stack;

	live_no_longer_than_the_run(o);
	hold_memory(o);
	signal(SIGCHLD, SIG_IGN);
	stack = map(4 * PAGE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	if (clone(vfork_child, stack + 4 * PAGE_BYTES, CLONE_VM | CLONE_VFORK | SIGCHLD, (void *)(uintptr_t)o) < 0)
		fail("clone");
	sleep_until_killed();
}

/* Dump core when told to; --path is the directory where a core_pattern without a slash would put the file. */
static int dump_core(const struct options *o)
{
	struct rlimit limit;

	live_no_longer_than_the_run(o);
	hold_memory(o);
	if (o->path && chdir(o->path) < 0)
		fail(o->path);
	if (getrlimit(RLIMIT_CORE, &limit) < 0)
		fail("RLIMIT_CORE");
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_CORE, &limit) < 0)
		fail("RLIMIT_CORE");
	report("ready\n");
	if (next_order(o))
		abort();
	return 0;
}

struct file_page {
	char *page;
	volatile pid_t writer;
	volatile pid_t unmapper;
};

static void *store_to_the_page(void *argument)
{
	struct file_page *shared = argument;

	shared->writer = gettid();
	*(volatile char *)shared->page = 1;
	return NULL;
}

static void *unmap_the_page(void *argument)
{
	struct file_page *shared = argument;

	shared->unmapper = gettid();
	munmap(shared->page, PAGE_BYTES);
	return NULL;
}

/*
 * mmap_lock held for write by a thread in D. On a frozen file system one thread stores to a shared file page: the
 * file system's page_mkwrite sleeps, under the lock of that one VMA. Another unmaps the page: it takes mmap_lock
 * for write, then waits for the VMA, uninterruptibly. Whoever wants mmap_lock now waits for the thaw.
 */
static int hold_mmap_lock(const struct options *o)
{
	struct file_page shared = {0};
	int fd;

	live_no_longer_than_the_run(o);
	hold_memory(o);
	fd = open(o->path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		fail(o->path);
	shared.page = map(PAGE_BYTES, MAP_SHARED, fd);
	/* Present and read-only first: a store that had to read the file would fall back to mmap_lock itself. */
	(void)*(volatile char *)shared.page;
	start_thread(store_to_the_page, &shared);
	wait_until_uninterruptible(&shared.writer);
	start_thread(unmap_the_page, &shared);
	wait_until_uninterruptible(&shared.unmapper);
	report("ready\n");
	wait_for_the_end(o);
	return 0;
}

/* Has a page that another process can be made to wait on, which pins our memory beyond our death. */
static int pin_target(const struct options *o)
{
	char *page;
	int uffd;

	live_no_longer_than_the_run(o);
	hold_memory(o);
	page = map(PAGE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	uffd = trap_page(page);
	report("ready address=%llu uffd=%d\n", (unsigned long long)(uintptr_t)page, uffd);
	wait_for_the_end(o);
	return 0;
}

/* The first process of a pid namespace; the memory that its child holds is its own too. */
static void be_init(const struct options *o)
{
	char *stack;

	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
		fail("PR_SET_PDEATHSIG");
	take_own_mounts();
	if (mount("oomreaper-test", "/proc", "proc", 0, NULL) < 0)
		fail("mount /proc");
	hold_memory(o);
	signal(SIGCHLD, SIG_IGN);
	stack = map(4 * PAGE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	if (clone(share_the_memory, stack + 4 * PAGE_BYTES, CLONE_VM | SIGCHLD, (void *)(uintptr_t)o) < 0)
		fail("clone");
	report("ready\n");
	wait_for_the_end(o);
	_exit(0);
}

/* A pid namespace whose init shares its memory with a child: inside, the child cannot be killed alone. */
static int init_shares(const struct options *o)
{
	pid_t init;

	live_no_longer_than_the_run(o);
	if (unshare(CLONE_NEWPID) < 0)
		fail("unshare");
	init = fork();
	if (init < 0)
		fail("fork");
	if (!init)
		be_init(o);
	report("init pid=%d\n", (int)init);
	while (waitpid(init, NULL, 0) < 0 && errno == EINTR)
		;
	return 0;
}

/* ---- holders ----------------------------------------------------------------------------------------------- */

struct inode_writer {
	int file;
	char *page;
};

static void *write_from_the_trap(void *argument)
{
	struct inode_writer *writer = argument;

	if (write(writer->file, writer->page, PAGE_BYTES) < 0)
		return NULL; /* the end of the stage is an answer too */
	return NULL;
}

/*
 * Hold an inode's lock and make no progress: write() takes i_rwsem, then has to read the trapped page, and sleeps.
 * The founding commit's lock "blocked by another task". The file is a memfd, so nothing on disk is ever locked.
 */
static int hold_inode_lock(const struct options *o)
{
	struct inode_writer writer;
	int uffd;

	live_no_longer_than_the_run(o);
	writer.file = memory_file(0);
	writer.page = map(PAGE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	uffd = trap_page(writer.page);
	start_thread(write_from_the_trap, &writer);
	wait_for_a_fault(uffd);
	report("ready file=%d\n", writer.file);
	wait_for_the_end(o);
	close(uffd);
	return 0;
}

struct fuse_request {
	struct fuse_in_header header;
	char body[FUSE_BUFFER_BYTES - sizeof(struct fuse_in_header)];
};

static void answer(int device, uint64_t unique, int error, const void *body, size_t body_bytes)
{
	struct fuse_out_header header = {
		.len = (uint32_t)(sizeof header + body_bytes), .error = error, .unique = unique};
	struct iovec parts[] = {{&header, sizeof header}, {(void *)(uintptr_t)body, body_bytes}};

	/* ENOENT: the asker was interrupted away meanwhile; there is nobody to answer. */
	if (writev(device, parts, 2) < 0 && errno != ENOENT)
		fail("answer FUSE");
}

/* Node 1 is the directory, node 2 the one file, whatever name is asked for. */
static struct fuse_attr attributes_of(uint64_t node)
{
	return (struct fuse_attr){
		.ino = node,
		.mode = node == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0644,
		.nlink = 1,
		.size = FILE_BYTES,
		.blksize = PAGE_BYTES,
	};
}

/* Answer everything but a read. True when the request was a read: it is the caller's to withhold. */
static int answer_all_but_read(int device, const struct fuse_request *request)
{
	uint64_t unique = request->header.unique;

	switch (request->header.opcode) {
	case FUSE_INIT: {
		struct fuse_init_out out = {
			.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .max_write = PAGE_BYTES};

		answer(device, unique, 0, &out, sizeof out);
		return 0;
	}
	case FUSE_LOOKUP: {
		struct fuse_entry_out out = {.nodeid = 2, .attr = attributes_of(2)};

		answer(device, unique, 0, &out, sizeof out);
		return 0;
	}
	case FUSE_GETATTR: {
		struct fuse_attr_out out = {.attr = attributes_of(request->header.nodeid)};

		answer(device, unique, 0, &out, sizeof out);
		return 0;
	}
	case FUSE_OPEN: {
		struct fuse_open_out out = {.open_flags = FOPEN_DIRECT_IO};

		answer(device, unique, 0, &out, sizeof out);
		return 0;
	}
	case FUSE_READ:
		return 1;
	case FUSE_INTERRUPT: /* ignored: that is the point */
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET: /* want no answer */
		return 0;
	case FUSE_FLUSH:
	case FUSE_RELEASE:
		answer(device, unique, 0, NULL, 0);
		return 0;
	default:
		answer(device, unique, -ENOSYS, NULL, 0);
		return 0;
	}
}

/*
 * A FUSE server that answers everything but reads. Once a read has reached the server, the kernel waits for its
 * answer whatever happens to the reader. A line on stdin answers all reads; our end aborts the connection.
 */
static int serve_fuse(const struct options *o)
{
	static struct fuse_request request;
	uint64_t withheld[WITHHELD_MAX];
	int withheld_count = 0, device;
	char mount_options[128];

	live_no_longer_than_the_run(o);
	take_own_mounts();
	device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (device < 0)
		fail("/dev/fuse");
	snprintf(mount_options, sizeof mount_options, "fd=%d,rootmode=40000,user_id=0,group_id=0", device);
	if (mount("oomreaper-test", o->path, "fuse", MS_NOSUID | MS_NODEV, mount_options) < 0)
		fail("mount FUSE");
	report("ready\n");
	for (;;) {
		struct pollfd both[] = {{.fd = device, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};

		if (poll(both, 2, -1) < 0)
			fail("poll");
		if (both[1].revents) {
			if (!next_order(o))
				return 0;
			while (withheld_count)
				answer(device, withheld[--withheld_count], 0, NULL, 0);
			report("answered\n");
		}
		if (both[0].revents) {
			if (read(device, &request, sizeof request) < 0) {
				if (errno == EINTR || errno == EAGAIN || errno == ENOENT)
					continue;
				return 0; /* ENODEV: unmounted */
			}
			if (answer_all_but_read(device, &request) && withheld_count < WITHHELD_MAX) {
				withheld[withheld_count++] = request.header.unique;
				report("reading\n");
			}
		}
	}
}

/* Put the image behind a free loop device that the kernel detaches by itself at the unmount. */
static void attach_loop(const char *image, char *device, size_t device_bytes)
{
	struct loop_config config = {.info.lo_flags = LO_FLAGS_AUTOCLEAR};
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	int file = open(image, O_RDWR | O_CLOEXEC);

	if (control < 0 || file < 0)
		fail("loop");
	config.fd = (uint32_t)file;
	for (int attempt = 0; attempt < 20; attempt++) {
		int number = ioctl(control, LOOP_CTL_GET_FREE), fd;

		if (number < 0)
			fail("LOOP_CTL_GET_FREE");
		snprintf(device, device_bytes, "/dev/loop%d", number);
		fd = open(device, O_RDWR); /* kept open on purpose: the last close before the mount would detach it */
		if (fd < 0)
			fail(device);
		if (!ioctl(fd, LOOP_CONFIGURE, &config)) {
			close(file);
			close(control);
			return;
		}
		close(fd); /* EBUSY: somebody was quicker; ask again */
	}
	fail("LOOP_CONFIGURE");
}

/*
 * An ext4 in a mount namespace of our own, with one file in it, frozen: every write to it sleeps, uninterruptibly,
 * as on a dead disk, a suspended device or a server that has gone. A line on stdin thaws it; our end thaws and
 * unmounts it. Death alone would leave it frozen for ever, hence the signals are blocked and the bound is our own.
 */
static int freeze_ext4(const struct options *o)
{
	char device[32], file_name[PATH_MAX];
	static const char zeros[FILE_BYTES];
	int directory, file;

	outlive_the_run_to_clean_up();
	take_own_mounts();
	attach_loop(o->image, device, sizeof device);
	if (mount(device, o->path, "ext4", MS_NOATIME, NULL) < 0)
		fail("mount ext4");
	if (unlink(o->image) < 0)
		fail("unlink the image");
	snprintf(file_name, sizeof file_name, "%s/file", o->path);
	file = open(file_name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	if (file < 0 || write(file, zeros, sizeof zeros) != sizeof zeros || fsync(file) < 0)
		fail(file_name);
	close(file);
	directory = open(o->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (directory < 0 || ioctl(directory, FIFREEZE, 0) < 0)
		fail("FIFREEZE");
	report("ready\n");
	if (next_order(o)) {
		if (ioctl(directory, FITHAW, 0) < 0)
			fail("FITHAW");
		report("thawed\n");
		wait_for_the_end(o);
	} else if (ioctl(directory, FITHAW, 0) < 0) {
		fail("FITHAW");
	}
	close(directory);
	if (umount2(o->path, MNT_DETACH) < 0)
		fail("umount");
	return 0;
}

/*
 * Undo what the run does to the machine, also when the run has been killed. Operands, in the order in which they
 * are done: "write PATH TEXT", "swapoff PATH" (and the file goes), "rmdir PATH" (retried for some seconds: a cgroup is busy while its last task goes).
 */
static int guard(const struct options *o)
{
	int failed = 0;

	outlive_the_run_to_clean_up();
	report("ready\n");
	wait_for_the_end(o);
	for (char **at = o->operands; *at;) {
		if (!strcmp(at[0], "write") && at[1] && at[2]) {
			int fd = open(at[1], O_WRONLY | O_CLOEXEC);

			failed |= fd < 0 || write(fd, at[2], strlen(at[2])) < 0;
			close(fd);
			at += 3;
		} else if (!strcmp(at[0], "swapoff") && at[1]) {
			failed |= swapoff(at[1]) < 0 && errno != EINVAL; /* EINVAL: it is off already */
			failed |= unlink(at[1]) < 0;
			at += 2;
		} else if (!strcmp(at[0], "rmdir") && at[1]) {
			long long deadline_ms = now_ms() + 20000;

			while (rmdir(at[1]) < 0 && errno != ENOENT) {
				if (now_ms() > deadline_ms) {
					failed = 1;
					break;
				}
				nap();
			}
			at += 2;
		} else {
			return 2;
		}
	}
	return failed;
}

/* Trace a process so that it parks at the start of its exit, before it drops its memory. Our end lets it go. */
static int trace_exit(const struct options *o)
{
	live_no_longer_than_the_run(o);
	if (ptrace(PTRACE_SEIZE, (pid_t)atoi(o->operands[0]), 0, PTRACE_O_TRACEEXIT) < 0)
		fail("PTRACE_SEIZE");
	report("ready\n");
	wait_for_the_end(o);
	return 0;
}

struct remote_read {
	pid_t pid;
	void *address;
};

static void *read_remote_page(void *argument)
{
	struct remote_read *remote = argument;
	char page[PAGE_BYTES];
	struct iovec here = {page, sizeof page}, there = {remote->address, sizeof page};

	process_vm_readv(remote->pid, &here, 1, &there, 1, 0);
	return NULL;
}

/*
 * Read a victim's trapped page and sleep there: process_vm_readv holds mm_users, so the address space stays whole
 * after its owner has died and been waited for. Operands: pid, address, and the victim's uffd, of which we take a
 * copy, since with its last descriptor the trap would open.
 */
static int pin_remotely(const struct options *o)
{
	struct remote_read remote;
	int pidfd, uffd;

	live_no_longer_than_the_run(o);
	remote.pid = (pid_t)atoi(o->operands[0]);
	remote.address = (void *)(uintptr_t)strtoull(o->operands[1], NULL, 10);
	pidfd = (int)syscall(SYS_pidfd_open, remote.pid, 0);
	uffd = (int)syscall(SYS_pidfd_getfd, pidfd, atoi(o->operands[2]), 0);
	if (uffd < 0)
		fail("pidfd_getfd");
	start_thread(read_remote_page, &remote);
	wait_for_a_fault(uffd);
	report("ready\n");
	wait_for_the_end(o);
	close(uffd);
	return 0;
}

/* ---- tools ------------------------------------------------------------------------------------------------- */

/*
 * What core_pattern starts, with the core on stdin: do not read it, so that the dump stands still, until the second
 * pipe ends; then swallow it. Operands: the pipe to say "started" to, the pipe to wait for. Started by the kernel,
 * so its clock and that pipe are its only bounds.
 */
static int swallow_core(const struct options *o)
{
	static char buffer[64 << 10];
	int started, go;

	alarm(o->bound_s);
	started = open(o->operands[0], O_WRONLY | O_CLOEXEC);
	go = open(o->operands[1], O_RDONLY | O_CLOEXEC);
	if (started < 0 || go < 0 || write(started, "\n", 1) < 0)
		return 1;
	while (read(go, buffer, sizeof buffer) > 0)
		;
	while (read(STDIN_FILENO, buffer, sizeof buffer) > 0)
		;
	return 0;
}

/* Call process_mrelease once on a pid, and say its errno: a call that blocks costs this process and no other. */
static int mrelease(const struct options *o)
{
	int pidfd;

	live_no_longer_than_the_run(o);
	pidfd = (int)syscall(SYS_pidfd_open, atoi(o->operands[0]), 0);
	if (pidfd < 0)
		fail("pidfd_open");
	report("ready\n");
	errno = 0;
	syscall(SYS_process_mrelease, pidfd, 0);
	report("answer errno=%d\n", errno);
	return 0;
}

/* Run a command in the pid and mount namespaces of a process. Operands: its pid, then the command. */
static int enter(const struct options *o)
{
	pid_t pid = (pid_t)atoi(o->operands[0]), child;
	int pids = open_namespace(pid, "pid"), mounts = open_namespace(pid, "mnt"), status;
	char directory[PATH_MAX];

	live_no_longer_than_the_run(o);
	if (!getcwd(directory, sizeof directory))
		fail("getcwd");
	if (setns(pids, CLONE_NEWPID) < 0 || setns(mounts, CLONE_NEWNS) < 0 || chdir(directory) < 0)
		fail("setns");
	child = fork();
	if (child < 0)
		fail("fork");
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execvp(o->operands[1], o->operands + 1);
		fail(o->operands[1]);
	}
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			fail("waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* ---- the command line -------------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	int (*run)(const struct options *o);
	int operands; /* how many it needs at least */
} commands[] = {
	{"idle", idle, 0},
	{"starved", starved, 0},
	{"threads", threads, 0},
	{"zombie-leader", zombie_leader, 0},
	{"stuck-write", stuck_write, 0},
	{"stuck-read", stuck_read, 0},
	{"sharers", sharers, 0},
	{"zombie-led-sharer", zombie_led_sharer, 0},
	{"vfork-parent", vfork_parent, 0},
	{"dump-core", dump_core, 0},
	{"hold-mmap-lock", hold_mmap_lock, 0},
	{"pin-target", pin_target, 0},
	{"init-shares", init_shares, 0},
	{"hold-inode-lock", hold_inode_lock, 0},
	{"serve-fuse", serve_fuse, 0},
	{"freeze-ext4", freeze_ext4, 0},
	{"guard", guard, 0},
	{"trace-exit", trace_exit, 1},
	{"pin-remotely", pin_remotely, 3},
	{"swallow-core", swallow_core, 2},
	{"mrelease", mrelease, 1},
	{"enter", enter, 2},
};

static struct options parse(int count, char **words)
{
	enum { SIZE = 256, MEMORY, PATH, IMAGE, CGROUP, POLICY, MOUNTS_OF, PARENT, CPU, COUNT, BOUND, USER, LOOPS_POLICY, LOOPS_BOUND };
	static const struct option names[] = {
		{"size", required_argument, NULL, SIZE},       {"memory", required_argument, NULL, MEMORY},
		{"path", required_argument, NULL, PATH},       {"image", required_argument, NULL, IMAGE},
		{"cgroup", required_argument, NULL, CGROUP},   {"policy", required_argument, NULL, POLICY},
		{"mounts-of", required_argument, NULL, MOUNTS_OF}, {"parent", required_argument, NULL, PARENT},
		{"cpu", required_argument, NULL, CPU},         {"count", required_argument, NULL, COUNT},
		{"bound", required_argument, NULL, BOUND},     {"user", required_argument, NULL, USER},
		{"loops-policy", required_argument, NULL, LOOPS_POLICY},
		{"loops-bound", required_argument, NULL, LOOPS_BOUND}, {NULL, 0, NULL, 0},
	};
	/* The bound stays under a minute, and under the kernel's hung-task warning of two. */
	struct options o = {.memory = "anon", .policy = "other", .loops_policy = "other", .loops_bound_s = 1, .cpu = -1, .user = -1, .count = 1, .bound_s = 55};
	int option;

	while ((option = getopt_long(count, words, "+", names, NULL)) != -1) {
		switch (option) {
		case SIZE: o.size_bytes = strtoull(optarg, NULL, 10); break;
		case MEMORY: o.memory = optarg; break;
		case PATH: o.path = optarg; break;
		case IMAGE: o.image = optarg; break;
		case CGROUP: o.cgroup = optarg; break;
		case POLICY: o.policy = optarg; break;
		case MOUNTS_OF: o.mounts_of = (pid_t)atoi(optarg); break;
		case PARENT: o.parent = (pid_t)atoi(optarg); break;
		case CPU: o.cpu = atoi(optarg); break;
		case COUNT: o.count = atoi(optarg); break;
		case BOUND: o.bound_s = (unsigned)atoi(optarg); break;
		case LOOPS_POLICY: o.loops_policy = optarg; break;
		case LOOPS_BOUND: o.loops_bound_s = (unsigned)atoi(optarg); break;
		case USER: o.user = atoi(optarg); break;
		default: _exit(2);
		}
	}
	o.operands = words + optind;
	return o;
}

int main(int count, char **words)
{
	const char *name = count > 1 ? words[1] : "";
	struct options o;

	if (count < 2) {
		fprintf(stderr, "usage: victims COMMAND [--option value]... [operand]...\n");
		return 2;
	}
	o = parse(count - 1, words + 1);
	for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
		if (strcmp(commands[i].name, name))
			continue;
		for (int needed = 0; needed < commands[i].operands; needed++) {
			if (!o.operands[needed]) {
				fprintf(stderr, "victims: %s wants %d operands\n", name, commands[i].operands);
				return 2;
			}
		}
		return commands[i].run(&o);
	}
	fprintf(stderr, "victims: no command %s\n", name);
	return 2;
}
