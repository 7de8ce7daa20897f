/*
 * A program that knows uacce and the queue manager by the kernel's headers alone, and of us nothing.
 *
 *   uacce zip COUNT      compresses standard input to zlib COUNT times, each the same; prints the
 *                        last body and trailer
 *   uacce hpre BITS      standard input: key by its primes, then a number; prints its power
 *   uacce rules          what the kernel refuses
 *
 * The status of an operation that failed is the exit code.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <misc/uacce/hisi_qm.h>
#include <misc/uacce/uacce.h>

#define CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "line %d: %s: %s\n", __LINE__, #what, strerror(errno)); \
			exit(99); \
		} \
	} while (0)

static char name[256];

struct queue {
	int fd;
	int version;
	uint16_t id;
	uint32_t sqe_size;
	uint16_t depth;
	size_t dus_size, mmio_size;
	uint8_t *dus;
	uint8_t *mmio;
	uint16_t sq_tail, cq_head;
	int phase;
};

static void attribute(const char *which, char *text, size_t room)
{
	char path[512];
	snprintf(path, sizeof path, "/sys/class/uacce/%s/%s", name, which);
	int fd = open(path, O_RDONLY);
	CHECK(fd >= 0);
	ssize_t len = read(fd, text, room - 1);
	CHECK(len > 0);
	text[len] = 0;
	close(fd);
}

static long number(const char *which)
{
	char text[64];
	attribute(which, text, sizeof text);
	return atol(text);
}

/* The first device that has the algorithm. */
static void find(const char *algorithm)
{
	DIR *class = opendir("/sys/class/uacce");
	struct dirent *entry;
	CHECK(class);
	while ((entry = readdir(class))) {
		char algorithms[512];
		if (entry->d_name[0] == '.')
			continue;
		snprintf(name, sizeof name, "%s", entry->d_name);
		attribute("algorithms", algorithms, sizeof algorithms);
		for (char *line = strtok(algorithms, "\n"); line; line = strtok(NULL, "\n"))
			if (!strcmp(line, algorithm)) {
				closedir(class);
				return;
			}
	}
	fprintf(stderr, "no device does %s\n", algorithm);
	exit(98);
}

static int open_node(void)
{
	char path[512];
	snprintf(path, sizeof path, "/dev/%s", name);
	CHECK(access(path, F_OK) == 0);
	return open(path, O_RDWR | O_CLOEXEC);
}

static void start(struct queue *queue, uint16_t kind)
{
	struct hisi_qp_ctx ctx = { .qc_type = kind };
	struct hisi_qp_info info = { 0 };
	char api[32];
	long page = sysconf(_SC_PAGESIZE);

	attribute("api", api, sizeof api);
	CHECK(sscanf(api, "hisi_qm_v%d", &queue->version) == 1);
	CHECK(number("flags") & 1);
	queue->fd = open_node();
	CHECK(queue->fd >= 0);
	queue->dus_size = number("region_dus_size");
	queue->mmio_size = number("region_mmio_size");
	queue->dus = mmap(NULL, queue->dus_size, PROT_READ | PROT_WRITE, MAP_SHARED, queue->fd,
			  UACCE_QFRT_DUS * page);
	CHECK(queue->dus != MAP_FAILED);
	queue->mmio = mmap(NULL, queue->mmio_size, PROT_READ | PROT_WRITE, MAP_SHARED, queue->fd,
			   UACCE_QFRT_MMIO * page);
	CHECK(queue->mmio != MAP_FAILED);
	CHECK(ioctl(queue->fd, UACCE_CMD_QM_SET_QP_CTX, &ctx) == 0);
	CHECK(ioctl(queue->fd, UACCE_CMD_QM_SET_QP_INFO, &info) == 0);
	CHECK(ioctl(queue->fd, UACCE_CMD_START_Q) == 0);
	queue->id = ctx.id;
	queue->sqe_size = info.sqe_size;
	queue->depth = info.sq_depth;
	queue->sq_tail = queue->cq_head = 0;
	queue->phase = 1;
}

static void ring(struct queue *queue, int kind, uint16_t index, int arm)
{
	uint64_t value = (uint64_t)index << 32 | (uint64_t)arm << 48;
	volatile uint64_t *doorbell;

	if (queue->version == 1) {
		value |= queue->id | (uint64_t)kind << 16;
		doorbell = (volatile uint64_t *)(queue->mmio + 0x340);
	} else {
		value |= (queue->id & 0x3ff) | (uint64_t)kind << 12;
		doorbell = (volatile uint64_t *)(queue->mmio + 0x1000);
	}
	__sync_synchronize();
	*doorbell = value;
}

static int done(struct queue *queue)
{
	volatile uint16_t *cqe = (volatile uint16_t *)(queue->dus + (size_t)queue->depth *
						       queue->sqe_size + queue->cq_head * 16u);
	return (cqe[7] & 1) == queue->phase;
}

/* Submits a descriptor and waits for it. */
static void work(struct queue *queue, uint32_t *sqe)
{
	uint8_t *place = queue->dus + (size_t)queue->sq_tail * queue->sqe_size;
	uint32_t *status = (uint32_t *)(queue->dus + queue->dus_size - 8);

	memcpy(place, sqe, queue->sqe_size);
	queue->sq_tail = (queue->sq_tail + 1) % queue->depth;
	ring(queue, 1, queue->cq_head, 1);
	ring(queue, 0, queue->sq_tail, 0);
	while (!done(queue)) {
		struct pollfd entry = { .fd = queue->fd, .events = POLLIN };
		int ready = poll(&entry, 1, 2000);
		if (status[0] || status[1] || ready == 0)
			exit(97);
		CHECK(ready == 1);
		CHECK(entry.revents & POLLIN);
	}
	__sync_synchronize();
	memcpy(sqe, place, queue->sqe_size);
	queue->cq_head = (queue->cq_head + 1) % queue->depth;
	if (queue->cq_head == 0)
		queue->phase = !queue->phase;
	ring(queue, 1, queue->cq_head, 0);
}

static void stop(struct queue *queue)
{
	CHECK(ioctl(queue->fd, UACCE_CMD_PUT_Q) == 0);
	CHECK(munmap(queue->dus, queue->dus_size) == 0);
	CHECK(munmap(queue->mmio, queue->mmio_size) == 0);
	CHECK(close(queue->fd) == 0);
}

static void put(uint32_t *sqe, int place, const void *address)
{
	sqe[place] = (uint32_t)(uintptr_t)address;
	sqe[place + 1] = (uintptr_t)address >> 32;
}

static size_t input(uint8_t *buffer, size_t room)
{
	size_t len = fread(buffer, 1, room, stdin);
	CHECK(!ferror(stdin));
	return len;
}

static int zip(int count)
{
	static uint8_t source[1 << 20], target[1 << 21];
	size_t len = input(source, sizeof source);
	struct queue queue;
	uint32_t sqe[32];

	find("zlib");
	start(&queue, 0);
	for (int round = 0; round < count; round++) {
		int type = queue.version >= 3 ? 3 : 0;
		memset(sqe, 0, sizeof sqe);
		memset(target, 0xaa, 64);
		sqe[4] = len;
		sqe[7] = 1u << 25 | 1u << 27 | (uint32_t)type << 28;
		sqe[9] = 2 | 4 << 12;
		sqe[type ? 26 : 13] = round;
		sqe[14] = sizeof target;
		put(sqe, 18, source);
		put(sqe, 20, target);
		work(&queue, sqe);
		CHECK(sqe[type ? 26 : 13] == (uint32_t)round);
		int status = sqe[3] & 0xff;
		if (status && status != 0x0d)
			return status;
		CHECK(sqe[0] == len);
	}
	stop(&queue);
	CHECK(fwrite(target, 1, sqe[1], stdout) == sqe[1]);
	return 0;
}

static int hpre(int bits)
{
	static uint8_t key[5 * 256], number[512], power[512];
	size_t k = bits / 8;
	struct queue queue;
	uint32_t sqe[16] = { 0 };

	CHECK(input(key, k / 2 * 5) == k / 2 * 5);
	CHECK(input(number, k) == k);
	find("rsa");
	start(&queue, 0);
	sqe[0] = 1 | 1u << 30;
	sqe[1] = k / 8 - 1;
	put(sqe, 2, key);
	put(sqe, 4, number);
	put(sqe, 6, power);
	sqe[8] = 7;
	work(&queue, sqe);
	CHECK(sqe[8] == 7);
	if (sqe[0] >> 30 != 3 || (sqe[0] & 0x3fffffe0))
		return 96;
	stop(&queue);
	CHECK(fwrite(power, 1, k, stdout) == k);
	return 0;
}

static sigjmp_buf jump;

static void on_segv(int signal)
{
	(void)signal;
	siglongjmp(jump, 1);
}

static int rules(void)
{
	struct queue queue, other;
	struct hisi_qp_ctx ctx = { .qc_type = 2 };
	struct pollfd entry = { .events = POLLIN };
	long page = sysconf(_SC_PAGESIZE);
	long before;
	int *volatile nothing = NULL;
	volatile int caught = 0;

	/* A handler of the program's own, and a mask that would be the end of the first doorbell. */
	sigset_t all;
	CHECK(signal(SIGSEGV, on_segv) == SIG_DFL);
	sigfillset(&all);
	CHECK(sigprocmask(SIG_SETMASK, &all, NULL) == 0);

	find("gzip");
	before = number("available_instances");
	start(&queue, 1);
	CHECK(number("available_instances") == before - 1);
	ring(&queue, 1, 0, 0);

	errno = 0;
	CHECK(ioctl(queue.fd, UACCE_CMD_START_Q) == -1 && errno == EINVAL);
	CHECK(ioctl(queue.fd, UACCE_CMD_QM_SET_QP_CTX, &ctx) == -1 && errno == EINVAL);
	CHECK(ioctl(queue.fd, _IO('W', 9)) == -1 && errno == EINVAL);
	CHECK(mmap(NULL, queue.dus_size, PROT_READ, MAP_SHARED, queue.fd, page) == MAP_FAILED &&
	      errno == EEXIST);
	CHECK(mmap(NULL, page, PROT_READ, MAP_SHARED, queue.fd, 2 * page) == MAP_FAILED &&
	      errno == EINVAL);
	other.fd = open_node();
	CHECK(other.fd >= 0);
	CHECK(mmap(NULL, queue.dus_size + page, PROT_READ, MAP_SHARED, other.fd, page) ==
	      MAP_FAILED && errno == EINVAL);
	CHECK(ioctl(other.fd, UACCE_CMD_PUT_Q) == -1);
	CHECK(close(other.fd) == 0);

	/* Nothing was asked for: nothing comes. */
	entry.fd = queue.fd;
	CHECK(poll(&entry, 1, 10) == 0 && entry.revents == 0);

	/* Nor can it be written. */
	entry.events = POLLIN | POLLOUT;
	CHECK(poll(&entry, 1, 10) == 0 && entry.revents == 0);
	CHECK(entry.events == (POLLIN | POLLOUT));

	/* A child has no queue: it may close what it has got, and faults at the doorbell. */
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		signal(SIGSEGV, SIG_DFL);
		close(queue.fd);
		ring(&queue, 0, 1, 0);
		_exit(0);
	}
	int status;
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	entry.events = POLLIN;
	CHECK(poll(&entry, 1, 10) == 0);

	/* Stopped, it can be started again, as by kernels from 6.1 on. */
	CHECK(ioctl(queue.fd, UACCE_CMD_PUT_Q) == 0);
	CHECK(ioctl(queue.fd, UACCE_CMD_START_Q) == 0);
	stop(&queue);
	CHECK(number("available_instances") == before);

	/* Faults that have nothing to do with doorbells are the program's. */
	if (sigsetjmp(jump, 1) == 0)
		*nothing = 1;
	else
		caught = 1;
	CHECK(caught);

	/* Every queue, and one more. */
	for (long n = 0; n < before; n++)
		CHECK(open_node() >= 0);
	CHECK(open_node() == -1 && errno == EBUSY);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "zip"))
		return zip(atoi(argv[2]));
	if (argc == 3 && !strcmp(argv[1], "hpre"))
		return hpre(atoi(argv[2]));
	if (argc == 2 && !strcmp(argv[1], "rules"))
		return rules();
	fprintf(stderr, "usage: uacce zip COUNT | hpre BITS | rules\n");
	return 2;
}
