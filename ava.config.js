// SUITE=unit runs the tests that start no other program than Node.js and small tools, SUITE=lab the others; without it
// all run.
import {testFiles} from './test/suites.js';

export default {
	files: testFiles(process.env.SUITE),
	extensions: ['ts'],
	// Child processes: a test's namespaces and servers must die with it, and parent-death signals are per thread.
	workerThreads: false,
	// Without any result. On a slow machine with nothing cached several files may wait as long for the guest image to
	// be built.
	timeout: '10m',
};
