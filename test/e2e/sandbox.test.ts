/**
 * The main job with nothing left out: the daemon on a worker node, libvirt over ssh, QEMU booting s390x, mutual TLS,
 * the guest's agent. One lab for all; each test begins and ends with an empty host.
 */
import {createHash} from 'node:crypto';
import {once} from 'node:events';
import {readFileSync} from 'node:fs';
import {copyFile, rm} from 'node:fs/promises';
import {connect as connectSocket} from 'node:net';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {pause} from '../../src/core/lifetime.ts';
import {loadContract, type CreateVMRequest} from '../../src/api/contract.ts';
import {connect} from '../../src/ttrpc/client.ts';
import {Frame, FrameDecoder, maxMessageLength} from '../../src/ttrpc/frame.ts';
import {decodeRequest, decodeResponse} from '../../src/ttrpc/message.ts';
import {statusCode, TtrpcError} from '../../src/ttrpc/status.ts';
import {tellAfterFailure} from '../lab/aftermath.ts';
import {AgentClient, runCommand, startSleeper} from '../lab/agent-client.ts';
import {hypervisorSocket, startDaemon} from '../lab/daemon.ts';
import {buildGuestImage} from '../lab/image.ts';
import {inventoryWhen, settledInventory, type Inventory} from '../lab/inventory.ts';
import {startLab, type Lab} from '../lab/lab.ts';
import type {Service} from '../lab/service.ts';
import {newSandboxId, podAnnotations, Shim} from '../lab/shim.ts';

const stack = new AsyncDisposableStack();
const {signal} = new AbortController();
let lab: Lab;
let daemon: Service;
let shim: Shim;
let empty: Inventory;

test.before(async t => {
	t.timeout(600_000);
	lab = stack.use(await startLab({image: await buildGuestImage({}, signal), signal}));
	await addImage(silent, 'nolisten');
	daemon = await startDaemon(lab, {}, signal);
	shim = new Shim(lab.outside(hypervisorSocket));
	empty = await lab.inventory();
});

test.after.always(async () => {
	await daemon.stop();
	await stack.disposeAsync();
});

test.afterEach.always('what the daemon and the guests said, when a test has failed', async t =>
	tellAfterFailure(t, daemon, lab),
);

/**
 * Of a VM that boots and is never reached: what shall happen during its start does, however long it takes to happen.
 */
const silent = 'silent.qcow2';
const ofImage = (volume: string): Readonly<Record<string, string>> => ({
	'io.katacontainers.config.hypervisor.image': volume,
});

async function addImage(volume: string, option: string): Promise<void> {
	await copyFile(
		await buildGuestImage({bootOptions: [`caa.lab=${option}`]}, signal),
		lab.outside(`/var/lib/libvirt/images/${volume}`),
	);
	await lab.virsh('pool-refresh', 'default');
}

interface Pod {
	readonly id: string;
	readonly agentSocket: string;
}

async function create(
	t: ExecutionContext,
	name: string,
	annotations: Readonly<Record<string, string>> = {},
): Promise<Pod> {
	const network = await lab.podNamespace(name);
	t.teardown(async () => network[Symbol.asyncDispose]());
	const id = newSandboxId();
	t.teardown(async () => shim.stopVm(id, signal));
	const agentSocket = await shim.createVm(
		{
			id,
			annotations: {...podAnnotations(name, 'e2e'), ...annotations},
			networkNamespacePath: network.netnsPath,
		},
		signal,
	);
	return {id, agentSocket: lab.outside(agentSocket)};
}

async function sh(pod: Pod, command: string): Promise<string> {
	await using client = await connect(pod.agentSocket, signal);
	const agent = new AgentClient(client);
	await startSleeper(agent, pod.id, 'c', signal);
	const {stdout} = await runCommand(agent, 'c', ['sh', '-c', command], signal);
	return stdout.trim();
}

async function hostSh(command: string): Promise<void> {
	const [code] = (await once(lab.hostRun(['sh', '-c', command]), 'close')) as [number | null];
	if (code !== 0) {
		throw new Error(`${command} exited with ${String(code)}`);
	}
}

/** The host is as it was before the first test; what is left too long is shown. */
async function nothingLeft(t: ExecutionContext): Promise<void> {
	t.deepEqual(await settledInventory(empty, lab, signal), empty);
}

async function until(what: string, holds: (now: Inventory) => boolean): Promise<Inventory> {
	return inventoryWhen(what, holds, lab, signal);
}

const booting = async (): Promise<Inventory> =>
	until(
		'a VM to be started',
		({volumes, domains}) => domains.length === 1 && volumes.length === empty.volumes.length + 2,
	);
const noVm = ({volumes, domains}: Inventory): boolean =>
	domains.length === 0 && volumes.length === empty.volumes.length;

test.serial('a shim gets a VM of its own, whose agent runs commands on s390x, and no trace is left of it', async t => {
	const pod = await create(t, 'hello');
	await shim.startVm(pod.id, signal);
	const {domains, sockets} = await lab.inventory();
	t.deepEqual(domains, [`podvm-hello-${pod.id.slice(0, 8)}`]);
	t.true(sockets.some(path => path.endsWith(`${pod.id}/agent.ttrpc`)));
	t.is(await sh(pod, 'uname -m; hostname'), `s390x\n${domains[0] ?? ''}`);
	await shim.stopVm(pod.id, signal);
	await nothingLeft(t);
});

const recorded = (name: string): Buffer => readFileSync(new URL(`../fixtures/kata-shim/${name}.bin`, import.meta.url));

function recordedFrames(name: string): Frame[] {
	return [...new FrameDecoder(maxMessageLength).push(recorded(name))].filter(frame => frame instanceof Frame);
}

/** Sends one recorded call on a connection of its own, as the Go shim does, and gives back the answer's frame. */
async function replayCall(name: string): Promise<Frame> {
	const socket = connectSocket(lab.outside(hypervisorSocket));
	socket.write(recorded(name));
	const decoder = new FrameDecoder(maxMessageLength);
	for await (const chunk of socket as AsyncIterable<Buffer>) {
		for (const frame of decoder.push(chunk)) {
			if (frame instanceof Frame) {
				return frame;
			}
		}
	}

	throw new Error(`${name} got no answer`);
}

test.serial('recorded requests of a real shim are answered by the daemon and by an agent in a real VM', async t => {
	const [createFrame] = recordedFrames('createvm.request');
	const request = loadContract().hypervisor['CreateVM']?.requestDeserialize(
		decodeRequest(createFrame?.message ?? Buffer.alloc(0)).payload,
	) as CreateVMRequest;
	await using _network = await lab.podNamespace(request.networkNamespacePath.replace(/^.*\//, ''));
	t.teardown(async () => shim.stopVm(request.id, signal));
	for (const name of ['createvm', 'startvm']) {
		t.deepEqual(decodeResponse((await replayCall(`${name}.request`)).message).status, undefined, name);
	}

	const agent = connectSocket(lab.outside(`/run/peerpod/pods/${request.id}/agent.ttrpc`));
	const decoder = new FrameDecoder(maxMessageLength);
	const answers = new Map<number, Frame>();
	agent.on('data', (chunk: Buffer) => {
		for (const frame of decoder.push(chunk)) {
			if (frame instanceof Frame) {
				answers.set(frame.streamId, frame);
			}
		}
	});
	/** Calls that last until something happens: a process ends, writes, or memory runs out. */
	const waiting = new Set(['WaitProcess', 'GetOOMEvent', 'ReadStdout', 'ReadStderr']);
	const answered = async (streamId: number): Promise<void> => {
		while (!answers.has(streamId)) {
			await once(agent, 'data', {signal: AbortSignal.timeout(120_000)});
		}
	};

	const codes: Record<string, number> = {};
	const answeredInOrder = recordedFrames('agent.server').map(({streamId}) => streamId);
	for (const frame of recordedFrames('agent.client')) {
		const {method} = decodeRequest(frame.message);
		if (!waiting.has(method)) {
			// The shim knew by then what had been answered before this call was: it did not kill a process whose
			// output it was waiting for.
			await Promise.all(answeredInOrder.slice(0, answeredInOrder.indexOf(frame.streamId)).map(answered));
		}

		agent.write(frame.bytes);
		if (!waiting.has(method)) {
			await answered(frame.streamId);
			codes[`${frame.streamId} ${method}`] =
				decodeResponse(answers.get(frame.streamId)?.message ?? Buffer.alloc(0)).status?.code ?? 0;
		}
	}

	t.deepEqual(
		Object.entries(codes).filter(([, code]) => code !== 0),
		[],
		'every call succeeds, as it did then',
	);
	// What waited has come to its end by now, all but the wait for the memory to run out.
	await Promise.all(recordedFrames('agent.server').map(async ({streamId}) => answered(streamId)));
	const output = recordedFrames('agent.client').find(
		frame => frame.message.includes('ReadStdout') && answers.get(frame.streamId)?.message.includes('s390x'),
	);
	t.truthy(output, 'the recorded `uname -m` was run on s390x');
	t.deepEqual(decodeResponse((await replayCall('stopvm.request')).message).status, undefined);
	await nothingLeft(t);
});

test.serial('two pods get VMs with different MACs and addresses; the next pod reuses the first MAC', async t => {
	const pods = await Promise.all([create(t, 'one'), create(t, 'two')]);
	await Promise.all(pods.map(async ({id}) => shim.startVm(id, signal)));
	const {macs} = await lab.inventory();
	t.is(new Set(macs).size, 2);
	const addresses = await Promise.all(
		pods.map(async pod => sh(pod, "ip -o -4 address show eth0 | awk '{print $4}'")),
	);
	t.is(new Set(addresses).size, 2, addresses.join(' '));
	await Promise.all(pods.map(async ({id}) => shim.stopVm(id, signal)));
	await nothingLeft(t);
	const third = await create(t, 'three');
	await shim.startVm(third.id, signal);
	t.deepEqual((await lab.inventory()).macs, macs.slice(0, 1));
	await shim.stopVm(third.id, signal);
	await nothingLeft(t);
});

test.serial('a stop during a start ends it at once and leaves nothing', async t => {
	const pod = await create(t, 'stopped', ofImage(silent));
	const start = t.throwsAsync<AdaptorError>(shim.startVm(pod.id, signal));
	await booting();
	await Promise.all([shim.stopVm(pod.id, signal), shim.stopVm(pod.id, signal)]);
	t.regex((await start).message, /stopped while it was being started/);
	await nothingLeft(t);
});

test.serial('a shim that hangs up during a start leaves nothing', async t => {
	const pod = await create(t, 'orphan', ofImage(silent));
	const caller = new AbortController();
	const start = t.throwsAsync(shim.startVm(pod.id, caller.signal));
	await booting();
	caller.abort(new Error('the shim was killed'));
	await start;
	await until('the VM to be gone', noVm);
	await shim.stopVm(pod.id, signal);
	await nothingLeft(t);
});

test.serial('a VM that ends while it boots fails its start at once, and the error tells how it ended', async t => {
	const pod = await create(t, 'killed', ofImage(silent));
	const name = ({id}: Pod): string => `podvm-killed-${id.slice(0, 8)}`;
	const start = t.throwsAsync<AdaptorError>(shim.startVm(pod.id, signal));
	await daemon.line(new RegExp(`domain started.*${name(pod)}|${name(pod)}.*domain started`), signal);
	await lab.virsh('destroy', name(pod));
	const {message} = await start;
	t.regex(message, /stage "reach the agent"/);
	t.regex(message, /destroyed|stopped|ended/i);
	await shim.stopVm(pod.id, signal);
	await nothingLeft(t);
});

test.serial(
	'when QEMU of a running VM is killed, a waiting call fails with the reason and stop leaves nothing',
	async t => {
		const pod = await create(t, 'crashed');
		await shim.startVm(pod.id, signal);
		await using client = await connect(pod.agentSocket, signal);
		const agent = new AgentClient(client);
		await startSleeper(agent, pod.id, 'c', signal);
		const ended = t.throwsAsync<TtrpcError>(agent.call('AgentService/WaitProcess', {container_id: 'c'}, signal), {
			instanceOf: TtrpcError,
		});
		// Its answer comes behind: the wait has begun.
		await agent.call('Health/Check', {}, signal, 60_000);
		const killedAt = performance.now();
		await hostSh(`kill -KILL "$(cat /run/libvirt/qemu/podvm-crashed-${pod.id.slice(0, 8)}.pid)"`);
		const {status} = await ended;
		t.log(`${Math.round(performance.now() - killedAt)} ms from the kill to the answer`);
		t.is(status.code, statusCode.unavailable);
		// At once is by libvirt's event, not by one of the looks that the daemon takes once a minute.
		t.regex(status.message, /pod VM ended: QEMU failed or was killed \([^)]*event 5/);
		await shim.stopVm(pod.id, signal);
		await daemon.line(new RegExp(`${pod.id}.*sandbox removed`), signal);
		t.is(daemon.tail.filter(line => line.includes('pod VM ended by itself') && line.includes(pod.id)).length, 1);
		await nothingLeft(t);
	},
);

for (const [end, how, words] of [
	['panic', /kernel panicked/, /caa\.lab=panic: crashing the kernel \| .*Kernel panic/],
	['poweroff', /shut itself down/, /caa\.lab=poweroff: leaving/],
] as const) {
	test.serial(
		`if a guest ends by ${end} during boot, the start error has the reason and the console tail`,
		async t => {
			t.timeout(600_000);
			const volume = `podvm-${end}.qcow2`;
			await addImage(volume, end);
			// The lab's own log of consoles would take every other byte.
			await hostSh('cp /etc/libvirt/hooks/qemu /run/hook && printf "#!/bin/sh\\n" >/etc/libvirt/hooks/qemu');
			t.teardown(async () => hostSh('cp /run/hook /etc/libvirt/hooks/qemu'));
			t.teardown(async () => hostSh(`virsh -c qemu:///system vol-delete --pool default ${volume}`));
			const pod = await create(t, end, ofImage(volume));
			const {message} = await t.throwsAsync<AdaptorError>(shim.startVm(pod.id, signal));
			t.log(message);
			t.regex(message, how);
			t.regex(message, words);
			t.regex(message, /^[ -~]+$/);
			await shim.stopVm(pod.id, signal);
		},
	);
}

test.serial('the console of a VM is in use by the daemon while it boots, and free once it runs', async t => {
	const isOurs = async (): Promise<boolean> =>
		hostSh('ls /var/lock | grep -q LCK').then(
			() => true,
			() => false,
		);
	const boots = await create(t, 'boots', ofImage(silent));
	const start = t.throwsAsync(shim.startVm(boots.id, signal));
	while (!(await isOurs())) {
		await pause(50, signal);
	}

	await shim.stopVm(boots.id, signal);
	await start;
	const runs = await create(t, 'runs');
	await shim.startVm(runs.id, signal);
	while (await isOurs()) {
		await pause(50, signal);
	}

	await shim.stopVm(runs.id, signal);
	await nothingLeft(t);
});

test.serial('a policy that is set through the relay takes effect, and the caller gets its exact refusals', async t => {
	const pod = await create(t, 'policy');
	await shim.startVm(pod.id, signal);
	t.is(await sh(pod, 'uname -m'), 's390x');
	await using client = await connect(pod.agentSocket, signal);
	const agent = new AgentClient(client);
	await agent.call(
		'AgentService/SetPolicy',
		{
			policy: 'package agent_policy\n\ndefault WaitProcessRequest := true\ndefault ExecProcessRequest := false\n',
		},
		signal,
		60_000,
	);
	const exec = {container_id: 'c', exec_id: 'after', process: {Args: ['true'], Env: ['PATH=/bin'], Cwd: '/'}};
	const {status} = await t.throwsAsync<TtrpcError>(agent.call('AgentService/ExecProcess', exec, signal, 60_000), {
		instanceOf: TtrpcError,
	});
	t.deepEqual(status, {code: statusCode.permissionDenied, message: 'ExecProcessRequest is blocked by policy'});
	t.is((await agent.call('Health/Check', {}, signal, 60_000)).status, 'SERVING', 'the connection lives');
	await agent.call('AgentService/SetPolicy', {policy: 'default ExecProcessRequest := true'}, signal, 60_000);
	t.is(
		(await runCommand(agent, 'c', ['uname', '-m'], signal)).stdout,
		's390x\n',
		'what is allowed again works again',
	);
	await shim.stopVm(pod.id, signal);
	await nothingLeft(t);
});

test.serial('initdata reach the VM as pod VM images read them, and the log tells the digest', async t => {
	const text =
		'algorithm = "sha384"\nversion = "0.1.0"\n\n[data]\n"aa.toml" = \'\'\'\nurl = "http://127.0.0.1:8080"\n\'\'\'\n';
	const pod = await create(t, 'initdata', {'io.katacontainers.config.hypervisor.cc_init_data': text});
	const digest = createHash('sha384').update(text).digest('hex');
	t.true(
		daemon.tail.some(line => line.includes('sandbox created') && line.includes(`"initdata":"sha384:${digest}"`)),
	);
	t.false(daemon.tail.some(line => line.includes('aa.toml')));
	await shim.startVm(pod.id, signal);
	t.is(await sh(pod, 'base64 -d /run/peerpod/initdata | gunzip -c'), text.trim());
	await shim.stopVm(pod.id, signal);
	await nothingLeft(t);
});

test.serial('an image that does not exist is named in the error', async t => {
	const pod = await create(t, 'noimage', {'io.katacontainers.config.hypervisor.image': 'non-existing-image'});
	const error = await t.throwsAsync<AdaptorError>(shim.startVm(pod.id, signal));
	t.regex(error.message, /Can't retrieve volume non-existing-image/);
	await shim.stopVm(pod.id, signal);
	await nothingLeft(t);
});

/** What a shim that dials again gets to see: its agent, in the same VM. */
async function check(pod: Pod): Promise<string> {
	await using client = await connect(pod.agentSocket, signal);
	return (await new AgentClient(client).call('Health/Check', {}, signal, 60_000)).status;
}

test.serial('a daemon stops at once and leaves running VMs alone, and its successor serves them', async t => {
	const pod = await create(t, 'steady');
	const idle = await create(t, 'idle');
	await shim.startVm(pod.id, signal);
	const {domains, macs, tunnels} = await lab.inventory();
	t.is(await daemon.stop(), 0);
	daemon = await startDaemon(lab, {}, signal);
	await daemon.line(new RegExp(`${pod.id}.*sandbox resumed"`), signal);
	t.is(await check(pod), 'SERVING');
	const now = await lab.inventory();
	t.deepEqual([now.domains, now.macs, now.tunnels], [domains, macs, tunnels]);
	await shim.stopVm(pod.id, signal);
	await shim.startVm(idle.id, signal);
	t.is(await check(idle), 'SERVING', 'what was only created can be started');
	await shim.stopVm(idle.id, signal);
	await nothingLeft(t);
});

test.serial(
	'the successor of a killed daemon serves running pods, rolls back starts and completes removals',
	async t => {
		const [runs, booting, ends] = await Promise.all([
			create(t, 'runs'),
			create(t, 'cutoff', ofImage(silent)),
			create(t, 'ends'),
		]);
		await Promise.all([shim.startVm(runs.id, signal), shim.startVm(ends.id, signal)]);
		const start = t.throwsAsync(shim.startVm(booting.id, signal));
		await daemon.line(new RegExp(`domain started.*${booting.id}|${booting.id}.*domain started`), signal);
		const stop = shim.stopVm(ends.id, signal).catch(() => undefined);
		await until('the removal to have begun', ({sockets}) => !sockets.some(path => path.includes(ends.id)));
		daemon.kill('SIGKILL');
		await Promise.all([daemon.ended, start, stop]);
		daemon = await startDaemon(lab, {}, signal);
		await until(
			'only the running one to be left',
			({domains}) => domains.length === 1 && domains[0]?.endsWith(runs.id.slice(0, 8)) === true,
		);
		await daemon.line(new RegExp(`${runs.id}.*sandbox resumed"`), signal);
		t.is(await check(runs), 'SERVING');
		await shim.stopVm(booting.id, signal);
		await shim.stopVm(runs.id, signal);
		await nothingLeft(t);
	},
);

test.serial('a VM without a known sandbox is removed after the grace period', async t => {
	const pod = await create(t, 'lost');
	await shim.startVm(pod.id, signal);
	t.is(await daemon.stop(), 0);
	await rm(lab.outside(`/run/peerpod/pods/${pod.id}`), {recursive: true});
	daemon = await startDaemon(lab, {ORPHAN_GRACE: '1s'}, signal);
	await until('the orphan to be gone', noVm);
	await shim.stopVm(pod.id, signal);
	t.true(daemon.tail.some(line => line.includes('removing an orphaned pod VM') && line.includes(pod.id)));
});
