/*
 * Lets CRIU read the resource limits of other users' processes on a machine without CAP_SYS_RESOURCE.
 *
 * prlimit64(2) wants that capability for a process of another uid, and CRIU cannot dump one without it. Everything
 * that such a call would have told stands in /proc/PID/limits, which root may read. CRIU makes the call through
 * syscall(3), so that is what this library stands in for: only a reading prlimit64 that was refused is answered from
 * the file, everything else is passed on untouched. Setting limits stays refused.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>

/* The kernel's names (fs/proc/base.c, lnames), by the number of the limit. */
static const char *const limit_names[RLIM_NLIMITS] = {
	[RLIMIT_CPU] = "Max cpu time",
	[RLIMIT_FSIZE] = "Max file size",
	[RLIMIT_DATA] = "Max data size",
	[RLIMIT_STACK] = "Max stack size",
	[RLIMIT_CORE] = "Max core file size",
	[RLIMIT_RSS] = "Max resident set",
	[RLIMIT_NPROC] = "Max processes",
	[RLIMIT_NOFILE] = "Max open files",
	[RLIMIT_MEMLOCK] = "Max locked memory",
	[RLIMIT_AS] = "Max address space",
	[RLIMIT_LOCKS] = "Max file locks",
	[RLIMIT_SIGPENDING] = "Max pending signals",
	[RLIMIT_MSGQUEUE] = "Max msgqueue size",
	[RLIMIT_NICE] = "Max nice priority",
	[RLIMIT_RTPRIO] = "Max realtime priority",
	[RLIMIT_RTTIME] = "Max realtime timeout",
};

/* Width of the name column in /proc/PID/limits ("%-25s "). */
enum { NAME_COLUMN = 26 };

static rlim64_t parse(const char *word)
{
	return strcmp(word, "unlimited") == 0 ? RLIM64_INFINITY : strtoull(word, NULL, 10);
}

/* 0 when the limit was found. */
static int read_limit(long pid, const char *name, struct rlimit64 *limit)
{
	char path[64], line[256], soft[32], hard[32];
	int found = -1;

	snprintf(path, sizeof(path), "/proc/%ld/limits", pid);
	FILE *file = fopen(path, "re");
	if (!file)
		return -1;
	while (found && fgets(line, sizeof(line), file)) {
		size_t length = strlen(name);
		/* The blank behind the name keeps "Max file size" from matching a longer one. */
		if (strncmp(line, name, length) != 0 || line[length] != ' ' || strlen(line) <= NAME_COLUMN)
			continue;
		if (sscanf(line + NAME_COLUMN, "%31s %31s", soft, hard) == 2) {
			limit->rlim_cur = parse(soft);
			limit->rlim_max = parse(hard);
			found = 0;
		}
	}
	fclose(file);
	return found;
}

long syscall(long number, ...)
{
	static long (*next)(long, ...);
	long a[6];
	va_list list;

	va_start(list, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);

	if (!next)
		next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	long result = next(number, a[0], a[1], a[2], a[3], a[4], a[5]);

	/* prlimit64(pid, resource, new, old) */
	if (result == -1 && errno == EPERM && number == SYS_prlimit64 && !a[2] && a[3] && a[1] >= 0 &&
	    a[1] < RLIM_NLIMITS && limit_names[a[1]]) {
		if (read_limit(a[0], limit_names[a[1]], (struct rlimit64 *)a[3]) == 0)
			return 0;
		errno = EPERM;
	}
	return result;
}
