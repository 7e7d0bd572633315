import test from 'ava';
import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {readdir, readFile, stat, writeFile} from 'node:fs/promises';
import {createServer} from 'node:net';
import {text} from 'node:stream/consumers';
import {fileURLToPath} from 'node:url';
import {pause} from '../../src/core/lifetime.ts';
import {startLab} from './lab.ts';
import {Service} from './service.ts';
import {podShapes, subnet} from './topology.ts';

const signal = AbortSignal.timeout(600_000);
const domain = (name: string): string =>
	`<domain type='qemu'><name>${name}</name><memory>65536</memory><os><type arch='s390x'>hvm</type></os></domain>`;

test('the worker reaches libvirt over ssh, with network and pool active and s390x to offer', async t => {
	await using lab = await startLab({signal});
	const [network, pool, capabilities] = await Promise.all([
		lab.workerVirsh('net-info', 'default'),
		lab.workerVirsh('pool-info', 'default'),
		lab.workerVirsh('capabilities'),
	]);
	t.regex(network, /Active:\s+yes/);
	t.regex(pool, /State:\s+running/);
	t.regex(capabilities, /<arch name='s390x'>/);
});

test("a worker that does not know the KVM host's key refuses to talk to it", async t => {
	await using lab = await startLab({signal});
	await writeFile(lab.outside('/run/lab/home/.ssh/known_hosts'), '');
	await t.throwsAsync(lab.workerVirsh('list'), {message: /Host key verification failed/});
});

test('the inventory lists domains, MACs, volumes, files, sockets and tunnels of one lab only', async t => {
	await using lab = await startLab({signal});
	await using other = await startLab({signal});
	await writeFile(lab.outside('/run/one.xml'), domain('one'));
	await lab.virsh('define /run/one.xml; attach-interface one network default --mac 52:54:00:00:00:07 --config');
	await lab.virsh('vol-create-as', 'default', 'one-root', '1M');
	const [stdout] = await finished(
		lab.workerRun(['sh', '-euc', 'mkdir -p /run/peerpod/pods; echo x >/run/peerpod/pods/record']),
	);
	t.is(stdout, '');
	const server = createServer().listen(lab.outside('/run/peerpod/hypervisor.sock'));
	t.teardown(() => server.close());
	await once(server, 'listening');
	await using _pod = await lab.podNamespace('pod');
	const [, status] = await finished(
		lab.workerRun([
			'sh',
			'-euc',
			`
		ip link add vxlan0 type vxlan id 1 dstport 4789
		ip link add vxlan1 netns pod type vxlan id 2 dstport 4789
		ip netns exec pod tc qdisc add dev eth0 ingress
		nft 'table ip caa_peerpods { set tunnels { typeof ip saddr . @th,96,24; elements = { 192.168.122.100 . 2 }; }; }'
	`,
		]),
	);
	t.is(status, 0);

	t.deepEqual(await lab.inventory(), {
		domains: ['one'],
		volumes: ['one-root'],
		macs: ['52:54:00:00:00:07'],
		files: ['/run/peerpod/pods/record'],
		sockets: ['/run/peerpod/hypervisor.sock'],
		tunnels: ['pod/vxlan1', 'worker/vxlan0'],
		redirections: ['pod/eth0'],
		bound: ['192.168.122.100'],
	});
	t.deepEqual(await other.inventory(), {
		domains: [],
		volumes: [],
		macs: [],
		files: [],
		sockets: [],
		tunnels: [],
		redirections: [],
		bound: [],
	});
});

for (const shape of podShapes) {
	test(`${shape}: a pod in a network namespace of its own reaches the worker and another pod`, async t => {
		await using lab = await startLab({signal});
		const [pod, other] = [await lab.podNamespace('one', {shape}), await lab.podNamespace('two', {shape})];
		const [stdout] = await finished(pod.run(['ip', '-br', '-4', 'address', 'show', 'eth0']));
		t.true(stdout.includes(`${pod.podIp}/`));
		for (const [where, address] of [
			[other, other.podIp],
			[undefined, subnet.worker],
		] as const) {
			const listen = ['nc', '-lvn', address, '7'];
			await using listener = new Service('nc', where?.run(listen) ?? lab.workerRun(listen));
			await listener.line(/^Listening/, signal);
			await finished(pod.run(['nc', '-zw60', address, '7']));
			t.regex(
				await listener.line(/^Connection received/, signal),
				new RegExp(`on ${pod.podIp} |from ${pod.podIp} `),
			);
		}
	});
}

test('signals reach a program in the lab, its exit status comes back, and SIGKILL leaves no orphan', async t => {
	await using lab = await startLab({signal});
	const script = 'trap "exit 3" TERM; echo $$ up >&2; while :; do sleep 0.01; done';
	const polite = new Service('polite', lab.workerRun(['sh', '-c', script]));
	await polite.line(/up/, signal);
	t.is(await polite.stop(), 3);

	const killed = new Service('killed', lab.workerRun(['sh', '-c', script]));
	const pid = Number.parseInt(await killed.line(/up/, signal), 10);
	killed.kill('SIGKILL');
	await killed.ended;
	await gone(lab.outside(`/proc/${pid}`));
	t.pass();
});

test('disposing twice succeeds, ends every process, and leaves the machine as it was', async t => {
	const before = await machine();
	const lab = await startLab({signal});
	const {pid} = lab;
	await lab.virsh('vol-create-as', 'default', 'left', '1M');
	t.deepEqual(await machine(), before, 'while it runs');
	await Promise.all([lab[Symbol.asyncDispose](), lab[Symbol.asyncDispose]()]);
	await lab[Symbol.asyncDispose]();
	await t.throwsAsync(stat(`/proc/${pid}`), {code: 'ENOENT'});
	t.deepEqual(await machine(), before);
});

test('an aborted start leaves nothing running', async t => {
	const controller = new AbortController();
	const starting = startLab({signal: controller.signal});
	controller.abort(new Error('no longer wanted'));
	await t.throwsAsync(starting, {message: 'no longer wanted'});
});

for (const [name, target] of [
	['SIGKILL', 1],
	['SIGINT', -1],
] as const) {
	test(`${name} of ${target === 1 ? 'the process' : 'the process group'} that made the lab ends all of it`, async t => {
		// In its own process group, like a command in a terminal.
		const holder = spawn(process.execPath, [fileURLToPath(new URL('fixtures/hold-lab.ts', import.meta.url))], {
			stdio: ['ignore', 'pipe', 'inherit'],
			detached: true,
		});
		t.teardown(() => holder.kill('SIGKILL'));
		const [line] = (await once(holder.stdout, 'data', {signal})) as [Buffer];
		const pids = line.toString().trim().split(' ');
		t.true(pids.length >= 10, `only ${pids.length} processes`);
		process.kill(target * (holder.pid ?? Number.NaN), name);
		await Promise.all(pids.map(async pid => gone(`/proc/${pid}`)));
		t.pass();
	});
}

/** State of the machine that a lab must not change, limited to what can be read quickly. */
async function machine(): Promise<unknown> {
	const listed = async (directory: string): Promise<unknown> => readdir(directory).catch(() => 'none');
	return {
		mounts: (await readFile('/proc/self/mountinfo', 'utf8'))
			.split('\n')
			.filter(line => / lab | \/usr\/bin\/qemu-system| \/etc\/passwd /.test(line)),
		bridge: await stat('/sys/class/net/virbr0').then(
			() => true,
			() => false,
		),
		passwd: (await stat('/etc/passwd')).mtimeMs,
		directories: await Promise.all(
			[
				'/etc/libvirt',
				'/etc/libvirt/qemu',
				'/var/lib/libvirt/images',
				'/var/log/libvirt/qemu',
				'/run/libvirt',
				'/root/.ssh',
			].map(listed),
		),
	};
}

/**
 * Waits until a directory of /proc is gone, or its process is a zombie: ended, but not yet reaped by PID 1 of the
 * machine.
 */
async function gone(directory: string): Promise<void> {
	const deadline = AbortSignal.timeout(60_000);
	while (!/^State:\tZ|^$/m.test(await readFile(`${directory}/status`, 'utf8').catch(() => ''))) {
		await pause(10, deadline);
	}
}

async function finished(child: ReturnType<typeof spawn>): Promise<readonly [stdout: string, status: number | null]> {
	if (child.stdout === null) {
		throw new TypeError('stdout is a pipe');
	}

	const ended = once(child, 'close');
	const stdout = await text(child.stdout);
	await ended;
	return [stdout, child.exitCode];
}
