/*
 * workload: what runs short of memory, and who stands by, in a guest of the lab.
 *
 * One program with sub-commands. Each says "ready" on stdout when it stands as it should, and then does what it is
 * named after until it is killed. The name that /proc shows (comm) is the actor's, from LAB_NAME, so that a kill can be
 * told by the tracer's line alone; `family` names its children itself.
 *
 * It takes memory without a bound, which is its purpose. So it refuses to run where it does not lie in its place in a
 * guest's image, unless LAB_BOUNDED=1 says that its control group bounds it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE_BYTES = 4096,
	STEP_BYTES = 256 << 10, /* a leak grows by this at a time: 64 faults, well under a millisecond */
	MIB = 1 << 20,
	NS = 1000000000,
};

static const char place[] = "/usr/lib/oomreaper-lab/bin/workload"; /* lab.seam.HOME */

struct options {
	size_t mib;           /* --mib: how much each process takes */
	size_t limit_mib;     /* --limit-mib: where growing stops; 0: nowhere */
	double until_percent; /* --until-percent: growing stops when no more than this is available; 0: it does not look */
	double mib_per_s;     /* --mib-per-s: how fast it grows; 0: as fast as it can */
	int count;            /* --count: how many children */
	int every_ms;         /* --every-ms: between two of them, or two strides */
	int turn_ms;          /* --turn-ms: all of the memory is touched again within this; 0: never */
	int adj;              /* --adj: oom_score_adj of the children */
	int ignores_term;     /* --ignores-term: handles SIGTERM, and stays */
	const char *path;     /* --path: the file to fill */
	unsigned bound_s;     /* --bound: the longest life */
};

static void fail(const char *what)
{
	fprintf(stderr, "workload: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static void say(const char *text)
{
	if (write(STDOUT_FILENO, text, strlen(text)) < 0)
		return; /* nobody listens any more: that changes nothing */
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * (int64_t)NS + now.tv_nsec;
}

static void sleep_until_ns(int64_t due_ns)
{
	struct timespec due = {.tv_sec = due_ns / NS, .tv_nsec = due_ns % NS};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == EINTR)
		;
}

static _Noreturn void stay(void)
{
	for (;;)
		pause();
}

static void note_and_stay(int number)
{
	(void)number; /* as a program that saves its work at SIGTERM, and never gets to the end of it */
}

static void take_name(const char *name)
{
	prctl(PR_SET_NAME, name);
}

static void set_adj(int adj)
{
	char text[16];
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	int length = snprintf(text, sizeof text, "%d", adj);

	if (fd < 0 || write(fd, text, (size_t)length) < 0)
		fail("oom_score_adj");
	close(fd);
}

static char *map(size_t size_bytes, int flags)
{
	char *memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		fail("mmap");
	/* The same on every kernel: memory that comes back by pages is compared by pages. */
	madvise(memory, size_bytes, MADV_NOHUGEPAGE);
	return memory;
}

/* Pages that neither zram nor a page-sharing kernel makes small: real programs' memory is not all one byte. */
static void touch(char *memory, size_t size_bytes)
{
	static uint64_t seed;

	if (!seed)
		seed = (uint64_t)getpid() * 0x9E3779B97F4A7C15u | 1;
	for (size_t at = 0; at < size_bytes; at += PAGE_BYTES) {
		uint64_t *words = (uint64_t *)(void *)(memory + at);

		/* Half of the page is noise, half stays zero: zram makes about two of one, as it does of desktops. */
		for (size_t i = 0; i < PAGE_BYTES / sizeof *words / 2; i++) {
			seed ^= seed << 13;
			seed ^= seed >> 7;
			seed ^= seed << 17;
			words[i] = seed;
		}
	}
}

/* Go over memory that is there already, a page at a time, so that all of it is in use within each turn. */
static _Noreturn void use(char *memory, size_t size_bytes, int turn_ms)
{
	size_t pages = size_bytes / PAGE_BYTES;
	int64_t start_ns = now_ns();

	if (!turn_ms || !pages)
		stay();
	for (uint64_t done = 0;; done++) {
		((volatile char *)memory)[done % pages * PAGE_BYTES]++;
		if (done % 64 == 63)
			sleep_until_ns(start_ns + (int64_t)(done * (uint64_t)turn_ms * 1000000u / pages));
	}
}

/* How much of memory is available, in per cent. */
static double available_percent(void)
{
	static int meminfo = -1;
	char text[1024];
	const char *available, *total;
	ssize_t length;

	if (meminfo < 0)
		meminfo = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
	length = pread(meminfo, text, sizeof text - 1, 0);
	if (length <= 0)
		fail("/proc/meminfo");
	text[length] = '\0';
	total = strstr(text, "MemTotal:");
	available = strstr(text, "MemAvailable:");
	if (!total || !available)
		fail("/proc/meminfo");
	return 100.0 * (double)atoll(available + strlen("MemAvailable:")) / (double)atoll(total + strlen("MemTotal:"));
}

/* ---- who stands by, and who grows ---------------------------------------------------------------------------- */

static void hold(const struct options *o)
{
	char *memory = map(o->mib * MIB + PAGE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS);

	touch(memory, o->mib * MIB);
	say("ready\n");
	use(memory, o->mib * MIB, o->turn_ms);
}

/* Each step is a mapping of its own, so that no single mapping has to be as large as what it never reaches. */
static void grow(const struct options *o, int flags)
{
	int64_t start_ns = now_ns();
	double taken_mib = 0;

	while ((!o->limit_mib || taken_mib < (double)o->limit_mib) &&
	       (o->until_percent <= 0 || available_percent() > o->until_percent)) {
		touch(map(STEP_BYTES, flags), STEP_BYTES);
		taken_mib += (double)STEP_BYTES / MIB;
		if (o->mib_per_s > 0)
			sleep_until_ns(start_ns + (int64_t)(taken_mib / o->mib_per_s * NS));
	}
}

static void leak(const struct options *o)
{
	say("ready\n");
	grow(o, MAP_PRIVATE | MAP_ANONYMOUS);
	say("full\n");
	stay();
}

/* The same of shared memory, which no reaper frees as long as somebody else has it. */
static void leak_shared(const struct options *o)
{
	say("ready\n");
	grow(o, MAP_SHARED | MAP_ANONYMOUS);
	say("full\n");
	stay();
}

/* All of it in one call: the kernel takes page after page, and only a fatal signal ends that. */
static void burst(const struct options *o)
{
	say("ready\n");
	if (mmap(NULL, o->mib * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_NORESERVE,
		 -1, 0) == MAP_FAILED)
		fail("mmap");
	say("full\n");
	stay();
}

/*
 * More than fits, all of it in use, in no order, 64 pages at a stride: every touch may have to wait for swap, and
 * nothing ever runs out.
 */
static void roam(const struct options *o)
{
	size_t pages = o->mib * MIB / PAGE_BYTES;
	char *memory = map(o->mib * MIB, MAP_PRIVATE | MAP_ANONYMOUS);
	uint64_t seed = 0x9E3779B97F4A7C15u;

	say("ready\n");
	touch(memory, o->mib * MIB);
	for (;;) {
		for (int i = 0; i < 64; i++) {
			seed ^= seed << 13;
			seed ^= seed >> 7;
			seed ^= seed << 17;
			((volatile char *)memory)[seed % pages * PAGE_BYTES]++;
		}
		if (o->every_ms)
			sleep_until_ns(now_ns() + o->every_ms * INT64_C(1000000));
	}
}

/* A file in a tmpfs that grows: memory that no process holds, and no kill gives back. */
static void fill(const struct options *o)
{
	static char step[STEP_BYTES];
	int fd = open(o->path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	int64_t start_ns = now_ns();
	double taken_mib = 0;

	if (fd < 0)
		fail(o->path);
	say("ready\n");
	while (!o->limit_mib || taken_mib < (double)o->limit_mib) {
		touch(step, sizeof step);
		if (write(fd, step, sizeof step) < 0) {
			if (errno == ENOSPC)
				break;
			fail(o->path);
		}
		taken_mib += (double)STEP_BYTES / MIB;
		if (o->mib_per_s > 0)
			sleep_until_ns(start_ns + (int64_t)(taken_mib / o->mib_per_s * NS));
	}
	say("full\n");
	stay();
}

/* ---- many ------------------------------------------------------------------------------------------------------ */

static _Noreturn void hold_in_child(const struct options *o)
{
	char *memory = map(o->mib * MIB + PAGE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS);

	touch(memory, o->mib * MIB);
	use(memory, o->mib * MIB, o->turn_ms);
}

/* Processes of one size, one after the other, none of them large. */
static void crowd(const struct options *o)
{
	int64_t due_ns = now_ns();

	signal(SIGCHLD, SIG_IGN);
	say("ready\n");
	for (int i = 0; i < o->count; i++) {
		pid_t child = fork();

		if (!child)
			hold_in_child(o);
		if (child < 0 && errno != EAGAIN && errno != ENOMEM)
			fail("fork");
		sleep_until_ns(due_ns += o->every_ms * INT64_C(1000000));
	}
	say("full\n");
	stay();
}

/*
 * A fork bomb: every process of it takes memory, then makes another whenever it can. --count bounds how many live at a
 * time, since what a machine without free pids does is no question of memory.
 */
static void bomb(const struct options *o)
{
	volatile int *alive = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int64_t due_ns;

	if (alive == MAP_FAILED)
		fail("mmap");
	signal(SIGCHLD, SIG_IGN);
	say("ready\n");
	for (;;) {
		touch(map(o->mib * MIB, MAP_PRIVATE | MAP_ANONYMOUS), o->mib * MIB);
		for (due_ns = now_ns();; sleep_until_ns(due_ns += o->every_ms * INT64_C(1000000))) {
			/* Counts those that were ever made: a killed one cannot say that it has gone. */
			if (__atomic_fetch_add(alive, 1, __ATOMIC_RELAXED) >= o->count)
				stay();
			if (!fork())
				break;
		}
	}
}

/*
 * As a browser: a parent, tabs that the browser itself offers to the killer (oom_score_adj), and one tab that leaks.
 * The parent and the tabs are small and innocent; what the tab named "leaktab" takes is the whole shortage.
 */
static void family(const struct options *o)
{
	char *memory = map(o->mib * MIB + PAGE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS);

	signal(SIGCHLD, SIG_IGN);
	touch(memory, o->mib * MIB);
	for (int i = 0; i <= o->count; i++) {
		pid_t child = fork();

		if (child < 0)
			fail("fork");
		if (child)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		set_adj(o->adj);
		if (i < o->count) {
			take_name("tab");
			hold_in_child(o);
		}
		take_name("leaktab");
		grow(o, MAP_PRIVATE | MAP_ANONYMOUS);
		stay();
	}
	say("ready\n");
	use(memory, o->mib * MIB, o->turn_ms);
}

/* Processes that come and go all the time, as under a shell script or a build: pids are used up and used again. */
static void churn(const struct options *o)
{
	int64_t due_ns = now_ns();

	signal(SIGCHLD, SIG_IGN);
	say("ready\n");
	for (;;) {
		if (!fork()) {
			touch(map(o->mib * MIB, MAP_PRIVATE | MAP_ANONYMOUS), o->mib * MIB);
			sleep_until_ns(now_ns() + o->turn_ms * INT64_C(1000000));
			_exit(0);
		}
		sleep_until_ns(due_ns += o->every_ms * INT64_C(1000000));
	}
}

/* ---- the command line ---------------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	void (*run)(const struct options *o);
} commands[] = {
	{"hold", hold},   {"leak", leak}, {"leak-shared", leak_shared}, {"burst", burst},   {"roam", roam},
	{"fill", fill},   {"crowd", crowd}, {"bomb", bomb},             {"family", family}, {"churn", churn},
};

static struct options parse(int count, char **words)
{
	enum { EACH_MIB = 256, LIMIT, RATE, COUNT, EVERY, TURN, ADJ, IGNORES_TERM, FILE_PATH, BOUND, UNTIL };
	static const struct option names[] = {
		{"mib", required_argument, NULL, EACH_MIB},    {"limit-mib", required_argument, NULL, LIMIT},
		{"mib-per-s", required_argument, NULL, RATE},  {"count", required_argument, NULL, COUNT},
		{"every-ms", required_argument, NULL, EVERY},  {"turn-ms", required_argument, NULL, TURN},
		{"adj", required_argument, NULL, ADJ},         {"ignores-term", no_argument, NULL, IGNORES_TERM},
		{"path", required_argument, NULL, FILE_PATH},  {"bound", required_argument, NULL, BOUND},
		{"until-percent", required_argument, NULL, UNTIL}, {NULL, 0, NULL, 0},
	};
	struct options o = {.mib = 1, .count = 1, .every_ms = 10, .path = "/dev/shm/filler", .bound_s = 600};
	int option;

	while ((option = getopt_long(count, words, "+", names, NULL)) != -1) {
		switch (option) {
		case EACH_MIB: o.mib = strtoull(optarg, NULL, 10); break;
		case LIMIT: o.limit_mib = strtoull(optarg, NULL, 10); break;
		case RATE: o.mib_per_s = strtod(optarg, NULL); break;
		case UNTIL: o.until_percent = strtod(optarg, NULL); break;
		case COUNT: o.count = atoi(optarg); break;
		case EVERY: o.every_ms = atoi(optarg); break;
		case TURN: o.turn_ms = atoi(optarg); break;
		case ADJ: o.adj = atoi(optarg); break;
		case IGNORES_TERM: o.ignores_term = 1; break;
		case FILE_PATH: o.path = optarg; break;
		case BOUND: o.bound_s = (unsigned)atoi(optarg); break;
		default: _exit(2);
		}
	}
	return o;
}

int main(int count, char **words)
{
	const char *command = count > 1 ? words[1] : "", *bounded = getenv("LAB_BOUNDED");
	struct options o;

	if (!(bounded && !strcmp(bounded, "1")) && access(place, F_OK) < 0) {
		fprintf(stderr, "workload: this is no guest of the lab, and it would run short of memory\n");
		return 3;
	}
	for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
		if (strcmp(commands[i].name, command))
			continue;
		o = parse(count - 1, words + 1);
		if (getenv("LAB_NAME"))
			take_name(getenv("LAB_NAME"));
		if (o.ignores_term)
			signal(SIGTERM, note_and_stay);
		alarm(o.bound_s);
		commands[i].run(&o);
	}
	fprintf(stderr, "usage: workload COMMAND [--option value]...\n");
	return 2;
}
