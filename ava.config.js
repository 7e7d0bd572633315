export default {
	files: ['test/**/*.test.ts'],
	extensions: ['ts'],
	// Child processes: a test's namespaces and servers must die with it, and parent-death signals are per thread.
	workerThreads: false,
	// Without any result. On a slow machine with nothing cached several files may wait as long for the guest image to
	// be built.
	timeout: '10m',
};
