import test from 'ava';
import {randomUUID} from 'node:crypto';
import {AdaptorError} from '../../src/core/errors.ts';
import {Secret} from '../../src/core/log.ts';
import {forwarderConfigPaths, guestFiles} from '../../src/sandbox/guest-files.ts';
import type {GuestFile, PodNetwork} from '../../src/sandbox/ports.ts';
import {AgentClient, runCommand, type OciProcess} from './agent-client.ts';
import {BareGuest, makeGuestIdentity, type GuestIdentity} from './bare-guest.ts';
import {buildGuestImage} from './image.ts';

// All tests share one guest, with their own containers, and run concurrently. The first build of the image takes a
// minute.
const signal = AbortSignal.timeout(600_000);
const instanceName = 'podvm-bare-0123abcd';

let guest: BareGuest;
let identity: GuestIdentity;
let image: string;

test.before('boot', async () => {
	identity = await makeGuestIdentity(instanceName);
	image = await buildGuestImage({}, signal);
	guest = await BareGuest.boot(image, instanceName, configuration(identity));
	await guest.line(/listening on port 15150/, signal);
});
test.after.always('power off', async () => guest[Symbol.asyncDispose]());

const network: PodNetwork = {
	netnsPath: '/run/netns/pod',
	podIp: '10.0.0.5/24',
	podHwAddr: '0a:58:0a:00:00:05',
	interface: 'eth0',
	workerNodeIp: '192.168.122.10/24',
	tunnelType: 'vxlan',
	routes: [
		{dst: '10.0.0.0/24', gw: '', dev: 'eth0', protocol: 'kernel', scope: 'link'},
		{dst: '', gw: '10.0.0.1', dev: 'eth0'},
	],
	neighbors: [],
	mtu: 1450,
	index: 0,
	vxlanPort: 4789,
	vxlanId: 555_001,
	dedicated: false,
	externalNetViaPodVm: false,
};

function configuration({server, client}: GuestIdentity): GuestFile[] {
	return guestFiles({
		pod: {name: 'web', namespace: 'default'},
		network,
		initdata: {content: 'H4sI', digest: 'sha256:00'},
		hasScratchSpace: true,
		tls: {
			serverKey: server.key,
			serverCert: server.cert,
			clientCa: client.cert,
			minVersion: 'VersionTLS12',
			cipherSuites: ['TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384'],
		},
	});
}

async function agent(): Promise<AgentClient> {
	return new AgentClient(await guest.connect(identity, signal));
}

async function container(client: AgentClient, process: OciProcess): Promise<string> {
	const id = randomUUID();
	await client.call('AgentService/CreateContainer', {container_id: id, OCI: {Process: process}}, signal);
	return id;
}

async function runningContainer(client: AgentClient): Promise<string> {
	const id = await container(client, {Args: ['sleep', '1000']});
	await client.call('AgentService/StartContainer', {container_id: id}, signal);
	return id;
}

test('the agent is healthy and says who it is', async t => {
	const client = await agent();
	t.like(await client.call('Health/Check', {}, signal), {status: 'SERVING'});
	t.like(await client.call('Health/Version', {}, signal), {grpc_version: '0.0.1', agent_version: '3.4.0-lab'});
	t.like(await client.call('AgentService/GetGuestDetails', {}, signal), {agent_details: {init_daemon: true}});
});

test("commands run in the guest: it is an s390x machine with the instance's name", async t => {
	const client = await agent();
	const id = await runningContainer(client);
	t.deepEqual(await runCommand(client, id, ['uname', '-m'], signal), {exitCode: 0, stdout: 's390x\n', stderr: ''});
	t.like(await runCommand(client, id, ['hostname'], signal), {stdout: `${instanceName}\n`});
	t.like(await runCommand(client, id, ['sh', '-c', 'echo to stderr >&2; exit 7'], signal), {
		exitCode: 7,
		stderr: 'to stderr\n',
	});
	t.like(await runCommand(client, id, ['sh', '-c', 'kill -9 $$'], signal), {exitCode: 137});
});

test('cloud-init files are written as they were sent, for root only', async t => {
	const client = await agent();
	const id = await runningContainer(client);
	for (const {path, content} of configuration(identity)) {
		t.like(await runCommand(client, id, ['cat', path], signal), {exitCode: 0, stdout: content.reveal()}, path);
	}

	t.like(await runCommand(client, id, ['stat', '-c', '%a', forwarderConfigPaths[0]], signal), {stdout: '600\n'});
});

test('output far larger than a pipe arrives whole, and standard input goes in', async t => {
	const client = await agent();
	const id = await container(client, {Args: ['sh', '-c', 'wc -c; seq 1 40000']});
	await client.call('AgentService/StartContainer', {container_id: id}, signal);
	await client.call('AgentService/WriteStdin', {container_id: id, data: Buffer.alloc(50_000, 'x')}, signal);
	await client.call('AgentService/CloseStdin', {container_id: id}, signal);
	const output = await client.readAll('Stdout', {container_id: id}, signal);
	t.is(output, `50000\n${Array.from({length: 40_000}, (_, index) => index + 1).join('\n')}\n`);
	t.like(await client.call('AgentService/WaitProcess', {container_id: id}, signal), {status: 0});
});

test('a terminal has the size that it was given', async t => {
	const client = await agent();
	const id = await container(client, {Args: ['sh', '-c', 'read line; stty size'], Terminal: true});
	await client.call('AgentService/TtyWinResize', {container_id: id, row: 33, column: 99}, signal);
	await client.call('AgentService/StartContainer', {container_id: id}, signal);
	await client.call('AgentService/WriteStdin', {container_id: id, data: Buffer.from('go\n')}, signal);
	t.is(await client.readAll('Stdout', {container_id: id}, signal), 'go\r\n33 99\r\n');
});

test('waiting calls do not hold up others on the same connection, and a signal ends them', async t => {
	const client = await agent();
	const id = await runningContainer(client);
	const waits = [
		client.call('AgentService/WaitProcess', {container_id: id}, signal),
		client.call('AgentService/WaitProcess', {container_id: id}, signal),
	];
	t.like(await client.call('Health/Check', {}, signal), {status: 'SERVING'});
	await client.call('AgentService/SignalProcess', {container_id: id, signal: 15}, signal);
	t.deepEqual(
		(await Promise.all(waits)).map(({status}) => status),
		[143, 143],
	);
});

test('errors have the same codes as in kata-agent', async t => {
	const client = await agent();
	const code = async (call: Promise<unknown>): Promise<unknown> => {
		const error = await t.throwsAsync(call, {instanceOf: AdaptorError});
		return error.code;
	};
	const id = await runningContainer(client);
	t.is(await code(client.call('AgentService/PauseContainer', {container_id: id}, signal)), 'unimplemented');
	t.is(await code(client.call('AgentService/WaitProcess', {container_id: 'nobody'}, signal)), 'internal');
	t.is(await code(client.call('AgentService/CloseStdin', {container_id: 'nobody'}, signal)), 'invalid-argument');
	t.is(
		await code(client.call('AgentService/TtyWinResize', {container_id: id, row: 1, column: 1}, signal)),
		'unavailable',
	);
	t.is(await code(client.call('AgentService/GetOOMEvent', {}, signal, 50)), 'deadline-exceeded');
	t.is(await code(runCommand(client, id, ['/bin/nothing'], signal)), 'internal');
	await client.call('AgentService/RemoveContainer', {container_id: id, timeout: 10}, signal);
	t.is(await code(runCommand(client, id, ['true'], signal)), 'internal');
});

test('a client whose certificate is not the one that was announced is not served', async t => {
	const stranger = await makeGuestIdentity(instanceName);
	const client = guest.connect({...identity, client: stranger.client}, signal);
	// With TLS 1.3, the refusal arrives after the handshake is complete for the client.
	await t.throwsAsync(async () => new AgentClient(await client).call('Health/Check', {}, signal));
	await guest.line(/TLS handshake with .*: tls: failed to verify|TLS handshake with .*certificate/, signal);
});

const bad: ReadonlyArray<readonly [title: string, files: readonly GuestFile[], complaint: RegExp]> = [
	[
		'a path that images do not accept',
		[{path: '/etc/shadow', content: new Secret('x')}],
		/failed: user-data: path "\/etc\/shadow" is not allowed/,
	],
	[
		'a route to a gateway that nothing leads to',
		guestFiles({
			pod: {name: 'web', namespace: 'default'},
			network: {...network, routes: [{dst: '', gw: '10.0.0.1', dev: 'eth0'}]},
			tls: {},
		}),
		/failed: pod network: add the route 0\.0\.0\.0\/0 via 10\.0\.0\.1: network is unreachable/,
	],
	[
		'no forwarder configuration',
		[{path: '/run/peerpod/aa.toml', content: new Secret('x')}],
		/failed: neither .*apf\.json nor .*daemon\.json/,
	],
];
for (const [title, files, complaint] of bad) {
	test(`user-data with ${title} is told on the console, and the machine powers off`, async t => {
		await using broken = await BareGuest.boot(image, instanceName, files);
		await t.notThrowsAsync(broken.line(complaint, signal));
		t.is(await broken.ended(), 0);
	});
}
