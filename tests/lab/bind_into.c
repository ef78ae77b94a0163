/*
 * bind_into PID SOURCE TARGET: bind-mounts SOURCE, read-only, at TARGET in the mount namespace of PID.
 *
 * mount(8) cannot do it: it looks the source up in the namespace that it mounts in, and there the machine's files are
 * gone. The new mount calls can: the copy of the tree is taken out here, and set in after the change of namespace.
 * Does nothing when TARGET already shows SOURCE.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

/* Makes TARGET, and the directories above it, as a place to mount a file or a directory on. */
static void make_target(char *target, int directory)
{
	for (char *slash = target + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		if (mkdir(target, 0755) && errno != EEXIST)
			err(1, "mkdir %s", target);
		*slash = '/';
	}
	if (directory) {
		if (mkdir(target, 0755) && errno != EEXIST)
			err(1, "mkdir %s", target);
	} else {
		int fd = open(target, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
		if (fd < 0)
			err(1, "create %s", target);
		close(fd);
	}
}

int main(int argc, char **argv)
{
	if (argc != 4 || argv[2][0] != '/' || argv[3][0] != '/')
		errx(2, "usage: bind_into PID /SOURCE /TARGET");

	char path[64];
	snprintf(path, sizeof(path), "/proc/%s/ns/mnt", argv[1]);
	int ns = open(path, O_RDONLY | O_CLOEXEC);
	if (ns < 0)
		err(1, "open %s", path);

	struct stat source, present;
	if (stat(argv[2], &source))
		err(1, "stat %s", argv[2]);
	int tree = syscall(SYS_open_tree, AT_FDCWD, argv[2], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
	if (tree < 0)
		err(1, "open_tree %s", argv[2]);
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };
	if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr)))
		err(1, "mount_setattr %s", argv[2]);

	if (setns(ns, CLONE_NEWNS))
		err(1, "setns");
	if (stat(argv[3], &present) == 0 && present.st_dev == source.st_dev && present.st_ino == source.st_ino)
		return 0;
	make_target(argv[3], S_ISDIR(source.st_mode));
	if (syscall(SYS_move_mount, tree, "", AT_FDCWD, argv[3], MOVE_MOUNT_F_EMPTY_PATH))
		err(1, "move_mount %s", argv[3]);
	return 0;
}
