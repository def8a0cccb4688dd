/*
 * lateness SECONDS: how late a program wakes that does nothing but sleep, with the priority of the watcher (SCHED_FIFO 1).
 *
 * It sleeps for 1 ms, again and again, and prints for each five sleeps in a row by how many microseconds the latest of
 * their wake-ups missed its time. It ends after so many seconds, or when its parent ends.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

enum {
	SLEEP_NS = 1000000,
	IN_A_ROW = 5,                 /* a kill in time has about so many wake-ups: the watcher's, the worker's */
	MOST = 100000,
};

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(int count, char **words)
{
	static int late_us[MOST];
	struct sched_param priority = {.sched_priority = 1};
	long long end_ns, due_ns;
	int rows = 0, row, turn;

	if (count != 2) {
		fprintf(stderr, "usage: lateness SECONDS\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	mlockall(MCL_CURRENT | MCL_FUTURE);
	sched_setscheduler(0, SCHED_FIFO, &priority);
	end_ns = now_ns() + (long long)(atof(words[1]) * 1e9);
	while (now_ns() < end_ns && rows < MOST) {
		long long latest_ns = 0;

		for (turn = 0; turn < IN_A_ROW; turn++) {
			struct timespec due;

			due_ns = now_ns() + SLEEP_NS;
			due.tv_sec = due_ns / 1000000000LL;
			due.tv_nsec = due_ns % 1000000000LL;
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
			if (now_ns() - due_ns > latest_ns)
				latest_ns = now_ns() - due_ns;
		}
		late_us[rows++] = latest_ns / 1000;
	}
	for (row = 0; row < rows; row++)
		printf("%d\n", late_us[row]);
	return 0;
}
