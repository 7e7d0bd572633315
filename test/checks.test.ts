/**
 * The list as the command and the daemon run it, over real ssh to a real libvirtd (its test driver), and what becomes
 * of it when those are not as they should be.
 */
import {execFile} from 'node:child_process';
import {once} from 'node:events';
import {appendFile, writeFile} from 'node:fs/promises';
import {createServer, type AddressInfo, type Socket} from 'node:net';
import {promisify} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import {runChecks, type CheckResult} from '../src/check/run-checks.ts';
import {composeChecks} from '../src/checks.ts';
import {loadConfig, type Config} from '../src/config/config.ts';
import {parseLibvirtUri} from '../src/libvirt/uri.ts';
import {silentLogger} from '../src/core/log.ts';
import {noObserver} from '../src/core/observer.ts';
import {createNetworkProbe} from '../src/network/probe.ts';
import type {PodsDir} from '../src/podvm/metadata.ts';
import {openLibvirtProvider} from '../src/podvm/provider.ts';
import {checkAndLog} from '../src/start-checks.ts';
import {directoryOf} from './support/directory.ts';
import {startTestLibvirtd, type TestLibvirtd} from './support/libvirtd.ts';
import {startSshd, type Sshd} from './support/sshd.ts';

const never = new AbortController().signal;
const stack = new AsyncDisposableStack();
let sshd: Sshd;
let other: Sshd;

test.before(async () => {
	[sshd, other] = await Promise.all([startSshd({hostKeys: ['ed25519']}), startSshd({hostKeys: ['ed25519']})]);
	stack.use(sshd);
	stack.use(other);
	await writeFile(`${sshd.directory}/known_hosts`, await sshd.knownHostsLine('ed25519'));
});
test.after.always(async () => stack.disposeAsync());

async function libvirtdOf(t: ExecutionContext): Promise<TestLibvirtd> {
	const libvirtd = await startTestLibvirtd();
	t.teardown(async () => libvirtd[Symbol.asyncDispose]());
	return libvirtd;
}

interface Way {
	readonly port?: number;
	readonly key?: string;
	readonly knownHosts?: string;
	readonly socket: string;
	readonly host?: string;
	/** Of libvirt's test driver. */
	readonly path?: string;
}

function uriOf({
	port = sshd.port,
	key = sshd.userKey,
	knownHosts = `${sshd.directory}/known_hosts`,
	socket,
	host = '127.0.0.1',
	path = '/default',
}: Way): string {
	return `test+ssh://root@${host}:${port}${path}?socket=${socket}&keyfile=${key}&known_hosts=${knownHosts}`;
}

const context = {
	home: '/nonexistent',
	user: 'root',
	sshAgentSocket: undefined,
	observer: noObserver,
	log: silentLogger,
};
/** A busy machine takes longer than an operator would wait. */
const patience = {connectTimeoutMs: 60_000, callTimeoutMs: 60_000};

async function configOf(t: ExecutionContext, uri: string, env: Readonly<Record<string, string>> = {}): Promise<Config> {
	const directory = await directoryOf(t);
	return loadConfig(
		{
			CLUSTER_ID: 'test',
			NODE_NAME: 'worker-0',
			LIBVIRT_URI: uri,
			LIBVIRT_POOL: 'default-pool',
			LIBVIRT_MEMORY: '1',
			REMOTE_HYPERVISOR_ENDPOINT: `${directory}/h.sock`,
			PODS_DIR: `${directory}/pods`,
			...env,
		},
		{hostname: 'h'},
	);
}

/** All findings by name; `prepare` comes when libvirt is connected, so that what it changes there lasts. */
async function found(
	t: ExecutionContext,
	uri: string,
	env: Readonly<Record<string, string>> = {},
	prepare?: () => Promise<void>,
	sshTimeoutMs = patience.callTimeoutMs,
	podsDir?: PodsDir,
): Promise<Readonly<Record<string, CheckResult>>> {
	const config = await configOf(t, uri, env);
	await using provider = openLibvirtProvider(config, {...context, timings: patience});
	await using network = createNetworkProbe(config);
	if (prepare !== undefined) {
		await provider.connect(never);
		await prepare();
	}

	using checks = composeChecks({
		config,
		host: provider.openProbe(),
		network,
		...(podsDir === undefined ? {} : {podsDir}),
	});
	const results: CheckResult[] = [];
	const list = checks.list.map(check => ({
		...check,
		timeoutMs: check.name === 'ssh' ? sshTimeoutMs : patience.callTimeoutMs,
	}));
	for await (const result of runChecks(list, {totalTimeoutMs: 100_000}, never)) {
		results.push(result);
	}

	return Object.fromEntries(results.map(result => [result.name, result]));
}

/** All that needs the host is skipped, and says why. */
function onlySshFailed(t: ExecutionContext, results: Readonly<Record<string, CheckResult>>): void {
	const ofHost = Object.values(results).filter(({subject, name}) => subject === 'host' && name !== 'ssh');
	t.is(ofHost.length, 11);
	t.true(ofHost.every(({status, text}) => status === 'skipped' && text === 'needs ssh, which failed'));
	t.is(results['route']?.status, 'skipped');
	t.is(results['pods-directory']?.status, 'ok');
}

test('a correct host, over ssh', async t => {
	const {socketPath: socket} = await libvirtdOf(t);
	const results = await found(t, uriOf({socket}));
	t.like(results['ssh'], {status: 'ok'});
	t.regex(results['ssh']?.text ?? '', /host key verified/);
	t.like(results['clock'], {status: 'ok'});
	t.like(results['libvirt'], {status: 'warning'});
	t.regex(results['libvirt']?.text ?? '', /socket .*libvirt-sock/);
	t.like(results['guests'], {status: 'failure'});
	t.like(results['base-volume'], {status: 'failure'});
	t.regex(results['base-volume']?.text ?? '', /^Error in creating volume: Can't retrieve volume podvm-base\.qcow2/);
});

test('a host with another key than the one that is known', async t => {
	const knownHosts = `${other.directory}/known_hosts`;
	await appendFile(
		knownHosts,
		(await other.knownHostsLine('ed25519')).replace(String(other.port), String(sshd.port)),
	);
	const results = await found(t, uriOf({knownHosts, socket: '/none'}));
	t.regex(results['ssh']?.text ?? '', /has changed/);
	t.regex(results['ssh']?.remedy ?? '', /ssh-keygen/);
	onlySshFailed(t, results);
});

test('a host that does not take the key', async t => {
	const results = await found(t, uriOf({key: other.userKey, socket: '/none'}));
	t.regex(results['ssh']?.text ?? '', /refused the ssh login of user root/);
	t.regex(results['ssh']?.remedy ?? '', /authorized_keys/);
	onlySshFailed(t, results);
});

test('a host that accepts the connection and sends nothing fails at the time limit', async t => {
	const connections = new Set<Socket>();
	const silent = createServer(socket => connections.add(socket)).listen(0, '127.0.0.1');
	t.teardown(() => {
		silent.close();
		connections.forEach(socket => socket.destroy());
	});
	await once(silent, 'listening');
	// Long enough to connect.
	const results = await found(
		t,
		uriOf({port: (silent.address() as AddressInfo).port, socket: '/none'}),
		{},
		undefined,
		6000,
	);
	t.is(results['ssh']?.text, 'Timed out after 6000 ms waiting for ssh');
	t.regex(results['ssh']?.remedy ?? '', /firewalls/);
	onlySshFailed(t, results);
	t.is(connections.size, 1);
});

test('a host without libvirt', async t => {
	const results = await found(t, uriOf({socket: '/run/libvirt/none'}));
	t.is(results['ssh']?.status, 'ok');
	t.is(results['libvirt']?.status, 'failure');
	t.regex(results['libvirt']?.remedy ?? '', /libvirtd/);
	t.is(results['pool']?.text, 'needs libvirt, which failed');
});

test('a pool and a network that are not active', async t => {
	const {socketPath: socket} = await libvirtdOf(t);
	const results = await found(t, uriOf({socket}), {}, async () => {
		await promisify(execFile)('virsh', [
			'-c',
			`test+unix:///default?socket=${socket}`,
			'pool-destroy default-pool; net-destroy default',
		]);
	});
	t.like(results['pool'], {status: 'failure'});
	t.regex(results['pool']?.text ?? '', /it is not active/);
	t.like(results['network'], {status: 'failure'});
	t.regex(results['network']?.remedy ?? '', /virsh net-start default/);
	t.is(results['disk']?.text, 'needs pool, which failed');
	t.is(results['route']?.text, 'needs network, which failed');
});

test('if libvirt does not manage addresses, a host name in the URI requires an existing HOST_INTERFACE', async t => {
	const {socketPath: socket, directory} = await libvirtdOf(t);
	const path = `${directory}/bridge.xml`;
	await writeFile(
		path,
		'<node><network><name>default</name><forward mode="bridge"/><bridge name="br0"/></network></node>',
	);
	const knownHosts = `${directory}/known_hosts`;
	await writeFile(knownHosts, (await sshd.knownHostsLine('ed25519')).replace('127.0.0.1', 'localhost'));
	const route = async (env: Readonly<Record<string, string>>): Promise<CheckResult | undefined> =>
		(await found(t, uriOf({socket, path, knownHosts, host: 'localhost'}), env))['route'];
	const without = await route({});
	t.is(without?.status, 'failure');
	t.regex(without?.remedy ?? '', /HOST_INTERFACE/);
	t.regex((await route({HOST_INTERFACE: 'none0'}))?.text ?? '', /The interface in HOST_INTERFACE does not exist/);
});

test('VMs of another PODS_DIR are recognised when the identity of this PODS_DIR is known', async t => {
	const {socketPath: socket} = await libvirtdOf(t);
	t.like((await found(t, uriOf({socket})))['pod-vms'], {status: 'skipped'});
	t.like(
		(await found(t, uriOf({socket}), {}, undefined, undefined, {fingerprint: 'aa', path: '/run/peerpod/pods'}))[
			'pod-vms'
		],
		{status: 'ok', text: '0 pod VMs of this node'},
	);
});

test('memory and space are checked for the VMs that this node may still start', async t => {
	const {socketPath: socket} = await libvirtdOf(t);
	const disk = async (env: Readonly<Record<string, string>>): Promise<string | undefined> =>
		(await found(t, uriOf({socket}), env))['disk']?.status;
	// The test driver's pool has 100 GiB.
	t.is(await disk({LIBVIRT_ROOT_DISK_SIZE: '100'}), 'ok');
	t.is(await disk({LIBVIRT_ROOT_DISK_SIZE: '100', PEERPODS_LIMIT_PER_NODE: '2'}), 'warning');
	t.is(await disk({LIBVIRT_ROOT_DISK_SIZE: '100', PEERPODS_LIMIT_PER_NODE: '0'}), 'ok');
});

test('every check has a default remedy, and disposing closes the ssh connection of the checks', async t => {
	t.timeout(60_000, 'a connection is still served');
	await using own = await startSshd({hostKeys: ['ed25519']});
	const knownHosts = `${own.directory}/known_hosts`;
	await writeFile(knownHosts, await own.knownHostsLine('ed25519'));
	const {socketPath: socket} = await libvirtdOf(t);
	const config = await configOf(t, uriOf({port: own.port, key: own.userKey, knownHosts, socket}));
	await using provider = openLibvirtProvider(config, context);
	const local = {...config, libvirtUri: parseLibvirtUri(`test:///default?socket=${socket}`)};
	await using localProvider = openLibvirtProvider(local, context);
	const {login, [Symbol.dispose]: dispose} = provider.openProbe();
	const host = {...localProvider.openProbe(), ...(login === undefined ? {} : {login}), [Symbol.dispose]: dispose};
	await using network = createNetworkProbe(config);
	const checks = composeChecks({config, host, network});
	t.true(
		checks.list.every(({remedy}) => remedy?.endsWith('.')),
		'whatever fails says what to do',
	);
	const failures = await checkAndLog(checks, silentLogger, never);
	t.false(failures.some(({name}) => name === 'ssh' || name === 'clock'));
	await own.idle();
});
