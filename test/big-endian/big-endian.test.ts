/**
 * Production is big-endian, developers' machines are not: here the code of the image runs on s390x, instruction by
 * instruction under qemu-user. It must make the same bytes there, and the daemon itself must work.
 */
import {spawn} from 'node:child_process';
import {mkdtemp, readdir, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {fileURLToPath} from 'node:url';
import test from 'ava';
import {AgentClient} from '../lab/agent-client.ts';
import {run} from '../lab/command.ts';
import {Service} from '../lab/service.ts';
import {newSandboxId, podAnnotations, Shim} from '../lab/shim.ts';
import {NetworkTestbed} from '../network/testbed.ts';
import {grpcCall} from '../support/grpc-call.ts';
import {startTestLibvirtd} from '../support/libvirtd.ts';
import {startSshd} from '../support/sshd.ts';
import {loadContract} from '../../src/api/contract.ts';
import {connect} from '../../src/ttrpc/client.ts';
import {emit} from './emit.ts';
import {addressOfFirstVm, baseVolume, pool, startTestDriverHost} from '../support/test-driver-host.ts';
import {s390xNode} from './toolchain.ts';
import {digestOf, vectors} from './vectors.ts';

const cacheDir = fileURLToPath(new URL('../../.cache/big-endian', import.meta.url));
const {signal} = new AbortController();
const stack = new AsyncDisposableStack();
/** Short: sockets are in it. */
let directory: string;
/** Runs one of the emitted programs, whose path and arguments follow. */
let s390x: (program: string) => readonly string[];

interface Printed {
	readonly endianness: string;
	readonly arch: string;
	readonly digests: Readonly<Record<string, string>>;
}

let printed: Promise<Printed>;

test.before('prepares Node.js and the code for s390x', async t => {
	t.timeout(600_000);
	directory = await mkdtemp('/tmp/caat-');
	stack.defer(async () => rm(directory, {recursive: true, force: true}));
	const build = await mkdtemp(join(tmpdir(), 'caat-big-endian-'));
	stack.defer(async () => rm(build, {recursive: true, force: true}));
	const [node] = await Promise.all([s390xNode(cacheDir, signal), emit(build)]);
	s390x = program => [...node, '--import', join(build, 'test/big-endian/polyfill.js'), join(build, program)];
	printed = onS390x('test/big-endian/print-digests.js').then(output => JSON.parse(output) as Printed);
	printed.catch(() => undefined); // the tests wait for it
});

test.after.always(async () => stack.disposeAsync());

async function onS390x(program: string, ...args: readonly string[]): Promise<string> {
	const [command = '', ...rest] = s390x(program);
	return (await run(command, [...rest, ...args], {}, signal)).toString();
}

test('the machine is big-endian', async t => {
	t.like(await printed, {endianness: 'BE', arch: 's390x'});
});

for (const [name, cases] of Object.entries(vectors)) {
	test(`${name} are byte for byte the same as on this machine`, async t => {
		t.is((await printed).digests[name], digestOf(cases()));
	});
}

test('libvirt is reached over ssh, with every kind of cipher that a host may insist on', async t => {
	t.timeout(600_000);
	await using libvirtd = await startTestLibvirtd();
	await using hosts = new AsyncDisposableStack();
	const uris = await Promise.all(
		['aes128-gcm@openssh.com', 'chacha20-poly1305@openssh.com', 'aes256-ctr'].map(async cipher => {
			const sshd = hosts.use(
				await startSshd({config: [`Ciphers ${cipher}`, 'LoginGraceTime 600'], hostKeys: ['ed25519']}),
			);
			const knownHosts = join(sshd.directory, 'known_hosts');
			await writeFile(knownHosts, await sshd.knownHostsLine('ed25519'));
			return `test+ssh://root@${sshd.host}:${sshd.port}/default?socket=${libvirtd.socketPath}&keyfile=${sshd.userKey}&known_hosts=${knownHosts}`;
		}),
	);
	t.deepEqual(
		JSON.parse(await onS390x('test/big-endian/list-domains.js', ...uris)),
		uris.map(() => ['test']),
	);
});

test('the daemon starts a VM, verifies it by TLS, attaches its network, and a stop leaves nothing', async t => {
	t.timeout(600_000);
	await using host = await startTestDriverHost(directory);
	await using testbed = await NetworkTestbed.create();
	await testbed.addVm(1);
	await testbed.sh(`ip addr flush dev enc1; ip addr add ${addressOfFirstVm}/24 dev enc1`, 'vm-1');
	const netnsPath = await testbed.addPod('bridge', 5);
	const before = {domains: await host.domains(), volumes: await host.volumes()};
	t.deepEqual(before, {domains: ['test'], volumes: [baseVolume]});

	const podsDir = join(directory, 'pods');
	const socketPath = join(directory, 'hypervisor.sock');
	await using daemon = program('the daemon', [...testbed.shell.slice(0, -1), ...s390x('src/main.js'), 'libvirt'], {
		LIBVIRT_URI: `test:///default?socket=${host.socketPath}`,
		LIBVIRT_POOL: pool,
		LIBVIRT_VOL_NAME: baseVolume,
		CLUSTER_ID: 'big-endian',
		NODE_NAME: 'worker-0',
		REMOTE_HYPERVISOR_ENDPOINT: socketPath,
		PODS_DIR: podsDir,
		LIBVIRT_CPU: '1',
		LIBVIRT_MEMORY: '256',
		LIBVIRT_ROOT_DISK_SIZE: '1',
		LOG_LEVEL: 'debug',
	});
	t.teardown(() => t.passed || t.log(daemon.tail.join('\n')));
	const began = performance.now();
	await daemon.line(/"msg":"ready"/, signal);
	t.log(`ready after ${((performance.now() - began) / 1000).toFixed(1)} s`);

	const shim = new Shim(socketPath);
	const id = newSandboxId();
	const agentSocket = await shim.createVm(
		{id, annotations: podAnnotations('pod', 'default'), networkNamespacePath: netnsPath},
		signal,
	);
	const starting = Promise.race([shim.startVm(id, signal), daemon.endedTooSoon()]);
	starting.catch(() => undefined); // awaited below
	const instanceName = `podvm-pod-${id.slice(0, 8)}`;
	const disk = join(directory, 'cidata.iso');
	await writeFile(disk, (await Promise.race([host.uploaded(`${instanceName}-cidata.iso`), starting])) ?? '');
	await using vm = program('the VM', [
		'nsenter',
		`--net=${testbed.netnsPath('vm-1')}`,
		'--',
		process.execPath,
		fileURLToPath(new URL('vm.ts', import.meta.url)),
		disk,
		addressOfFirstVm,
	]);
	const ready = await vm.line(/^ready /, signal);
	const network = JSON.parse(ready.slice('ready '.length)) as {
		readonly podip: string;
		readonly 'worker-node-ip': string;
		readonly 'vxlan-id': number;
	};
	t.like(network, {podip: '10.244.0.5/24', 'worker-node-ip': '192.168.122.10/24'});
	await starting;
	t.deepEqual(await host.domains(), [instanceName, 'test']);
	t.deepEqual(await host.volumes(), [baseVolume, `${instanceName}-cidata.iso`, `${instanceName}-root.qcow2`]);
	t.deepEqual(await testbed.tunnel(netnsPath, network['vxlan-id']), {remote: addressOfFirstVm});
	{
		await using client = await connect(agentSocket, signal);
		t.is(
			(await new AgentClient(client).call('Health/Check', {}, signal, 180_000)).status,
			'UNKNOWN',
			"the VM's answer, an empty message",
		);
	}

	t.deepEqual(
		await grpcCall(
			socketPath,
			loadContract().podVmInfo['GetInfo'],
			{PodName: 'pod', PodNamespace: 'default', Wait: false},
			180_000,
		),
		{VMID: instanceName},
	);

	await shim.stopVm(id, signal);
	t.deepEqual({domains: await host.domains(), volumes: await host.volumes()}, before);
	t.is(await testbed.tunnel(netnsPath, network['vxlan-id']), 'none');
	t.deepEqual(await readdir(podsDir), ['.daemon-1'], 'that it is at work');
	t.is(await daemon.stop(180_000), 0);
});

/** A program that says on standard error what it is doing, and dies with this process. */
function program(name: string, argv: readonly string[], env: Readonly<Record<string, string>> = {}): Service {
	const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', ...argv], {
		env: {PATH: process.env['PATH'], HOME: directory, ...env},
		stdio: ['ignore', 'ignore', 'pipe'],
		cwd: '/',
	});
	return new Service(name, child);
}
