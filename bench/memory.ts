/**
 * Measures the resident memory of an idle daemon, built as for the image and connected to a real libvirtd: without a
 * cluster, and in one (an API server in memory). `node bench/memory.ts [NODE OPTIONS]`, by default with the options of
 * main.ts; takes about half a minute. docs/architecture.md has the budget. File-backed memory is mostly the program of
 * Node, which the daemons of a node share.
 */
import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {createInterface} from 'node:readline';
import {setTimeout as delay} from 'node:timers/promises';
import {peerPodConfigKind, peerPodKind, TestApiServer} from '../test/support/api-server.ts';
import {startTestLibvirtd} from '../test/support/libvirtd.ts';
import {build, nodeOptions, residentOf, type Resident} from './build.ts';

const runs = 3;
const budgetMib = 90e6 / 2 ** 20;
/** After this time, only timers run. */
const settleMs = 4000;

/** Like main.ts, but with the service account files of the test server. */
const edge = `
	import {homedir, hostname} from 'node:os';
	import {run} from './cli/run.js';
	const stopping = new AbortController();
	process.once('SIGTERM', () => stopping.abort(new Error('SIGTERM')));
	await run({
		env: process.env, flags: {}, operands: [], host: {hostname: hostname()}, version: 'bench', out: process.stdout, err: process.stderr, logTo: 2, onLogger() {},
		processContext: {home: homedir(), user: 'root', sshAgentSocket: undefined, serviceAccountDirectory: process.argv[2]},
	}, stopping.signal);
`;

async function measure(
	directory: string,
	nodeOptions: readonly string[],
	env: Readonly<Record<string, string>>,
	account: string,
): Promise<Resident> {
	const child = spawn(process.execPath, [...nodeOptions, join(directory, 'edge.js'), account], {
		env: {PATH: process.env['PATH'], HOME: '/nonexistent', ...env},
		stdio: ['ignore', 'inherit', 'pipe'],
	});
	const exited = once(child, 'exit');
	const ready = Promise.withResolvers<undefined>();
	createInterface({input: child.stderr}).on('line', line => {
		if (line.includes('"msg":"ready"')) {
			ready.resolve(undefined);
		} else if (line.includes('"level":"fatal"')) {
			console.error(line);
		}
	});
	await ready.promise;
	await delay(settleMs);
	const resident = await residentOf(child.pid ?? 0);
	child.kill('SIGTERM');
	await exited;
	return resident;
}

const directory = await mkdtemp('/tmp/caa-memory-');
const options = process.argv.length > 2 ? process.argv.slice(2) : await nodeOptions();
try {
	await build(directory);
	await writeFile(join(directory, 'dist/edge.js'), edge);
	await using libvirtd = await startTestLibvirtd();
	await using api = await TestApiServer.start();
	api.define(peerPodKind, peerPodConfigKind);
	api.put('nodes', {metadata: {name: 'bench'}});
	const daemon = {
		LIBVIRT_URI: `test+unix:///default?socket=${libvirtd.socketPath}`,
		NODE_NAME: 'bench',
		CLUSTER_ID: 'bench',
		HOST_INTERFACE: 'lo',
		PROBE_PORT: '18766',
		REMOTE_HYPERVISOR_ENDPOINT: join(directory, 'hypervisor.sock'),
		PODS_DIR: join(directory, 'pods'),
		LOG_LEVEL: 'info',
	};
	for (const [what, env] of [
		['outside of a cluster', daemon],
		['in a cluster', {...daemon, ...api.environment}],
	] as const) {
		const totals: number[] = [];
		for (let run = 0; run < runs; run++) {
			const {anonymousMib, fileMib} = await measure(join(directory, 'dist'), options, env, api.accountDirectory);
			totals.push(anonymousMib + fileMib);
			console.log(`  ${anonymousMib.toFixed(1)} MiB anonymous, ${fileMib.toFixed(1)} MiB of files`);
		}

		const mean = totals.reduce((sum, total) => sum + total) / runs;
		console.log(
			`${what}: ${mean.toFixed(1)} MiB resident (${((mean * 2 ** 20) / 1e6).toFixed(1)} MB), budget ${budgetMib.toFixed(1)} MiB (90 MB)`,
		);
	}
} finally {
	await rm(directory, {recursive: true, force: true});
}
