/**
 * The pod's network with nothing left out: packets of real programs between pods on the worker and processes in s390x
 * VMs, through the tunnels that the daemon makes. One VM for each way in which CNI plugins leave a pod, and a plain pod
 * beside each; all tests share them.
 */
import test, {type ExecutionContext} from 'ava';
import {connect} from '../../src/ttrpc/client.ts';
import {tellAfterFailure} from '../lab/aftermath.ts';
import {AgentClient, runCommand} from '../lab/agent-client.ts';
import {download, echo, get, serveOnWorker} from '../lab/clients.ts';
import {hypervisorSocket, startDaemon} from '../lab/daemon.ts';
import {buildGuestImage} from '../lab/image.ts';
import {settledInventory, type Inventory} from '../lab/inventory.ts';
import {startLab, type Lab} from '../lab/lab.ts';
import {pattern, sha256} from '../lab/peer.ts';
import type {Service} from '../lab/service.ts';
import {newSandboxId, podAnnotations, Shim} from '../lab/shim.ts';
import {podShapes, subnet, type PodShape} from '../lab/topology.ts';
import type {PodNamespace} from '../lab/worker.ts';

const tenMegabytes = 10_000_000;
const checksum = sha256(pattern(tenMegabytes));
/** The VM's leaves room for the tunnel's headers: RFC 7348, section 5. */
const mtu = {pod: 1500, vm: 1450};
const udpHeaders = 28;
const serverPort = 8080;

const stack = new AsyncDisposableStack();
const {signal} = new AbortController();
let lab: Lab;
let daemon: Service;
let shim: Shim;
let empty: Inventory;
let pods: Readonly<Record<PodShape, Pod>>;

interface Pod {
	readonly id: string;
	/** What is in the VM. */
	readonly hostname: string;
	readonly ip: string;
	readonly mac: string;
	/** Another pod of the same plugin, an ordinary one. */
	readonly neighbour: PodNamespace;
	readonly agent: AgentClient;
}

test.before(async t => {
	t.timeout(600_000);
	lab = stack.use(await startLab({image: await buildGuestImage({}, signal), signal}));
	daemon = await startDaemon(lab, {}, signal);
	shim = new Shim(lab.outside(hypervisorSocket));
	const namespaces = await Promise.all(
		podShapes.map(async shape => ({
			shape,
			own: await lab.podNamespace(shape, {shape}),
			neighbour: await lab.podNamespace(`${shape}-neighbour`, {shape}),
		})),
	);
	empty = await lab.inventory();
	stack.use(await serveOnWorker(lab, serverPort, signal));
	const started = await Promise.all(
		namespaces.map(async ({shape, own, neighbour}) => [shape, await startPod(shape, own, neighbour)] as const),
	);
	pods = Object.fromEntries(started) as Record<PodShape, Pod>;
});

test.after.always(async () => {
	await daemon.stop();
	await stack.disposeAsync();
});

test.afterEach.always('what the daemon and the guests said, when a test has failed', async t =>
	tellAfterFailure(t, daemon, lab),
);

/** A VM with a server in it. */
async function startPod(name: string, own: PodNamespace, neighbour: PodNamespace): Promise<Pod> {
	const id = newSandboxId();
	const agentSocket = await shim.createVm(
		{
			id,
			annotations: podAnnotations(name, 'e2e'),
			networkNamespacePath: own.netnsPath,
		},
		signal,
	);
	await shim.startVm(id, signal);
	const agent = new AgentClient(stack.use(await connect(lab.outside(agentSocket), signal)));
	await agent.call('AgentService/CreateSandbox', {sandbox_id: id, hostname: name}, signal);
	await agent.call(
		'AgentService/CreateContainer',
		{container_id: 'web', OCI: {Process: {Args: ['/init', 'serve', '80']}}},
		signal,
	);
	await agent.call('AgentService/StartContainer', {container_id: 'web'}, signal);
	await agent.call('AgentService/ReadStdout', {container_id: 'web', len: 100}, signal); // its first word: it serves
	return {id, hostname: `podvm-${name}-${id.slice(0, 8)}`, ip: own.podIp, mac: own.mac, neighbour, agent};
}

/** What a command in the VM prints. */
async function inVm(t: ExecutionContext, {agent}: Pod, command: string): Promise<string> {
	const {exitCode, stdout, stderr} = await runCommand(agent, 'web', ['sh', '-c', command], signal);
	t.is(exitCode, 0, `${command}: ${stderr}`);
	return stdout;
}

const addressOf = ({ip}: Pod): string => `http://${ip}/`;
const serverOnWorker = `http://${subnet.worker}:${serverPort}/`;

for (const shape of podShapes) {
	test.serial(`${shape}: the VM has the pod's interface, with room left for the tunnel`, async t => {
		const pod = pods[shape];
		const shown = await inVm(t, pod, 'ip address show eth0');
		for (const part of [` mtu ${mtu.vm} `, `link/ether ${pod.mac} `, `inet ${pod.ip}/`]) {
			t.true(shown.includes(part), shown);
		}
	});

	test.serial(
		`${shape}: the pod's address is answered by a process in the VM, which sees the client's own`,
		async t => {
			const pod = pods[shape];
			t.is(
				await get(pod.neighbour, addressOf(pod), signal),
				`Hello ${pod.neighbour.podIp}, this is ${pod.hostname} on s390x.\n`,
			);
		},
	);

	test.serial(`${shape}: a process in the VM reaches a server outside, which sees the pod's address`, async t => {
		const pod = pods[shape];
		t.is(await inVm(t, pod, `wget -q -O - ${serverOnWorker}`), `Hello ${pod.ip}.\n`);
	});

	test.serial(`${shape}: 10 MB arrive unharmed, out of the VM and into it`, async t => {
		const pod = pods[shape];
		const {
			length,
			sha256: received,
			announced,
		} = await download(pod.neighbour, `${addressOf(pod)}bytes?count=${tenMegabytes}`, signal);
		t.is(length, tenMegabytes);
		t.is(received, announced);
		t.is(
			await inVm(t, pod, `wget -q -O - '${serverOnWorker}bytes?count=${tenMegabytes}' | sha256sum`),
			`${checksum}  -\n`,
		);
	});

	test.serial(
		`${shape}: packets up to the MTU of the pod and of the interface of the VM pass in both directions`,
		async t => {
			const pod = pods[shape];
			t.is(await echo(pod.neighbour, pod.ip, 80, mtu.vm - udpHeaders, signal), mtu.vm - udpHeaders);
			t.is(await inVm(t, pod, "awk '/^Ip:/ {print $NF}' /proc/net/snmp"), 'FragCreates\n0\n');
			t.is(await echo(pod.neighbour, pod.ip, 80, mtu.pod - udpHeaders, signal), mtu.pod - udpHeaders);
			t.is(await inVm(t, pod, "awk '/^Ip:/ {print $NF}' /proc/net/snmp"), 'FragCreates\n2\n');
		},
	);
}

test.serial('concurrent pods are separate: each VM is reached at its own address, also from the other VMs', async t => {
	for (const from of Object.values(pods)) {
		for (const to of Object.values(pods)) {
			t.is(
				await inVm(t, from, `wget -q -O - ${addressOf(to)}`),
				`Hello ${from.ip}, this is ${to.hostname} on s390x.\n`,
			);
		}
	}
});

test.serial(
	'stopping a pod does not affect other pods; after the last one, nothing of their networks is left',
	async t => {
		const {tunnels, redirections, bound} = await lab.inventory();
		t.deepEqual(
			tunnels,
			podShapes.map(shape => `${shape}/vxlan1`),
		);
		t.deepEqual(
			redirections,
			podShapes.flatMap(shape => [`${shape}/eth0`, `${shape}/vxlan1`]),
		);
		t.is(bound.length, podShapes.length);

		const {bridge, calico, ptp} = pods;
		await shim.stopVm(bridge.id, signal);
		t.regex(await get(calico.neighbour, addressOf(calico), signal), new RegExp(calico.hostname));
		await Promise.all([calico, ptp].map(async ({id}) => shim.stopVm(id, signal)));
		t.deepEqual(await settledInventory(empty, lab, signal), empty);
	},
);
