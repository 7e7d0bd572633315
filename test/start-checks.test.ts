/** What the daemon says of its surroundings when it starts, and what CLOUD_CONFIG_VERIFY makes of it. */
import {once} from 'node:events';
import {stat} from 'node:fs/promises';
import {createServer} from 'node:net';
import {join} from 'node:path';
import {createInterface} from 'node:readline';
import test, {type ExecutionContext} from 'ava';
import {silentLogger} from '../src/core/log.ts';
import {checkAndLog} from '../src/start-checks.ts';
import {startNode, type TestNode} from './check/node.ts';
import {directoryOf} from './support/directory.ts';

interface Line {
	readonly level: string;
	readonly msg: string;
	readonly check?: string;
	readonly [field: string]: unknown;
}

interface Daemon {
	/** All so far, up to the first with this message. @throws when it ends without */
	until(message: string): Promise<readonly Line[]>;
	/** All that it says, once it has ended. */
	rest(): Promise<readonly Line[]>;
	/** Its exit code, once it has ended. */
	readonly ended: Promise<number | null>;
	terminate(): void;
}

function daemonOn(node: TestNode, env: Readonly<Record<string, string>>): Daemon {
	const child = node.start(['libvirt'], env);
	const closed = once(child, 'close') as Promise<[number | null]>;
	const lines: Line[] = [];
	const reading = createInterface({input: child.stderr})[Symbol.asyncIterator]() as AsyncIterableIterator<
		string,
		undefined
	>;
	return {
		ended: closed.then(([code]) => code),
		terminate: () => void child.kill('SIGTERM'),
		async until(message) {
			while (lines.at(-1)?.msg !== message) {
				const {value} = await reading.next();
				if (value === undefined) {
					throw new Error(`It ended without ${message}: ${JSON.stringify(lines)}`);
				}

				lines.push(JSON.parse(value) as Line);
			}

			return lines;
		},
		async rest() {
			for await (const line of reading) {
				lines.push(JSON.parse(line) as Line);
			}

			return lines;
		},
	};
}

async function endsWell(t: ExecutionContext, daemon: Daemon): Promise<void> {
	daemon.terminate();
	t.is(await daemon.ended, 0);
}

test('the daemon serves before the checks end; each problem is one line, and a summary follows', async t => {
	const daemon = daemonOn(await startNode(t), {});
	const lines = await daemon.until('checks passed');
	const order = lines.map(({msg}) => msg);
	t.true(order.indexOf('ready') < order.findIndex(msg => msg.startsWith('check')), order.join());
	const warnings = lines.filter(({msg}) => msg === 'check has a warning');
	t.deepEqual(
		warnings.map(({check}) => check),
		['libvirt', 'guests', 'pool', 'network', 'network-protection'],
	);
	for (const warning of warnings) {
		t.like(warning, {level: 'warn'});
		t.regex(String(warning['reason']), /\w/);
		t.regex(String(warning['remedy']), /\.$/);
	}

	t.like(lines.at(-1), {level: 'info', count: 20});
	await endsWell(t, daemon);
});

test('a failed check is logged as an error with its remedy, and does not stop the daemon', async t => {
	const daemon = daemonOn(await startNode(t), {LIBVIRT_POOL: 'none', LOG_LEVEL: 'debug'});
	const lines = await daemon.until('checks found failures');
	t.like(
		lines.find(({check}) => check === 'pool'),
		{level: 'error', msg: 'check failed'},
	);
	t.regex(String(lines.find(({check}) => check === 'pool')?.['remedy']), /pool-list/);
	t.like(
		lines.find(({check}) => check === 'disk'),
		{level: 'debug', msg: 'check skipped', reason: 'needs pool, which failed'},
	);
	t.false(lines.some(({msg}) => msg === 'checks passed'));
	await endsWell(t, daemon);
});

test('with CLOUD_CONFIG_VERIFY, a failed check ends the daemon with 1, the reason and a remedy', async t => {
	const node = await startNode(t);
	const daemon = daemonOn(node, {LIBVIRT_POOL: 'none', CLOUD_CONFIG_VERIFY: 'true'});
	const lines = await daemon.until('cannot run');
	t.is(await daemon.ended, 1);
	t.false(lines.some(({msg}) => msg === 'ready'));
	const {what, remedy} = lines.at(-1)?.['err'] as {what: string; remedy: string};
	t.regex(
		`${what}. ${remedy}`,
		/^This node cannot run peer pods: pool: Pool none \(LIBVIRT_POOL\) does not exist on the KVM host.*pool-list.*CLOUD_CONFIG_VERIFY/,
	);
	await t.throwsAsync(stat(join(node.directory, 'hypervisor.sock')), {code: 'ENOENT'});
});

test('with CLOUD_CONFIG_VERIFY, warnings do not prevent the start, and the checks run once', async t => {
	const daemon = daemonOn(await startNode(t), {CLOUD_CONFIG_VERIFY: 'true'});
	const order = (await daemon.until('ready')).map(({msg}) => msg);
	t.deepEqual(
		order.filter(msg => msg === 'checks passed'),
		['checks passed'],
	);
	await endsWell(t, daemon);
});

test('the connections of the checks are closed when the checks end or are aborted', async t => {
	let closed = 0;
	const checks = (run: () => Promise<never>): Parameters<typeof checkAndLog>[0] => ({
		list: [{name: 'a', subject: 'node', run}],
		[Symbol.dispose]() {
			closed++;
		},
	});
	const failing = checks(async () => Promise.reject(new Error('broken')));
	t.like(await checkAndLog(failing, silentLogger, new AbortController().signal), [{name: 'a', text: 'broken'}]);
	t.is(closed, 1);
	await t.throwsAsync(
		checkAndLog(
			checks(async () => new Promise(() => undefined)),
			silentLogger,
			AbortSignal.abort(new Error('enough')),
		),
		{message: 'enough'},
	);
	t.is(closed, 2);
});

test('SIGTERM ends the daemon at once during the checks, both before and after it serves', async t => {
	// A libvirt that takes the connection and says nothing.
	const path = join(await directoryOf(t), 'silent');
	const silent = createServer().listen(path);
	t.teardown(() => void silent.close());
	for (const verify of ['true', 'false']) {
		const asked = once(silent, 'connection');
		const daemon = daemonOn(await startNode(t), {
			LIBVIRT_URI: `test:///default?socket=${path}`,
			CLOUD_CONFIG_VERIFY: verify,
			LOG_LEVEL: 'debug',
		});
		await asked;
		await daemon.until('check skipped');
		daemon.terminate();
		t.is(await daemon.ended, 0);
		t.false(
			(await daemon.rest()).some(({check}) => check === 'libvirt'),
			'its time has not run out',
		);
	}
});
