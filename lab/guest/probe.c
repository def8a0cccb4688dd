/*
 * probe: what a guest that is short of memory feels like, told to the host in lines of JSON, a heartbeat each 20 ms.
 *
 * Two processes. The *user* is one as any other: it sleeps 10 ms, touches a page that it had given back and one that it
 * has not used for a while, and counts. What holds it up holds up whoever sits before the machine. The *teller* is
 * locked in memory, real-time and nobody's victim; each 20 ms it tells how far the user is, over a serial port, which
 * takes no memory to write to. The host reads the clock: the longest time in which the count, as it arrives there, does
 * not move is the longest stall.
 *
 * Every third heartbeat (each byte costs an emulated port a trap) also has what memory and pressure are then.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
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
	USER_TURN_NS = 10000000,
	TELLER_TURN_NS = 20000000,
	NS = 1000000000,
	OLD_BYTES = 2 << 20, /* 512 pages, each used again after 5 s: what a desktop has in the background */
	NUMBERS_EVERY = 3,
	PRIORITY = 20, /* above the agent's and every killer's; it runs for microseconds */
};

struct shared {
	volatile uint64_t touched;
};

static void fail(const char *what)
{
	fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * (int64_t)NS + now.tv_nsec;
}

/* The next turn; turns that were slept through are not made up for. */
static int64_t sleep_until_ns(int64_t due_ns, int64_t turn_ns)
{
	struct timespec due = {.tv_sec = due_ns / NS, .tv_nsec = due_ns % NS};
	int64_t woken_ns;

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == EINTR)
		;
	woken_ns = now_ns();
	return due_ns + turn_ns > woken_ns ? due_ns + turn_ns : woken_ns + turn_ns;
}

static char *map(size_t size_bytes, int flags)
{
	char *memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		fail("mmap");
	madvise(memory, size_bytes, MADV_NOHUGEPAGE);
	return memory;
}

static _Noreturn void be_a_user(struct shared *shared, pid_t teller)
{
	char *fresh = map(PAGE_BYTES, MAP_PRIVATE), *old = map(OLD_BYTES, MAP_PRIVATE);
	int64_t due_ns;

	prctl(PR_SET_NAME, "lab-user");
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != teller)
		_exit(1);
	memset(old, 1, OLD_BYTES);
	due_ns = now_ns();
	for (uint64_t turn = 0;; turn++) {
		due_ns = sleep_until_ns(due_ns, USER_TURN_NS);
		madvise(fresh, PAGE_BYTES, MADV_DONTNEED);
		*(volatile char *)fresh = 1;
		((volatile char *)old)[turn * PAGE_BYTES % OLD_BYTES]++;
		shared->touched++;
	}
}

/* ---- what is told ---------------------------------------------------------------------------------------------- */

static int open_kept(const char *path)
{
	return path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
}

/* The number after a word; -1 where there is none. */
static long long number_after(const char *text, const char *word)
{
	const char *at = strstr(text, word);

	return at ? atoll(at + strlen(word)) : -1;
}

static const char *read_kept(int fd)
{
	static char text[8192];
	ssize_t length = fd < 0 ? -1 : pread(fd, text, sizeof text - 1, 0);

	text[length < 0 ? 0 : length] = '\0';
	return text;
}

struct kept {
	int meminfo, pressure, group;
};

/* "total=" stands twice in a pressure file: the second is that of "full". */
static int tell_numbers(char *line, size_t room, const struct kept *kept)
{
	const char *text = read_kept(kept->meminfo), *full;
	long long available = number_after(text, "MemAvailable:"), free_swap = number_after(text, "SwapFree:");
	int length = snprintf(line, room, ",\"available_kib\":%lld,\"swap_free_kib\":%lld", available, free_swap);

	text = read_kept(kept->pressure);
	full = strstr(text, "full ");
	length += snprintf(line + length, room - (size_t)length, ",\"full_us\":%lld",
			   full ? number_after(full, "total=") : -1);
	if (kept->group >= 0)
		length += snprintf(line + length, room - (size_t)length, ",\"group_kib\":%lld",
				   atoll(read_kept(kept->group)) / 1024);
	return length;
}

static void become_untouchable(void)
{
	struct sched_param parameters = {.sched_priority = PRIORITY};
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "-1000", 5) < 0)
		fprintf(stderr, "probe: oom_score_adj: %s\n", strerror(errno));
	close(fd);
	if (sched_setscheduler(0, SCHED_FIFO, &parameters) < 0)
		fprintf(stderr, "probe: SCHED_FIFO: %s\n", strerror(errno));
	if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
		fprintf(stderr, "probe: mlockall: %s\n", strerror(errno));
}

/* Usage: probe PORT|- [memory.current of a group]. "-" tells it to stdout. */
int main(int count, char **words)
{
	struct shared *shared = (struct shared *)(void *)map(PAGE_BYTES, MAP_SHARED);
	struct kept kept = {
		.meminfo = open_kept("/proc/meminfo"),
		.pressure = open_kept("/proc/pressure/memory"),
		.group = open_kept(count > 2 ? words[2] : NULL),
	};
	pid_t teller = getpid(), user;
	int64_t due_ns;
	unsigned long long dropped = 0;
	int port;

	if (count < 2) {
		fprintf(stderr, "usage: probe PORT|- [FILE]\n");
		return 2;
	}
	port = strcmp(words[1], "-") ? open(words[1], O_WRONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) : STDOUT_FILENO;
	if (port < 0)
		fail(words[1]);
	prctl(PR_SET_NAME, "lab-probe");
	user = fork();
	if (user < 0)
		fail("fork");
	if (!user)
		be_a_user(shared, teller);
	become_untouchable();
	due_ns = now_ns();
	for (unsigned long long beat = 0;; beat++) {
		char line[512];
		int length = snprintf(line, sizeof line,
				      "{\"event\":\"beat\",\"n\":%llu,\"at_ns\":%lld,\"touched\":%llu", beat,
				      (long long)now_ns(), (unsigned long long)shared->touched);

		if (dropped)
			length += snprintf(line + length, sizeof line - (size_t)length, ",\"dropped\":%llu", dropped);
		if (beat % NUMBERS_EVERY == 0)
			length += tell_numbers(line + length, sizeof line - (size_t)length, &kept);
		if (waitpid(user, NULL, WNOHANG) == user)
			user = 0;
		length += snprintf(line + length, sizeof line - (size_t)length, "%s}\n",
				   user ? "" : ",\"user_ended\":true");
		/* A host that does not read costs heartbeats, and never holds the probe up. */
		if (write(port, line, (size_t)length) != length) {
			if (errno != EAGAIN)
				fail("write");
			dropped++;
		}
		due_ns = sleep_until_ns(due_ns, TELLER_TURN_NS);
	}
}
