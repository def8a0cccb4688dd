/*
 * sleepers COUNT: so many processes that hold a little memory and do nothing, for scans to go through.
 *
 * They are our own children, known by our own fork. Each dies with its parent; the parent kills and waits for them all
 * when its stdin ends, or when somebody tells it to end. It says "ready" when all of them sleep.
 *
 * A census that finds everybody of one size would be none: number n touches n modulo 16 pages.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	MOST = 20000, /* below pid_max as kernels set it: nobody else is to lack a pid */
	SIZES = 16,
	PAGE = 4096,
};

static pid_t children[MOST];

static void sleep_on(int number, char *pages, pid_t parent, int ready)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0);
	for (int page = 0; page < number % SIZES; page++)
		pages[page * PAGE] = 1;
	if (write(ready, "", 1) != 1)
		_exit(1);
	close(ready);
	for (;;)
		pause();
}

int main(int count, char **words)
{
	int wanted = count == 2 ? atoi(words[1]) : 0, made = 0, ready[2], status = 0;
	pid_t parent = getpid();
	char *pages, answer;

	if (wanted < 1 || wanted > MOST || pipe(ready) != 0) {
		fprintf(stderr, "usage: sleepers COUNT, at most %d\n", MOST);
		return 2;
	}
	pages = mmap(NULL, SIZES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED)
		return 1;
	for (; made < wanted; made++) {
		children[made] = fork();
		if (children[made] == 0)
			sleep_on(made, pages, parent, ready[1]);
		if (children[made] < 0 || read(ready[0], &answer, 1) != 1) {
			perror("sleepers: fork");
			status = 1;
			break;
		}
	}
	if (!status) {
		puts("ready");
		fflush(stdout);
		while (read(0, &answer, 1) > 0)
			;
	}
	/* None of them has been waited for: their numbers are still theirs. */
	for (int each = 0; each < made; each++)
		kill(children[each], SIGKILL);
	for (int each = 0; each < made; each++)
		waitpid(children[each], NULL, 0);
	return status;
}
