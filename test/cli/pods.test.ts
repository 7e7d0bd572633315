/** `pods`, its subcommands and `log-level` as processes, against a daemon on a node of its own. */
import {once} from 'node:events';
import {lstat} from 'node:fs/promises';
import {createInterface} from 'node:readline';
import type {Readable} from 'node:stream';
import test, {type ExecutionContext} from 'ava';
import type {ListPodsResponse} from '../../src/status/contract.ts';
import {startNode, type TestNode} from '../check/node.ts';
import {newSandboxId, podAnnotations, Shim} from '../lab/shim.ts';

const {signal} = new AbortController();

interface Daemon {
	readonly node: TestNode;
	readonly shim: Shim;
	readonly id: string;
	/** Of the daemon's log, resolves with the first that matches from now on. */
	readonly line: (pattern: RegExp) => Promise<string>;
	/** Settles when StartVM is answered. */
	readonly started: Promise<unknown>;
}

/** @returns resolves with the next line that matches, counted from its call */
function linesOf(output: Readable): (pattern: RegExp) => Promise<string> {
	const waiting = new Set<(text: string) => void>();
	createInterface({input: output}).on('line', text => {
		for (const look of waiting) {
			look(text);
		}
	});
	return async pattern => {
		const {promise, resolve} = Promise.withResolvers<string>();
		const look = (text: string): void => {
			if (pattern.test(text)) {
				waiting.delete(look);
				resolve(text);
			}
		};
		waiting.add(look);
		return promise;
	};
}

/** A daemon with one sandbox, whose VM runs and never answers. */
async function daemonWithPod(t: ExecutionContext): Promise<Daemon> {
	const node = await startNode(t);
	const child = node.start(['libvirt']);
	const line = linesOf(child.stderr);
	await line(/"msg":"ready"/v);
	const shim = new Shim(`${node.directory}/hypervisor.sock`);
	const id = newSandboxId();
	const networkNamespacePath = await node.testbed.addPod('bridge', 0);
	const domainStarted = line(/"msg":"domain started"/v);
	await shim.createVm({id, annotations: podAnnotations('web', 'shop'), networkNamespacePath}, signal);
	const started = shim.startVm(id, signal).catch((error: unknown) => error);
	await domainStarted;
	return {node, shim, id, line, started};
}

async function listed({node}: Daemon): Promise<ListPodsResponse> {
	const {code, stdout, stderr} = await node.run(['pods', '-json']);
	if (code !== 0) {
		throw new Error(stderr);
	}

	return JSON.parse(stdout) as ListPodsResponse;
}

test('pods shows a start that hangs: its stage, VM and size; rm ends it and leaves nothing', async t => {
	const daemon = await daemonWithPod(t);
	const {node, id} = daemon;
	const {pods, host_error: hostError} = await listed(daemon);
	t.is(hostError, '');
	t.is(pods.length, 1);
	const [pod] = pods;
	t.like(pod, {
		sandbox_id: id,
		namespace: 'shop',
		name: 'web',
		instance_name: `podvm-web-${id.slice(0, 8)}`,
		state: 'booting',
		stage: 'reach the agent',
		memory_mib: 1,
		image: 'podvm-base.qcow2',
		confidential: false,
	});
	t.true((pod?.state_since ?? 0) > 0 && (pod?.vm_created_at ?? 0) > 0 && (pod?.vni ?? 0) > 0);
	const table = await node.run(['pods']);
	t.regex(table.stdout, /^POD +STATE.*\nshop\/web +booting \(reach the agent\) +\d+s +podvm-web-[\da-f]{8} /v);

	const refused = await node.run(['pods', 'rm', 'web']);
	t.is(refused.code, 1);
	t.regex(refused.stderr, /This removes the sandbox .* of shop\/web.*-yes/v);
	const removed = await node.run(['pods', 'rm', 'shop/web', '-yes']);
	t.is(removed.code, 0, removed.stderr);
	t.regex(String(await daemon.started), /stopped while it was being started/v);
	t.deepEqual((await listed(daemon)).pods, []);
	t.deepEqual(await node.host.domains(), ['test']);
	t.is((await node.run(['pods'])).stdout, 'The node worker-0 has no pod VMs\n');
});

test('inspect shows record, domain, volumes, network and log; a wrong name says what to do', async t => {
	const {node, id} = await daemonWithPod(t);
	const {code, stdout, stderr} = await node.run(['pods', 'inspect', id.slice(0, 12)]);
	t.is(code, 0, stderr);
	for (const part of [
		/^== Pod\n/v,
		/\nstage: reach the agent\n/v,
		/\n== Record in PODS_DIR\n\{[^]*"state": "created"/v,
		/\n== Network as reserved\n\{[^]*"vxlanId"/v,
		/\n== In the network namespace: ip -d -s address\n[^]* vxlan id /v,
		/\n== Domain\n<domain /v,
		/\n== Volumes\npodvm-web-[\da-f]{8}-root\.qcow2: /v,
		/\n== Log\n[^]*"msg":"domain started"/v,
	]) {
		t.regex(stdout, part);
	}

	t.notRegex(stdout, /PRIVATE KEY/v);
	const unknown = await node.run(['pods', 'inspect', 'wbe']);
	t.is(unknown.code, 1);
	t.regex(unknown.stderr, /no pod VM "wbe".*"cloud-api-adaptor pods" lists/v);
});

test('the console of a host that has none is an error; no daemon is an error that says where to run it', async t => {
	const {node} = await daemonWithPod(t);
	const console = await node.run(['pods', 'console', 'web']);
	t.is(console.code, 1);
	t.regex(console.stderr, /console/iv);
	const elsewhere = await node.run(['pods'], {REMOTE_HYPERVISOR_ENDPOINT: `${node.directory}/other/hypervisor.sock`});
	t.is(elsewhere.code, 1);
	t.regex(elsewhere.stderr, /No daemon serves the status API.*osc-caa-ds/v);
});

test('watch prints the table again after a change, until it is interrupted', async t => {
	const daemon = await daemonWithPod(t);
	const watching = daemon.node.start(['pods', '-watch']);
	const rows = linesOf(watching.stdout);
	await rows(/shop\/web +booting/v);
	const gone = rows(/has no pod VMs/v);
	await daemon.shim.stopVm(daemon.id, signal);
	await gone;
	const ended = once(watching, 'close');
	watching.kill('SIGINT');
	t.deepEqual(await ended, [130, null]);
});

test('log-level changes the level of a running daemon; status.sock is for its owner only', async t => {
	const {node, shim, line} = await daemonWithPod(t);
	t.is((await node.run(['log-level'])).stdout, 'info\n');
	t.is((await node.run(['log-level', 'debug'])).stdout, 'debug\n');
	const call = line(/"level":"debug"/v);
	await shim.version(signal);
	await call;
	const refused = await node.run(['log-level', 'loud']);
	t.is(refused.code, 2);
	t.regex(refused.stderr, /no log level "loud".*info/v);
	t.is((await lstat(`${node.directory}/status.sock`)).mode & 0o777, 0o600);
});
