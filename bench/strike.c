/*
 * strike PID: what the bare system calls can do, for the bench to compare with.
 *
 * SCHED_FIFO 1 where permitted, as the reaper's workers; then pidfd_open, pidfd_send_signal(SIGKILL),
 * process_mrelease, and while the memory is there 100 ms later the last one again, ten times at most. No look before the
 * signal, no second opinion after it: this is the floor, not a tool to use.
 *
 * It prints one line of numbers. Times are CLOCK_MONOTONIC in ns: "signal" before the first call that acts, "released"
 * when the last process_mrelease came back, "verified" when what it left had been read.
 *
 *   realtime=1 signal_errno=0 mrelease_errno=0 attempts=1 signal_ns=… released_ns=… verified_ns=… left_kib=0
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_process_mrelease
#define SYS_process_mrelease 448
#endif

enum {
	ATTEMPTS = 10,         /* the founding commit's, and ours */
	PAUSE_NS = 100000000,  /* likewise: 100 ms */
	LEFT_KIB = 8192,       /* less than this is counted as nothing, as in reaper/verify.py */
};

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static long kib_after(const char *text, const char *name)
{
	const char *line = strstr(text, name);

	return line ? atol(line + strlen(name)) : 0;
}

/* Anonymous memory of the address space, resident or swapped out, by the first thread that still has one. */
static long read_kib(const char *pid)
{
	char path[300], status[4096];
	struct dirent *entry;
	long found_kib = 0;
	DIR *tasks;

	snprintf(path, sizeof path, "/proc/%s/task", pid);
	tasks = opendir(path);
	while (tasks && !found_kib && (entry = readdir(tasks))) {
		ssize_t length;
		int fd;

		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/proc/%s/task/%.20s/status", pid, entry->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		length = read(fd, status, sizeof status - 1);
		close(fd);
		if (length <= 0)
			continue;
		status[length] = 0;
		found_kib = kib_after(status, "\nRssAnon:") + kib_after(status, "\nVmSwap:");
	}
	if (tasks)
		closedir(tasks);
	return found_kib;
}

int main(int count, char **words)
{
	const struct timespec pause = {.tv_nsec = PAUSE_NS};
	struct sched_param lowest = {.sched_priority = 1};
	int pidfd, attempts = 0, signal_errno = 0, mrelease_errno = 0, is_realtime;
	long long signal_ns, released_ns, verified_ns;
	long left_kib;

	if (count != 2 || atoi(words[1]) <= 1) {
		fprintf(stderr, "usage: strike PID\n");
		return 2;
	}
	is_realtime = sched_setscheduler(0, SCHED_FIFO, &lowest) == 0;
	mlockall(MCL_CURRENT | MCL_FUTURE);
	read_kib("self"); /* touch what is needed later */
	pidfd = (int)syscall(SYS_pidfd_open, atoi(words[1]), 0);
	if (pidfd < 0) {
		perror("pidfd_open");
		return 1;
	}

	signal_ns = now_ns();
	if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) < 0)
		signal_errno = errno;
	do {
		if (attempts++)
			nanosleep(&pause, NULL);
		mrelease_errno = syscall(SYS_process_mrelease, pidfd, 0) < 0 ? errno : 0;
		released_ns = now_ns();
		left_kib = read_kib(words[1]);
		verified_ns = now_ns();
	} while (left_kib > LEFT_KIB && attempts < ATTEMPTS);

	printf("realtime=%d signal_errno=%d mrelease_errno=%d attempts=%d signal_ns=%lld released_ns=%lld verified_ns=%lld "
	       "left_kib=%ld\n",
	       is_realtime, signal_errno, mrelease_errno, attempts, signal_ns, released_ns, verified_ns, left_kib);
	return 0;
}
