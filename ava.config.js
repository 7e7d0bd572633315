export default {
	files: ['test/**/*.test.ts'],
	extensions: ['ts'],
	// Child processes: a test's namespaces and servers must die with it, and parent-death signals are per thread.
	workerThreads: false,
	timeout: '2m',
};
