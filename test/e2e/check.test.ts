/**
 * `check` on the lab's worker node: a real KVM host over ssh, a real route, a real port. First where all is well, then
 * where as much as possible is not.
 */
import {once} from 'node:events';
import {text} from 'node:stream/consumers';
import {fileURLToPath} from 'node:url';
import test from 'ava';
import type {CheckResult} from '../../src/check/run-checks.ts';
import {buildGuestImage} from '../lab/image.ts';
import {startLab, type Lab} from '../lab/lab.ts';
import {names, paths, subnet} from '../lab/topology.ts';

const repository = fileURLToPath(new URL('../..', import.meta.url));
const {signal} = new AbortController();
const stack = new AsyncDisposableStack();
let lab: Lab;

test.before(async t => {
	t.timeout(600_000);
	lab = stack.use(await startLab({image: await buildGuestImage({}, signal), signal}));
});
test.after.always(async () => stack.disposeAsync());

interface Outcome {
	readonly code: number | null;
	readonly stdout: string;
	/** As `<status> <name>`. */
	readonly lines: readonly string[];
	of(name: string): CheckResult | undefined;
}

async function check(env: Readonly<Record<string, string>> = {}, uri = lab.sshUri): Promise<Outcome> {
	const child = lab.workerRun([process.execPath, 'src/main.ts', 'check', '--json', '-uri', uri], {
		cwd: repository,
		stdio: ['ignore', 'pipe', 'inherit'],
		env: {
			CLUSTER_ID: 'lab',
			NODE_NAME: 'worker-0',
			LIBVIRT_MEMORY: '256',
			LIBVIRT_ROOT_DISK_SIZE: '1',
			PEERPODS_LIMIT_PER_NODE: '2',
			...env,
		},
	});
	if (child.stdout === null) {
		throw new TypeError('stdout is a pipe');
	}

	const closed = once(child, 'close') as Promise<[number | null]>;
	const stdout = await text(child.stdout);
	const [code] = await closed;
	const {checks} = JSON.parse(stdout) as {readonly checks: readonly CheckResult[]};
	return {
		code,
		stdout,
		lines: checks.map(({status, name}) => `${status} ${name}`),
		of: name => checks.find(each => each.name === name),
	};
}

async function onWorker(script: string): Promise<void> {
	const [code] = (await once(lab.workerRun(['sh', '-euc', script]), 'close')) as [number | null];
	if (code !== 0) {
		throw new Error(`${script} ended with ${String(code)}`);
	}
}

test.serial('on a correct setup, every check is ok, except a warning for emulation', async t => {
	const before = await lab.inventory();
	const found = await check();
	// On a machine that is busy enough libvirt is slow, and rightly said to be.
	const isSlow = / \d{3,} ms per call/.test(found.of('libvirt')?.text ?? '');
	t.deepEqual(
		found.lines.filter(line => !line.startsWith('ok ')),
		[...(isSlow ? ['warning libvirt'] : []), 'warning guests'],
		found.stdout,
	);
	t.is(found.code, 0);
	t.regex(found.of('ssh')?.text ?? '', /^root@192\.168\.122\.1 port 22: login ok .*host key verified/);
	t.regex(found.of('base-volume')?.text ?? '', /^podvm-base\.qcow2, qcow2 of /);
	t.is(found.of('route')?.text, '192.168.122.0/24 through eth0, directly');
	t.deepEqual(await lab.inventory(), before);
});

test.serial('each problem is found: host key, route, port, space, format', async t => {
	await onWorker(`
		ip link add genev up type vxlan external dstport 4789
		ip addr add 10.0.0.2/24 dev eth0
		ip addr del ${subnet.worker}/${subnet.prefixLength} dev eth0
		ip addr add ${subnet.worker}/32 dev eth0
		ip route replace ${subnet.host}/32 dev eth0 src ${subnet.worker}
		ip route replace default via ${subnet.host} dev eth0 src ${subnet.worker}
		mkdir -p ${paths.peerpod}
		mount -t tmpfs -o ro tmpfs ${paths.peerpod}
	`);
	// Behind libvirt's back, which goes on saying qcow2.
	await once(lab.hostRun(['sh', '-c', `printf zIPL >${names.images}/${names.baseVolume}`]), 'close');
	await lab.virsh('pool-autostart', names.pool, '--disable');
	const found = await check(
		{LIBVIRT_MEMORY: '1000000', DISABLECVM: 'false'},
		`qemu+ssh://root@${subnet.host}/system?no_verify=1&keyfile=${paths.key}`,
	);
	t.deepEqual(
		found.lines.filter(line => !/^ok |^warning libvirt$/.test(line)),
		[
			'warning ssh',
			'warning guests',
			'failure secure-execution',
			'failure memory',
			'warning pool',
			'failure base-volume',
			'warning route',
			'failure vxlan-port',
			'failure socket-directory',
			'failure pods-directory',
		],
		found.stdout,
	);
	t.is(found.code, 1);
	t.regex(found.of('ssh')?.text ?? '', /not verified \(no_verify=1\)/);
	t.regex(found.of('base-volume')?.text ?? '', /its content is not qcow2/);
	t.regex(
		found.of('route')?.text ?? '',
		/192\.168\.122\.0\/24 through eth0 and gateway 192\.168\.122\.1; the packets use the default route/,
	);
	t.regex(found.of('vxlan-port')?.text ?? '', /by the interface genev/);
	t.regex(found.of('pods-directory')?.text ?? '', /read-only file system/);
});
