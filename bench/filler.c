/*
 * filler PROCS USAGE CROSSING TARGET RATE RECORD: fills the memory cgroup that it enters, and says when it was where.
 *
 * PROCS is the group's cgroup.procs, USAGE its memory.usage_in_bytes. It takes memory page by page (no huge ones) until
 * the group's charge is TARGET bytes, at RATE bytes a second (0: as fast as it can), and then only looks at the clock.
 * RECORD is a file of two numbers that it maps: when the charge was first seen to be CROSSING bytes or more, and when
 * it looked at the clock last. Whoever kills it ends the second; both are CLOCK_MONOTONIC in ns. It ends by itself when
 * nobody has killed it in time, or when its parent ends.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	CHUNK = 16 * PAGE,            /* the charge is read once in so many bytes: the kernel counts in 64 pages itself */
	LONGEST_S = 8,                /* no kill is this late; a run that has none is a failed one */
};

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static long long read_number(int file)
{
	char text[32] = "";

	return pread(file, text, sizeof text - 1, 0) > 0 ? atoll(text) : 0;
}

int main(int count, char **words)
{
	long long crossing, target, rate, began_ns, usage = 0, taken = 0;
	volatile long long *record;
	int procs, usage_file, record_file;
	char *memory, digits[16];

	if (count != 7) {
		fprintf(stderr, "usage: filler PROCS USAGE CROSSING TARGET RATE RECORD\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	procs = open(words[1], O_WRONLY | O_CLOEXEC);
	usage_file = open(words[2], O_RDONLY | O_CLOEXEC);
	crossing = atoll(words[3]);
	target = atoll(words[4]);
	rate = atoll(words[5]);
	record_file = open(words[6], O_RDWR | O_CLOEXEC);
	record = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, record_file, 0);
	memory = mmap(NULL, target, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (procs < 0 || usage_file < 0 || record == MAP_FAILED || memory == MAP_FAILED) {
		perror("filler");
		return 1;
	}
	madvise(memory, target, MADV_NOHUGEPAGE);
	if (write(procs, digits, snprintf(digits, sizeof digits, "%d", getpid())) < 0) {
		perror("filler: cgroup.procs");
		return 1;
	}

	began_ns = now_ns();
	for (;;) {
		long long seen_ns = now_ns();

		if (seen_ns - began_ns > LONGEST_S * 1000000000LL)
			return 3;
		record[1] = seen_ns;
		if (usage >= target - CHUNK || taken + CHUNK > target)
			continue;
		if (rate && taken > (seen_ns - began_ns) / 1e9 * rate)
			continue;
		for (int offset = 0; offset < CHUNK; offset += PAGE)
			memory[taken + offset] = 1;
		taken += CHUNK;
		usage = read_number(usage_file);
		if (!record[0] && usage >= crossing)
			record[0] = now_ns();
	}
}
