/**
 * The command as a process, on a node of its own. What each check finds is the business of test/check, test/podvm and
 * test/network.
 */
import {readdir} from 'node:fs/promises';
import test from 'ava';
import type {CheckResult} from '../../src/check/run-checks.ts';
import {startNode} from '../check/node.ts';

interface Report {
	readonly node: string;
	readonly uri: string;
	readonly status: string;
	readonly checks: ReadonlyArray<Omit<CheckResult, 'remedy'> & {readonly remedy: string | null}>;
}

const names = [
	'ssh',
	'clock',
	'libvirt',
	'guests',
	'secure-execution',
	'memory',
	'pool',
	'base-volume',
	'disk',
	'network',
	'network-protection',
	'pod-vms',
	'programs',
	'route',
	'vxlan-port',
	'tunnel-guard',
	'socket-directory',
	'pods-directory',
	'relay-process',
	'tls-identity',
];
const statusOf = ({checks}: Report, name: string): string | undefined =>
	checks.find(each => each.name === name)?.status;

test('with warnings only, check exits with 0, prints all fields as JSON and leaves nothing', async t => {
	const node = await startNode(t);
	const before = await node.host.volumes();
	const {code, stdout, stderr} = await node.run(['check', '--json']);
	t.is(stderr, '');
	const report = JSON.parse(stdout) as Report;
	t.is(code, 0, stdout);
	t.deepEqual(Object.keys(report), ['node', 'uri', 'status', 'checks']);
	t.like(report, {node: 'worker-0', uri: `test:///default?socket=${node.host.socketPath}`, status: 'warning'});
	t.deepEqual(
		report.checks.map(({name}) => name),
		names,
	);
	for (const check of report.checks) {
		t.deepEqual(Object.keys(check), ['name', 'subject', 'status', 'text', 'remedy', 'durationMs']);
		t.true(['ok', 'warning', 'skipped'].includes(check.status));
		t.is(check.remedy !== null, check.status === 'warning', check.name);
		t.is(typeof check.durationMs, 'number');
	}

	t.deepEqual(
		names.filter(name => statusOf(report, name) === 'ok'),
		[
			'secure-execution',
			'memory',
			'base-volume',
			'disk',
			'pod-vms',
			'programs',
			'route',
			'vxlan-port',
			'tunnel-guard',
			'socket-directory',
			'pods-directory',
			'relay-process',
			'tls-identity',
		],
	);
	t.deepEqual(await node.host.volumes(), before);
	t.deepEqual(await readdir(node.directory), ['libvirt.sock']);
	t.is(await node.testbed.sh('nft list ruleset; ip -o link show type vxlan'), '');
});

test('with failures, check exits with 1, shows each remedy, and skips dependent checks', async t => {
	const node = await startNode(t);
	await node.testbed.sh(
		'ip addr flush dev virbr0; ip addr add 10.0.0.2/24 dev virbr0; ip route add default via 10.0.0.1; ip link add cni up type vxlan external dstport 4789',
	);
	const {code, stdout, stderr} = await node.run(['check', '-pool-name', 'none', '-network-name', 'default']);
	t.is(stderr, '');
	t.is(code, 1);
	t.regex(stdout, /^KVM host test:\/\/\/default\?socket=.*\n  skipped  ssh  /);
	t.regex(
		stdout,
		/\n  failure  pool +Pool none \(LIBVIRT_POOL\) does not exist on the KVM host\n +→ Set LIBVIRT_POOL to a pool that "virsh pool-list/,
	);
	t.regex(stdout, /\n  skipped  base-volume +needs pool, which failed\n  skipped  disk +needs pool, which failed\n/);
	t.regex(stdout, /\n\nWorker node worker-0\n  ok       programs /);
	t.regex(
		stdout,
		/\n  warning  route +192\.168\.122\.0\/24 through virbr0 and gateway 10\.0\.0\.1; the packets use the default route/,
	);
	t.regex(stdout, /\n  failure  vxlan-port +UDP 4789 is in use by the interface cni.*\n +→ Set VXLAN_PORT/);
	t.regex(stdout, /\n\n\d+ ok, \d+ warnings, 2 failures, 4 skipped\. This node cannot run peer pods\.\n$/);
	const {stdout: json} = await node.run(['check', '--json', '-pool-name', 'none']);
	t.is((JSON.parse(json) as Report).status, 'failure');
});

test('an unreachable KVM host is one failure, reported soon, and the checks of the node still run', async t => {
	const node = await startNode(t);
	await node.host.away();
	const {code, stdout} = await node.run(['check', '--json']);
	const report = JSON.parse(stdout) as Report;
	t.is(code, 1);
	t.deepEqual(
		report.checks.filter(({status}) => status === 'failure').map(({name}) => name),
		['libvirt'],
	);
	t.deepEqual(
		report.checks.filter(({text}) => text === 'needs libvirt, which failed').map(({name}) => name),
		[
			'guests',
			'secure-execution',
			'memory',
			'pool',
			'base-volume',
			'disk',
			'network',
			'network-protection',
			'pod-vms',
			'route',
		],
	);
	t.is(statusOf(report, 'vxlan-port'), 'ok');
});

test('a wrong configuration ends it with 2 before any check runs', async t => {
	const node = await startNode(t);
	const {code, stdout, stderr} = await node.run(['check'], {LIBVIRT_MEMORY: 'much'});
	t.is(code, 2);
	t.is(stdout, '');
	t.regex(stderr, /LIBVIRT_MEMORY is "much"/);
});
